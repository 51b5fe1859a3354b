"""Version 2's side network together with LoRA on the last m layers, over one cache: components of the taps below the boundary, and the
boundary itself. What leaves the trained layers is projected, pooled and read by the side network in place of its cached last taps.

usage: python bench/method/both.py --model DIR --data DIR [--task mrpc] [--last 2] [--rank 8] [--width 48] [--boundary int8] [--full] [--no-side]
       [--epochs 4] [--rate 1e-3] [--seeds 1] [--first-seed 0] [--threads 1]

The sentences of a pair are run each by itself, with the backbone's own dropout in the trained layers. `--no-side` leaves the side network
out: LoRA alone over the same cache, with the same pooled means and the same head. `--last 6` is LoRA on all layers.
"""
from dataclasses import replace

import torch
import torch.nn as nn

from cache import bytes_per_sample, pool, principal_components, project, stored_as
from data import read_rows, tokenise
from lora import add_lora, argument_parser, run_layers
from rows import SENTENCE, V2
from side import Side
from table import MAX_TOKENS, SPLITS
from taps import Taps, backbone, run_backbone
from train import TrainOptions, evaluate, fit

NO_SIDE = dict(layers='none', direct=False, align=False)


def only(taps, which):
    """The taps of these numbers, sharing everything else."""
    return Taps(taps.scaled[which], taps.rms[which], taps.sentence, taps.start, taps.length, taps.label)


class Both(nn.Module):
    """layers: the backbone's last m, from the boundary; mean, basis: components of every second tap (side.py's order)."""

    def __init__(self, side, layers, rank, mean, basis, full):
        super().__init__()
        self.side, self.layers = side, layers
        self.register_buffer('mean', mean)  # [taps, 1, d]
        self.register_buffer('basis', basis)  # [taps, d, p]
        add_lora(layers, rank, full)

    def forward(self, x, beside, sentence):
        """x: [cached taps, batch, T, p], components of the taps below and at the boundary; beside: their pooled means, the
        boundary scaled to unit root mean square [batch, T, d], and its scale [batch, T]."""
        pooled, boundary, scale = beside
        taps, pools = [], []
        for i, h in enumerate(run_layers(self.layers, boundary * scale[..., None], sentence, separate=True)):
            if (len(self.layers) - 1 - i) % 2 == 0:
                tap = h / h.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()
                at = len(x) + len(taps)
                taps.append((tap - self.mean[at]) @ self.basis[at])
                pools.append(self.pool(tap, sentence))
        return self.side(torch.cat([x, torch.stack(taps)]), torch.cat([pooled, torch.stack(pools)]), sentence)

    @staticmethod
    def pool(x, sentence):
        """[batch, 4, d], cache.POOLS of live activations."""
        mean = lambda w: (w.float()[:, None, :] @ x)[:, 0] / w.sum(1, keepdim=True).clamp(min=1)
        return torch.stack([x[:, 0], mean(sentence >= 0), mean(sentence == 0), mean(sentence == 1)], 1)


def main():
    parser = argument_parser(__doc__, last=2, rate=1e-3)
    parser.add_argument('--width', type=int, default=48)
    parser.add_argument('--boundary', default='int8', choices=('f32', 'f16', 'int8'))
    parser.add_argument('--no-side', action='store_true')
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    model = backbone(a.model)
    count = model.config.num_hidden_layers
    boundary = count - a.last
    read = [i for i in range(count + 1) if (count - i) % 2 == 0]
    kept = [i for i in read if i <= boundary]
    sets, basis = [], None
    for split in SPLITS:
        taps = run_backbone(model, tokenise(read_rows(a.task, a.data, split), a.model, MAX_TOKENS, True), True)
        basis = basis or principal_components(only(taps, read), a.width)
        mean, vectors = basis
        below = only(taps, kept)
        below.pooled = pool(below)
        stored = stored_as(project(below, mean[:len(kept)], vectors[:len(kept)]), 'int8')
        edge = stored_as(only(taps, [boundary]), a.boundary)
        stored.boundary, stored.scale = edge.scaled[0], edge.rms[0]
        sets.append(stored)
        if split == 'train':
            size = bytes_per_sample(stored, 'int8') * (not a.no_side) + bytes_per_sample(edge, a.boundary) + 2 * len(kept) * (2 if a.task == 'mrpc' else 1) * vectors.shape[1]
            size += 2 * len(edge.sentence) / len(edge.start) * (a.boundary != 'f32')
            print(f'cache {size:,.0f} bytes a sample', flush=True)
    options = replace(V2 if a.task == 'mrpc' else SENTENCE, width=a.width, every=1)
    if a.no_side:
        options = replace(options, **NO_SIDE)
    for seed in range(a.first_seed, a.first_seed + a.seeds):
        torch.manual_seed(seed)
        layers = nn.ModuleList(backbone(a.model).encoder.layer[boundary:])
        side = Side(options, len(read), a.width, vectors.shape[1])
        both = Both(side, layers, a.rank, mean, vectors, a.full).train()
        history, seconds = fit(both, sets[0], sets[1], TrainOptions(epochs=a.epochs, learning_rate=a.rate), seed)
        accuracy, loss = evaluate(both, sets[2])
        parameters = sum(p.numel() for p in both.parameters() if p.requires_grad)
        epochs = ', '.join(f'{x:.1f} ({y:.3f})' for x, y in history)
        print(f'seed {seed}: {parameters:,} parameters; validation {epochs}; test {accuracy:.1f} ({loss:.3f}); {seconds:.0f} s/epoch', flush=True)


if __name__ == '__main__':
    main()
