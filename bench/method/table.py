"""Prints the table of docs/METHOD.md: every form of the side network on MRPC or SST-2, mean ± sd over seeds.

usage: python bench/method/table.py --model DIR --data DIR [--task mrpc] [--rows v1,v2,…] [--seeds 3] [--threads 1]

DIR of --model is a BERT-family folder (config.json, model.safetensors, tokenizer.json), DIR of --data holds mrpc/ and
sst2/. Configurations are chosen by the validation columns; test is printed once for each. Needs torch, transformers,
tokenizers and numpy from PyPI.
"""
import argparse
import statistics

import torch

from cache import pool, principal_components, project, stored_as
from data import read_rows, tokenise
from rows import ROWS
from side import Side
from taps import backbone, run_backbone
from train import evaluate, fit

MAX_TOKENS = 96
SPLITS = ('train', 'validation', 'test')


def spread(values):
    sd = statistics.stdev(values) if len(values) > 1 else 0
    return f'{statistics.mean(values):.1f} ± {sd:.1f}'


class Caches:
    """The three splits as a row's cache keeps them; the backbone runs once for joint and once for separate sentences."""

    def __init__(self, arguments):
        self.arguments, self.taps, self.stored, self.bases = arguments, {}, {}, {}
        self.layers = backbone(arguments.model).encoder.layer

    def of(self, row):
        a = self.arguments
        if row.separate not in self.taps:
            model, self.taps[row.separate] = backbone(a.model), []
            for split in SPLITS:
                taps = run_backbone(model, tokenise(read_rows(a.task, a.data, split), a.model, MAX_TOKENS, row.separate), row.separate)
                taps.pooled = pool(taps)
                self.taps[row.separate].append(taps)
        taps = self.taps[row.separate]
        key = (row.separate, row.components, row.dtype)
        if key not in self.stored:
            self.stored.clear()
            if row.components:
                basis = self.bases[row.separate, row.components] = principal_components(taps[0], row.components)
                self.stored[key] = [stored_as(project(t, *basis), row.dtype) for t in taps]
            else:
                self.stored[key] = taps if row.dtype == 'f16' else [stored_as(t, row.dtype) for t in taps]
        return self.stored[key]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', required=True)
    parser.add_argument('--data', required=True)
    parser.add_argument('--task', default='mrpc', choices=('mrpc', 'sst2'))
    parser.add_argument('--rows', default='')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--threads', type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    names = a.rows.split(',') if a.rows else [name for name, row in ROWS.items() if a.task in row.tasks]
    if unknown := [name for name in names if name not in ROWS]:
        raise SystemExit(f'no row {unknown[0]}; there are {", ".join(ROWS)}')
    caches = Caches(a)
    print('| row | parameters | cache bytes a sample | s/epoch (processor) | validation | validation loss | test | test loss |')
    print('|---|---|---|---|---|---|---|---|', flush=True)
    for name in names:
        row = ROWS[name]
        train, validation, test = caches.of(row)
        n, _, stored = train.scaled.shape
        d = train.pooled.shape[-1]
        last, tested = [], []
        for seed in range(a.seeds):
            torch.manual_seed(seed)
            model = Side(row.side, n, stored, d)
            if row.side.start == 'components':
                model.start_from(*principal_components(train, row.side.width))
            if row.side.start == 'picked' or row.side.blocks != 'random':
                model.start_blocks(caches.layers, train.rms, *caches.bases.get((row.separate, row.components), (None, None)))
            history, seconds = fit(model, train, validation, row.training, seed)
            last.append(history[-1])
            tested.append(evaluate(model, test))
        parameters = sum(p.numel() for p in model.parameters())
        print(f'| {name} | {parameters:,} | {row.cache_bytes(model, train, d):,.0f} | {seconds:.1f} | {spread([x for x, _ in last])} '
              f'| {statistics.mean(x for _, x in last):.3f} | {spread([x for x, _ in tested])} '
              f'| {statistics.mean(x for _, x in tested):.3f} |', flush=True)


if __name__ == '__main__':
    main()
