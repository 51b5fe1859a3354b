"""Runs the frozen backbone once and keeps what the side network reads.

Taps are packed without padding: `scaled[i]` is b_i / rms(b_i) of all real tokens, [taps, tokens, d], f16; `rms` is the
scale that was taken out. Compression (`compress`) acts on these, as the cache of the engine would.
"""
from dataclasses import dataclass

import torch
from transformers import AutoModel


@dataclass
class Taps:
    scaled: torch.Tensor  # [taps, tokens, width] f16 (or what `compress` left)
    rms: torch.Tensor  # [taps, tokens] f32
    sentence: torch.Tensor  # [tokens] 0/1
    start: torch.Tensor  # [samples] first token of each sample
    length: torch.Tensor  # [samples]
    label: torch.Tensor  # [samples]
    pooled: torch.Tensor = None  # [taps, samples, 4, d], see cache.POOLS
    boundary: torch.Tensor = None  # [tokens, d], scaled, and scale [tokens]: what trained layers go on from (both.py)
    scale: torch.Tensor = None


def rms(x):
    return (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def backbone(model_folder):
    model = AutoModel.from_pretrained(model_folder, add_pooling_layer=False, attn_implementation='sdpa').eval().float()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def pad(samples, order, separate):
    """ids, positions, segments and the attention mask [batch, 1, T, T] of the samples `order` names."""
    longest = max(len(samples[i].ids) for i in order)
    shape = (len(order), longest)
    ids, positions, segments = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    sentence = torch.full(shape, -1)
    for row, i in enumerate(order):
        sample = samples[i]
        n = len(sample.ids)
        ids[row, :n] = torch.tensor(sample.ids)
        sentence[row, :n] = torch.tensor(sample.sentence)
        first = n - sum(sample.sentence)
        positions[row, :n] = torch.arange(n)
        if separate:
            positions[row, first:n] -= first
        else:
            segments[row, :n] = sentence[row, :n]
    real = sentence >= 0
    sees = real[:, None, :].expand(-1, longest, -1)
    if separate:
        sees = sees & ((sentence[:, None, :] == sentence[:, :, None]) | ~real[:, :, None])
    mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[:, None]
    return ids, positions, segments, mask, sentence, real


@torch.no_grad()
def run_backbone(model, samples, separate, batch=64, until=None):
    """Taps 0 to `until` (all layers if None) of the samples."""
    layers = model.config.num_hidden_layers if until is None else until
    lengths = torch.tensor([len(s.ids) for s in samples])
    start = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)[:-1]])
    total, d = int(lengths.sum()), model.config.hidden_size
    scaled = torch.empty(layers + 1, total, d, dtype=torch.float16)
    scale, sentence_of = torch.empty(layers + 1, total), torch.empty(total, dtype=torch.long)
    order = lengths.argsort().tolist()
    for at in range(0, len(order), batch):
        rows = order[at:at + batch]
        ids, positions, segments, mask, sentence, real = pad(samples, rows, separate)
        h = model.embeddings(input_ids=ids, position_ids=positions, token_type_ids=segments)
        where = torch.cat([start[i] + torch.arange(lengths[i]) for i in rows])
        for i in range(layers + 1):
            if i:
                h = model.encoder.layer[i - 1](h, attention_mask=mask)
                h = h[0] if isinstance(h, tuple) else h
            b = h[real]
            scaled[i, where] = (b / rms(b)).half()
            scale[i, where] = rms(b)[:, 0]
        sentence_of[where] = sentence[real]
    label = torch.tensor([s.label for s in samples])
    return Taps(scaled, scale, sentence_of, start, lengths, label)
