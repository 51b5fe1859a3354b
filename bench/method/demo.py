"""Compares forms of the side network on the demo (a Llama that learns to answer with JSON): held-out loss after equal steps.

usage: python bench/method/demo.py --model assets/demo [--epochs 10] [--seeds 2] [--rows v1-k8,…] [--threads 1]

As in the engine: learning rate 3e-3, 10 warm-up steps, linear decay, weight decay 0.01, clipping at 1, batch 16, loss on
the response only. Every row reads all taps of its list in f32. Needs torch, transformers, tokenizers from PyPI.
"""
import argparse
import copy
import json
import os
import statistics
import time
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from prune import columns, largest, prune_llama_layer, rows


@dataclass
class Row:
    reduction: int = 8
    temperature: float = 0.1
    fusion: str = 'gate'  # gate | sum
    every: int = 1  # every n-th tap, counted from the last
    start: str = 'random'  # random | down (D_i: principal components) | projected (side layers too; full head size) | pruned (side layers) | picked (and D_i)
    raw: bool = False  # what pruned layers write is not divided by the taps' scale
    heads: int = 0  # query heads, 0: as many as the backbone (head size / reduction); else its head size is kept
    attention: bool = True


ROWS = {
    'v1-k8': Row(), 'v1-k4': Row(4),
    'k8-T1': Row(temperature=1.0), 'k4-T1': Row(4, temperature=1.0),
    'k8-sum': Row(fusion='sum'), 'k4-sum': Row(4, fusion='sum'),
    'k8-T1-second': Row(temperature=1.0, every=2), 'k4-T1-second': Row(4, temperature=1.0, every=2),
    'k8-T1-down': Row(temperature=1.0, start='down'), 'k4-T1-down': Row(4, temperature=1.0, start='down'),
    'k8-T1-heads2': Row(temperature=1.0, start='down', heads=2), 'k4-T1-heads2': Row(4, temperature=1.0, start='down', heads=2),
    'k8-T1-heads6': Row(temperature=1.0, start='down', heads=6), 'k4-T1-heads6': Row(4, temperature=1.0, start='down', heads=6),
    'k8-T1-projected': Row(temperature=1.0, start='projected', heads=6),
    'k4-T1-projected': Row(4, temperature=1.0, start='projected', heads=6),
    'k8-second': Row(every=2), 'k4-second': Row(4, every=2),
    'k8-pruned': Row(start='pruned'), 'k4-pruned': Row(4, start='pruned'),
    'k8-second-pruned': Row(every=2, start='pruned'), 'k4-second-pruned': Row(4, every=2, start='pruned'),
    'k8-second-picked': Row(every=2, start='picked'), 'k4-second-picked': Row(4, every=2, start='picked'),
    'k8-second-pruned-raw': Row(every=2, start='pruned', raw=True), 'k4-second-pruned-raw': Row(4, every=2, start='pruned', raw=True),
    'k8-T1-bottleneck': Row(temperature=1.0, start='down', attention=False),
    'k4-T1-bottleneck': Row(4, temperature=1.0, start='down', attention=False),
}


def rms(x):
    return (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


class Cached:
    """Taps, masks and labels of every sample of a file."""

    def __init__(self, model, tokenizer, file):
        self.samples = []
        for line in open(file, encoding='utf-8'):
            row = json.loads(line)
            prompt = tokenizer.encode(row['prompt'] + '\n').ids
            ids = torch.tensor(prompt + tokenizer.encode(row['response']).ids + [model.config.eos_token_id])
            with torch.no_grad():
                taps = self.run(model, ids)
            label = ids.clone()
            label[:len(prompt)] = -100
            self.samples.append((taps, F.pad(label[1:], (0, 1), value=-100)))

    @staticmethod
    def run(model, ids):
        kept = []
        hooks = [layer.register_forward_pre_hook(lambda m, a, k: kept.append(a[0] if a else k['hidden_states']), with_kwargs=True) for layer in model.model.layers]
        hooks.append(model.model.norm.register_forward_pre_hook(lambda m, a: kept.append(a[0])))
        model(input_ids=ids[None])
        for hook in hooks:
            hook.remove()
        return torch.cat(kept)

    def batch(self, rows):
        picked = [self.samples[i] for i in rows]
        longest = max(len(y) for _, y in picked)
        taps = torch.stack([F.pad(b, (0, 0, 0, longest - b.shape[1]), value=1.0) for b, _ in picked], 1)
        return taps, torch.stack([F.pad(y, (0, longest - len(y)), value=-100) for _, y in picked])


class Side(nn.Module):
    def __init__(self, row, model, basis, scales):
        super().__init__()
        c, self.row = model.config, row
        d, r = c.hidden_size, c.hidden_size // row.reduction
        self.taps = sorted(range(c.num_hidden_layers, -1, -row.every))
        side = copy.deepcopy(c)
        side.hidden_size, side.intermediate_size = r, c.intermediate_size // row.reduction
        side.head_dim = c.head_dim if row.heads else c.head_dim // row.reduction
        if row.heads:
            side.num_attention_heads, side.num_key_value_heads = row.heads, max(1, row.heads // 2)
        side._attn_implementation = 'sdpa'
        self.down = nn.ModuleList(nn.Linear(d, r) for _ in self.taps)
        self.gate = nn.Parameter(torch.zeros(len(self.taps) - 1))
        self.layers = nn.ModuleList(LlamaDecoderLayer(side, i) for i in range(len(self.taps) - 1))
        self.norm, self.up = LlamaRMSNorm(r, eps=c.rms_norm_eps), nn.Linear(r, d)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.rope = LlamaRotaryEmbedding(side)
        if not row.attention:
            for layer in self.layers:
                layer.self_attn = None
                layer.input_layernorm = None
        if row.start in ('down', 'projected'):
            for down in self.down:
                down.weight.data.copy_(basis[:, :r].T * (r / d) ** 0.5)
                down.bias.data.zero_()
        if row.start == 'projected':
            self.project(model.model.layers, basis[:, :r], (r / d) ** 0.5, scales)
        if row.start in ('pruned', 'picked'):
            self.prune(model.model, scales)

    @torch.no_grad()
    def project(self, layers, basis, c, scales):
        """Side layer i starts as backbone layer i between principal components: W V / c in, c Vᵀ W / rms(b_i) out; of the
        feed-forward block the neurons of largest norm are kept. Norm gains are folded into what follows them."""
        for i, layer in enumerate(self.layers, 1):
            whole = layers[self.taps[i] - 1]
            for name in ('q_proj', 'k_proj', 'v_proj'):
                w = getattr(whole.self_attn, name).weight * whole.input_layernorm.weight
                getattr(layer.self_attn, name).weight.copy_(w @ basis / c)
            layer.self_attn.o_proj.weight.copy_(c * basis.T @ whole.self_attn.o_proj.weight / scales[self.taps[i]])
            gate, up, down = (getattr(whole.mlp, n).weight for n in ('gate_proj', 'up_proj', 'down_proj'))
            kept = (gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)).topk(layer.mlp.gate_proj.weight.shape[0]).indices
            gain = whole.post_attention_layernorm.weight
            layer.mlp.gate_proj.weight.copy_((gate[kept] * gain) @ basis / c)
            layer.mlp.up_proj.weight.copy_((up[kept] * gain) @ basis / c)
            layer.mlp.down_proj.weight.copy_(c * basis.T @ down[:, kept] / scales[self.taps[i]])

    @torch.no_grad()
    def prune(self, model, scales):
        """Side layer i starts as what magnitude pruning leaves of backbone layer i. `pruned`: D_i stays random, as in PAC.
        `picked`: one set of hidden dimensions everywhere, of largest norm over all matrices that read or write them, and D_i picks it."""
        r, one_set = self.norm.weight.shape[0], self.row.start == 'picked'
        norms = columns(model.embed_tokens.weight)
        if one_set:
            for layer in model.layers:
                norms = norms + sum(columns(getattr(layer.self_attn, name + '_proj').weight) for name in 'qkv') + rows(layer.self_attn.o_proj.weight)
                norms = norms + columns(layer.mlp.gate_proj.weight) + columns(layer.mlp.up_proj.weight) + rows(layer.mlp.down_proj.weight)
        kept = largest(norms, r)
        if one_set:
            for down in self.down:
                down.weight.copy_(torch.eye(down.in_features)[kept])
                down.bias.zero_()
        for i, layer in enumerate(self.layers, 1):
            kept = prune_llama_layer(layer, model.layers[self.taps[i] - 1], kept, 1 if self.row.raw else scales[self.taps[i]], one_set)

    def forward(self, taps):
        x = taps / rms(taps)
        positions = self.rope(x[0], torch.arange(x.shape[2])[None])
        a = self.down[0](x[self.taps[0]])
        for i, layer in enumerate(self.layers):
            z = self.down[i + 1](x[self.taps[i + 1]])
            mu = torch.sigmoid(self.gate[i] / self.row.temperature)
            s = mu * a + (1 - mu) * z if self.row.fusion == 'gate' else a + z
            if self.row.attention:
                a = layer(s, attention_mask=None, position_embeddings=positions)
                a = a[0] if isinstance(a, tuple) else a
            else:
                a = s + layer.mlp(layer.post_attention_layernorm(s))
        return taps[-1] + rms(taps[-1]) * self.up(self.norm(a))


def loss_of(model, side, taps, labels, reduction='mean'):
    learnt = labels >= 0
    return F.cross_entropy(model.lm_head(model.model.norm(side(taps)[learnt])), labels[learnt], reduction=reduction), int(learnt.sum())


def train(row, model, basis, scales, data, held_out, epochs, seed):
    torch.manual_seed(seed)
    side = Side(row, model, basis, scales)
    optimiser = torch.optim.AdamW(side.parameters(), weight_decay=0.01)
    total, step, began = epochs * -(-len(data.samples) // 16), 0, time.process_time()
    for _ in range(epochs):
        for rows in torch.randperm(len(data.samples)).split(16):
            rate = 3e-3 * ((step + 1) / 10 if step < 10 else (total - step) / (total - 10))
            for group in optimiser.param_groups:
                group['lr'] = rate
            loss, _ = loss_of(model, side, *data.batch(rows.tolist()))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(side.parameters(), 1.0)
            optimiser.step()
            step += 1
    seconds = (time.process_time() - began) / epochs
    with torch.no_grad():
        parts = [loss_of(model, side, *held_out.batch(range(at, min(at + 16, len(held_out.samples)))), reduction='sum') for at in range(0, len(held_out.samples), 16)]
    return sum(x.item() for x, _ in parts) / sum(n for _, n in parts), seconds, sum(p.numel() for p in side.parameters())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', required=True)
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--seeds', type=int, default=2)
    parser.add_argument('--rows', default='')
    parser.add_argument('--threads', type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    names = a.rows.split(',') if a.rows else list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        raise SystemExit(f'no row {unknown[0]}; there are {", ".join(ROWS)}')
    model = AutoModelForCausalLM.from_pretrained(a.model).eval().float()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    tokenizer = Tokenizer.from_file(os.path.join(a.model, 'tokenizer.json'))
    data, held_out = (Cached(model, tokenizer, os.path.join(a.model, f)) for f in ('train.jsonl', 'heldout.jsonl'))
    every = torch.cat([b.flatten(1, 1) for b, _ in data.samples], 1)
    scales = rms(every).mean((1, 2)).tolist()
    unit = (every / rms(every)).flatten(0, 1)
    basis = torch.linalg.eigh(unit.T @ unit / len(unit))[1].flip(1)
    print('| row | parameters | s/epoch (processor) | held-out loss, mean | each seed |')
    print('|---|---|---|---|---|', flush=True)
    for name in names:
        runs = [train(ROWS[name], model, basis, scales, data, held_out, a.epochs, seed) for seed in range(a.seeds)]
        losses = [loss for loss, _, _ in runs]
        print(f'| {name} | {runs[0][2]:,} | {runs[0][1]:.2f} | {statistics.mean(losses):.4f} | {", ".join(f"{x:.4f}" for x in losses)} |', flush=True)


if __name__ == '__main__':
    main()
