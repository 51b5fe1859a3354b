"""LoRA on the last m layers over one cached boundary (m = all layers: ordinary LoRA), with the heads of side.py."""
import math

import torch
import torch.nn as nn


class Lora(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear, self.scale = linear, alpha / rank
        self.a = nn.Parameter(torch.empty(rank, linear.in_features))
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x):
        return self.linear(x) + (x @ self.a.T @ self.b.T) * self.scale


class Tail(nn.Module):
    """layers: the backbone's last m; `full` trains them whole, otherwise LoRA on query and value."""

    def __init__(self, layers, rank, head, d, dropout=0.1, full=False, classes=2):
        super().__init__()
        self.layers, self.pooling = layers, head
        for layer in layers:
            for parameter in layer.parameters():
                parameter.requires_grad_(full)
            if not full:
                attention = layer.attention.self
                attention.query, attention.value = Lora(attention.query, rank, 2 * rank), Lora(attention.value, rank, 2 * rank)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(2 * d if head == 'pair' else d, classes)

    def forward(self, x, rms, sentence):
        """x: [1, batch, T, d], the boundary scaled to unit root mean square; rms: [1, batch, T]."""
        real = sentence >= 0
        mask = torch.zeros(real.shape).masked_fill(~real, torch.finfo(torch.float32).min)[:, None, None, :]
        h = x[0] * rms[0][..., None]
        for layer in self.layers:
            h = layer(h, attention_mask=mask)
            h = h[0] if isinstance(h, tuple) else h
        if self.pooling == 'cls':
            return self.head(self.drop(h[:, 0]))
        h = h / h.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()
        mean = lambda w: (w.float()[:, None, :] @ h)[:, 0] / w.sum(1, keepdim=True).clamp(min=1)
        u, v = mean(sentence == 0), mean(sentence == 1)
        return self.head(self.drop(torch.cat([(u - v).abs(), u * v], -1)))
