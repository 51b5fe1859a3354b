"""LoRA on the last m layers over one cached boundary (m = all layers: ordinary LoRA), with the heads of side.py.

usage: python bench/method/lora.py --model DIR --data DIR [--task mrpc] [--last 6] [--head pair] [--rank 8] [--full]
       [--separate] [--epochs 4] [--rate 5e-4] [--seeds 1] [--first-seed 0] [--threads 1]

What the rows of table.py are measured against: the same sentences, batches and schedule, query and value trained. The
sentences of a pair are run together, or with `--separate` each by itself, as version 2 does.
"""
import argparse
import math

import torch
import torch.nn as nn

from data import read_rows, tokenise
from table import MAX_TOKENS, SPLITS
from taps import backbone, run_backbone
from train import TrainOptions, evaluate, fit


class Lora(nn.Module):
    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.linear, self.scale = linear, alpha / rank
        self.a = nn.Parameter(torch.empty(rank, linear.in_features))
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x):
        return self.linear(x) + (x @ self.a.T @ self.b.T) * self.scale


def add_lora(layers, rank, full):
    """Leaves only LoRA on query and value trainable, or with `full` the layers whole."""
    for layer in layers:
        for parameter in layer.parameters():
            parameter.requires_grad_(full)
        if not full:
            attention = layer.attention.self
            attention.query, attention.value = Lora(attention.query, rank, 2 * rank), Lora(attention.value, rank, 2 * rank)


def run_layers(layers, h, sentence, separate):
    """What leaves each of the layers. h: [batch, T, d]; `separate`: the sentences of a pair do not see one another."""
    real = sentence >= 0
    sees = real[:, None, :]
    if separate:
        sees = sees & ((sentence[:, None, :] == sentence[:, :, None]) | ~real[:, :, None])
    mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[:, None]
    for layer in layers:
        h = layer(h, attention_mask=mask)
        h = h[0] if isinstance(h, tuple) else h
        yield h


class Tail(nn.Module):
    """layers: the backbone's last m; `full` trains them whole, otherwise LoRA on query and value."""

    def __init__(self, layers, rank, head, d, dropout=0.1, full=False, separate=False, classes=2):
        super().__init__()
        self.layers, self.pooling, self.separate = layers, head, separate
        add_lora(layers, rank, full)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(2 * d if head == 'pair' else d, classes)

    def forward(self, x, rms, sentence):
        """x: [1, batch, T, d], the boundary scaled to unit root mean square; rms: [1, batch, T]."""
        h = x[0] * rms[0][..., None]
        for h in run_layers(self.layers, h, sentence, self.separate):
            pass
        if self.pooling == 'cls':
            return self.head(self.drop(h[:, 0]))
        h = h / h.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()
        mean = lambda w: (w.float()[:, None, :] @ h)[:, 0] / w.sum(1, keepdim=True).clamp(min=1)
        u, v = mean(sentence == 0), mean(sentence == 1)
        return self.head(self.drop(torch.cat([(u - v).abs(), u * v], -1)))


def argument_parser(description, last, rate):
    """What this script and both.py have in common; `last` and `rate` are their usual values."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', required=True)
    parser.add_argument('--data', required=True)
    parser.add_argument('--task', default='mrpc', choices=('mrpc', 'sst2'))
    parser.add_argument('--last', type=int, default=last)
    parser.add_argument('--rank', type=int, default=8)
    parser.add_argument('--full', action='store_true')
    parser.add_argument('--epochs', type=int, default=4)
    parser.add_argument('--rate', type=float, default=rate)
    parser.add_argument('--seeds', type=int, default=1)
    parser.add_argument('--first-seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=1)
    return parser


def main():
    parser = argument_parser(__doc__, last=6, rate=5e-4)
    parser.add_argument('--head', default='pair', choices=('cls', 'pair'))
    parser.add_argument('--separate', action='store_true')
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    model = backbone(a.model)
    boundary = model.config.num_hidden_layers - a.last
    sets = []
    for split in SPLITS:
        taps = run_backbone(model, tokenise(read_rows(a.task, a.data, split), a.model, MAX_TOKENS, a.separate), a.separate, until=boundary)
        taps.scaled, taps.rms = taps.scaled[-1:], taps.rms[-1:]
        sets.append(taps)
    for seed in range(a.first_seed, a.first_seed + a.seeds):
        torch.manual_seed(seed)
        layers = nn.ModuleList(backbone(a.model).encoder.layer[boundary:])
        tail = Tail(layers, a.rank, a.head, model.config.hidden_size, full=a.full, separate=a.separate).train()  # the backbone's own dropout in every epoch
        history, seconds = fit(tail, sets[0], sets[1], TrainOptions(epochs=a.epochs, learning_rate=a.rate), seed)
        accuracy, loss = evaluate(tail, sets[2])
        epochs = ', '.join(f'{x:.1f} ({y:.3f})' for x, y in history)
        print(f'seed {seed}: validation {epochs}; test {accuracy:.1f} ({loss:.3f}); {seconds:.0f} s/epoch', flush=True)


if __name__ == '__main__':
    main()
