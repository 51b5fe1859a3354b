"""Reference runs of parallel adapters, version 2, beside a tiny BERT, float32, CPU: the cache as docs/METHOD.md specifies it,
and twelve steps of training from its entries, by the side network of bench/method.

usage: make_golden_side_v2.py OUT_DIR      (needs torch, transformers, safetensors)
Writes the model's folder (f16) with pair.safetensors (each sample two sentences) and sentence.safetensors (one): `ids` of
all sentences end to end, `lengths` of the sentences, `labels`; of each tap i its components `basis.{i}` and `mean.{i}`
(found from all tokens), `integers.{i}`, `scales.{i}`, `means.{i}` of the sentences (rounded to f16), and `alignment`, g of
each token and tap; then `init.*`, `grad1.*` (gradients of the second step), `final.*` by the names of version 2, `losses`
and `final_logits`. Every number is f32. No dropout.
"""
import os
import sys
from dataclasses import replace

import torch
import torch.nn.functional as F
import transformers as T
from safetensors.torch import save_file

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '../../bench/method'))
from rows import SENTENCE, V2
from side import Side

OUT = sys.argv[1]
D, R, LAYERS, VOCAB, STEPS, CLASSES = 64, 16, 4, 48, 12, 3
TAPS = [0, 2, 4]


def rms(x):
    return (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def model():
    config = T.BertConfig(vocab_size=VOCAB, hidden_size=D, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=16, max_position_embeddings=24)
    made = T.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, p in made.named_parameters():
            p.copy_(torch.randn_like(p) * (0.5 if 'embeddings' in name else 0.15) + (1 if 'LayerNorm.weight' in name else 0))
    made.half().save_pretrained(OUT)
    return made.float()


@torch.no_grad()
def taps_of(bert, sentences):
    "[taps, tokens, D], each sentence by itself"
    parts = []
    for ids in sentences:
        hidden = bert(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        parts.append(torch.stack([(hidden[t] / rms(hidden[t]))[0] for t in TAPS]))
    return torch.cat(parts, 1)


def components(x):
    "mean [D] and basis [D, R] of one tap"
    mean = x.double().mean(0)
    centred = x.double() - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    values, vectors = values.flip(0)[:R], vectors.flip(1)[:, :R]
    return mean.float(), (vectors * values.mean().rsqrt()).float()


def named(side):
    "the parameters of bench/method/side.py by the names of version 2: views, so that gradients go by them too"
    get = {}
    for i in range(len(TAPS)):
        get[f'side.down.{i}.weight'] = lambda v, i=i: v(side.down)[i].T
        get[f'side.down.{i}.bias'] = lambda v, i=i: v(side.down_bias)[i, 0]
    modules = {'side.norm': side.norm, 'side.up': side.up, 'head': side.head}
    if side.o.align:
        modules['side.align'] = side.from_best
    for i, layer in enumerate(side.layers):
        names = {'norm': layer.norm2, 'up': layer.up, 'down': layer.down}
        if layer.attention:
            names |= {'attention_norm': layer.norm1, 'qkv': layer.attention.qkv, 'output': layer.attention.out}
        modules |= {f'side.layers.{i}.{name}': module for name, module in names.items()}
    for name, module in modules.items():
        get[f'{name}.weight'] = lambda v, m=module: v(m.weight)
        get[f'{name}.bias'] = lambda v, m=module: v(m.bias)
    get['side.mix'] = lambda v: v(side.mix)
    return get


def case(name, bert, options, each):
    samples = 12
    lengths = [int(n) for n in torch.randint(4, 11, (samples * each,))]
    sentences = [[1, *torch.randint(3, VOCAB, (n - 2,)).tolist(), 2] for n in lengths]
    labels = torch.randint(0, CLASSES, (samples,))
    x = taps_of(bert, sentences)
    g = dict(ids=torch.tensor(sum(sentences, [])).float(), lengths=torch.tensor(lengths).float(), labels=labels.float())
    stored, means = [], []
    for i in range(len(TAPS)):
        mean, basis = components(x[i])
        z = (x[i] - mean) @ basis
        scale = (z.abs().amax(-1, keepdim=True) / 127).half().float()
        integers = (z / scale).round().clamp(-127, 127)
        stored.append(integers * scale)
        means.append(torch.stack([part.mean(0) for part in x[i].split(lengths)]).half().float())
        g |= {f'basis.{i}': basis, f'mean.{i}': mean, f'integers.{i}': integers, f'scales.{i}': scale[:, 0], f'means.{i}': means[-1]}

    # Padded, as side.py reads them.
    rows = [sum(lengths[s * each:(s + 1) * each]) for s in range(samples)]
    longest = max(rows)
    padded = torch.zeros(len(TAPS), samples, longest, R)
    sentence = torch.full((samples, longest), -1)
    pooled = torch.zeros(len(TAPS), samples, 4, D)
    at = 0
    for s in range(samples):
        of = torch.repeat_interleave(torch.arange(each), torch.tensor(lengths[s * each:(s + 1) * each]))
        sentence[s, :rows[s]] = of
        for i in range(len(TAPS)):
            padded[i, s, :rows[s]] = stored[i][at:at + rows[s]]
            if each == 1:
                pooled[i, s, 1] = means[i][s]
            else:
                pooled[i, s, 2:] = means[i][2 * s:2 * s + 2]
        at += rows[s]
    if each == 2:
        unit = F.normalize(padded, dim=-1)
        other = (sentence[:, None, :] != sentence[:, :, None]) & (sentence >= 0)[:, None, :]
        best = (unit @ unit.transpose(-1, -2)).masked_fill(~other, -1).amax(-1)
        g['alignment'] = best[:, sentence >= 0].T

    side = Side(replace(options, width=R, heads=max(1, R // 16), every=1, dropout=0.0), len(TAPS), R, D, CLASSES)
    with torch.no_grad():
        for p in side.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    names = named(side)
    values = lambda: {n: f(lambda p: p.detach()).clone() for n, f in names.items()}
    g |= {f'init.{n}': v for n, v in values().items()}
    optimiser = torch.optim.AdamW([p for n, p in side.named_parameters() if n != 'gate'], lr=3e-3, weight_decay=0.01)
    losses = []
    for step in range(STEPS):
        loss = F.cross_entropy(side(padded, pooled, sentence), labels)
        optimiser.zero_grad()
        loss.backward()
        if step == 1:
            g |= {f'grad1.{n}': f(lambda p: p.grad).clone() for n, f in names.items()}
        optimiser.step()
        losses.append(loss.item())
    g |= {f'final.{n}': v for n, v in values().items()}
    g['final_logits'] = side(padded, pooled, sentence).detach()
    g['losses'] = torch.tensor(losses)
    save_file({k: v.contiguous().float() for k, v in g.items()}, os.path.join(OUT, f'{name}.safetensors'))
    print(name, [round(v, 3) for v in losses])


torch.manual_seed(11)
os.makedirs(OUT, exist_ok=True)
BERT = model()
case('pair', BERT, V2, 2)
case('sentence', BERT, SENTENCE, 1)
