"""The side network beside a frozen encoder, with every choice that docs/METHOD.md compares.

Version 1 is `SideOptions()`. b_i: [tokens, d] output of backbone layer i; all taps come scaled to unit root mean square.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

from prune import columns, largest, rows, start_bert_block


@dataclass
class SideOptions:
    width: int = 48
    heads: int = 12
    layers: str = 'attention'  # attention | bottleneck (no attention) | none
    norm: str = 'post'  # post | pre
    fusion: str = 'gate'  # gate | sum
    temperature: float = 0.1
    dropout: float = 0.0
    start: str = 'random'  # D_i: random | identity (stored components) | components (of stored taps, by `start_from`) | picked (hidden dimensions of stored taps)
    blocks: str = 'random'  # feed-forward blocks: random | pruned (the backbone's, by magnitude) | projected (the backbone's, between components)
    every: int = 1  # every n-th tap, counted from the last
    out: str = 'last'  # what the head reads beside the side network: last (b_L) | mix (softmax-weighted taps)
    head: str = 'cls'  # cls | mean | pair
    head_dropout: float = 0.0
    head_hidden: int = 0  # 0: one linear layer
    direct: bool = False  # the head also reads the mean and the maximum of the side state over tokens
    align: bool = False  # side state starts with each token's best cosine in the other sentence, per tap
    match: bool = False  # last block compares every token with what it attends to in the other sentence


def linear_weight(inner, outer, count=0):
    bound = 1 / math.sqrt(inner)
    shape = (count, inner, outer) if count else (inner, outer)
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x, mask):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(b, t, -1))


class SideLayer(nn.Module):
    def __init__(self, o):
        super().__init__()
        r, ff, attention = o.width, 4 * o.width, o.layers == 'attention'
        self.pre = o.norm == 'pre'
        self.attention = Attention(r, o.heads) if attention else None
        self.norm1 = nn.LayerNorm(r) if attention else None
        self.up, self.down, self.norm2 = nn.Linear(r, ff), nn.Linear(ff, r), nn.LayerNorm(r)
        self.drop = nn.Dropout(o.dropout)

    def forward(self, x, mask):
        ff = lambda y: self.drop(self.down(F.gelu(self.up(y))))
        if self.pre:
            if self.attention:
                x = x + self.drop(self.attention(self.norm1(x), mask))
            return x + ff(self.norm2(x))
        if self.attention:
            x = self.norm1(x + self.drop(self.attention(x, mask)))
        return self.norm2(x + ff(x))


class Match(nn.Module):
    """Soft alignment: y_t = x_t + MLP([|n_t − m_t|, n_t ∘ m_t]), n = norm(x), m_t the mean of n that token t attends to in the other sentence."""

    def __init__(self, r):
        super().__init__()
        self.norm = nn.LayerNorm(r)
        self.query = nn.Linear(r, r, bias=False)  # of queries and keys: scores start as a similarity
        self.mix = nn.Sequential(nn.Linear(2 * r, 2 * r), nn.GELU(), nn.Linear(2 * r, r))
        self.sharp = nn.Parameter(torch.tensor(2.0))

    def forward(self, x, other):
        y = self.norm(x)
        q = F.normalize(self.query(y), dim=-1)
        score = (q @ q.transpose(1, 2)) * self.sharp.exp()
        m = score.masked_fill(~other, -1e4).softmax(-1) @ y
        return x + self.mix(torch.cat([(y - m).abs(), y * m], -1))


class Side(nn.Module):
    def __init__(self, o, taps, stored, d, classes=2):
        super().__init__()
        self.o = o
        last = taps - 1
        self.taps = sorted({last - i * o.every for i in range(taps) if last - i * o.every >= 0})
        n, r = len(self.taps), o.width
        if o.layers != 'none':
            self.down = linear_weight(stored, r, n)
            if o.start == 'identity':
                self.down.data.zero_()[:, range(min(stored, r)), range(min(stored, r))] = 1
            self.down_bias = nn.Parameter(torch.zeros(n, 1, r))
            self.gate = nn.Parameter(torch.zeros(n - 1))
            self.layers = nn.ModuleList(SideLayer(o) for _ in range(n - 1))
            self.match = Match(r) if o.match else None
            self.norm = nn.LayerNorm(r)
            self.up = nn.Linear(r, d)
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)
        self.mix = nn.Parameter(torch.zeros(n)) if o.out == 'mix' else None
        features = 2 * d if o.head == 'pair' else d
        features += 2 * o.width if o.direct else 0
        if o.align:
            self.from_best = nn.Linear(n, o.width)
        hidden = o.head_hidden
        self.head_drop = nn.Dropout(o.head_dropout)
        self.head = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, classes)) if hidden else nn.Linear(features, classes)

    @torch.no_grad()
    def start_from(self, mean, basis):
        """D_i := the principal components of tap i: mean [taps, 1, d], basis [taps, d, width]."""
        self.down.copy_(basis[self.taps])
        self.down_bias.copy_(-(mean @ basis)[self.taps])

    @torch.no_grad()
    def start_blocks(self, layers, rms, mean, basis):
        """Block i starts from the feed-forward block of the backbone's layer that ends at tap i. rms: [taps, tokens]; mean and
        basis as for `start_from`, of the components that are stored; both None where whole taps are."""
        kept = None
        if self.o.start == 'picked':
            pairs = [(layer.intermediate.dense.weight, layer.output.dense.weight) for layer in layers]
            kept = largest(sum(columns(first) + rows(second) for first, second in pairs), self.o.width)
            self.down.zero_()[:, kept, range(self.o.width)] = 1
        for block, tap in zip(self.layers, self.taps[1:]):
            whole, scale = layers[tap - 1], rms[tap].mean()
            if self.o.blocks == 'projected':
                squared = basis[tap].pow(2).sum(0).mean()  # c², for basis = c V
                start_bert_block(block, whole, scale, read=basis[tap] / squared, write=basis[tap].T, mean=mean[tap, 0])
            elif self.o.blocks == 'pruned':
                start_bert_block(block, whole, scale, kept=kept)

    def forward(self, x, pooled, sentence):
        """x: [taps, batch, T, stored width]; pooled: [taps, batch, 4, d] (cache.POOLS); sentence: [batch, T], −1 where padded."""
        o = self.o
        real = sentence >= 0
        x = x[self.taps]
        n, b, t, d = x.shape
        pooled = pooled[self.taps]
        base = pooled[-1] if self.mix is None else torch.einsum('n,nbkd->bkd', self.mix.softmax(0), pooled)
        if o.layers == 'none':
            delta = None
        else:
            z = torch.baddbmm(self.down_bias, x.reshape(n, b * t, d), self.down).view(n, b, t, -1)
            mask = real[:, None, None, :].expand(b, 1, t, t)
            other = (sentence[:, None, :] != sentence[:, :, None]) & real[:, None, :]
            a = z[0]
            if o.align:
                with torch.no_grad():
                    unit = F.normalize(x, dim=-1)
                    best = (unit @ unit.transpose(-1, -2)).masked_fill(~other, -1).amax(-1)
                a = a + self.from_best(best.permute(1, 2, 0) - 0.5)
            for i, layer in enumerate(self.layers):
                if o.fusion == 'gate':
                    mu = torch.sigmoid(self.gate[i] / o.temperature)
                    s = mu * a + (1 - mu) * z[i + 1]
                else:
                    s = a + z[i + 1]
                a = layer(s, mask)
            if self.match:
                a = self.match(a, other)
            delta = self.norm(a)
        features = self.features(base, delta, sentence)
        if o.direct:
            w = real.float()
            mean = (w[:, None, :] @ delta)[:, 0] / w.sum(1, keepdim=True)
            features = torch.cat([features, mean, delta.masked_fill(~real[..., None], -10).amax(1)], -1)
        return self.head(self.head_drop(features))

    def features(self, base, a, sentence):
        """What the head reads of out = base + U a, pooled before U (both are linear)."""
        masks = {'cls': None, 'mean': sentence >= 0, 'first': sentence == 0, 'second': sentence == 1}

        def out(k, name):
            if a is None:
                return base[:, k]
            if name == 'cls':
                return base[:, k] + self.up(a[:, 0])
            w = masks[name].float()
            return base[:, k] + self.up((w[:, None, :] @ a)[:, 0] / w.sum(1, keepdim=True).clamp(min=1))

        if self.o.head == 'cls':
            return out(0, 'cls')
        if self.o.head == 'mean':
            return out(1, 'mean')
        u, v = out(2, 'first'), out(3, 'second')
        return torch.cat([(u - v).abs(), u * v], -1)
