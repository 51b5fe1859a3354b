"""Reads MRPC and SST-2 and tokenises them for a BERT-family encoder.

A sample is (ids, segments, label). `separate=True` gives each sentence of a pair its own [CLS] … [SEP] and its own
positions (segment 0), for backbones that are run on each sentence by itself.
"""
import csv
import os
from dataclasses import dataclass

from tokenizers import Tokenizer


@dataclass
class Sample:
    ids: list  # token ids
    sentence: list  # 0 or 1: the sentence each token belongs to
    label: int


def read_rows(task, folder, split):
    """Rows of (first sentence, second sentence or None, label)."""
    name = {('mrpc', 'validation'): 'val', ('sst2', 'validation'): 'dev'}.get((task, split), split)
    with open(os.path.join(folder, task, name + '.tsv'), encoding='utf-8-sig', newline='') as file:
        rows = list(csv.reader(file, delimiter='\t', quoting=csv.QUOTE_NONE))
    if task == 'mrpc':
        return [(r[3], r[4], int(r[0])) for r in rows[1:]]
    if task == 'sst2':
        return [(r[0], None, int(r[1])) for r in rows]
    raise SystemExit(f'no task {task}: mrpc or sst2')


def tokenise(rows, model_folder, max_tokens, separate):
    """Samples of at most max_tokens tokens; of a pair, the longer sentence is cut first."""
    tokenizer = Tokenizer.from_file(os.path.join(model_folder, 'tokenizer.json'))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    cls, sep = tokenizer.token_to_id('[CLS]'), tokenizer.token_to_id('[SEP]')
    words = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    samples = []
    for first, second, label in rows:
        a, b = words(first), words(second) if second is not None else None
        room = max_tokens - (2 if b is None else 4 if separate else 3)
        while len(a) + len(b or []) > room:
            (a if len(a) >= len(b or []) else b).pop()
        ids, sentence = [cls, *a, sep], [0] * (len(a) + 2)
        if b is not None:
            tail = [cls, *b, sep] if separate else [*b, sep]
            ids, sentence = ids + tail, sentence + [1] * len(tail)
        samples.append(Sample(ids, sentence, label))
    return samples
