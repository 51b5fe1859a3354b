"""Structural pruning by magnitude: side layers that start from the rows and columns of largest L1 norm of frozen weights.

As in Ladder Side-Tuning and PAC, where weights themselves are the measure of importance. What a layer writes is divided by
`scale`, the mean root mean square of the tap that it imitates, for the side network's taps come scaled to 1.
"""
import torch


def largest(norms, count):
    """Indices of the largest norms along the last dimension, in order."""
    return norms.topk(count).indices.sort().values


def rows(weight):
    return weight.abs().sum(1)


def columns(weight):
    return weight.abs().sum(0)


@torch.no_grad()
def prune_llama_layer(side, whole, kept, scale, one_set):
    """Starts the Llama layer `side` from `whole`, of which it reads the hidden dimensions `kept`; returns those that it writes.

    Heads stay as many; of each the dimensions of largest norm are kept, queries' and keys' in the pairs that the rotary
    embedding turns (the angles are those of the smaller head). With `one_set` the hidden dimensions are `kept` throughout,
    otherwise every matrix that writes chooses its own.
    """
    small, size = side.self_attn.head_dim, whole.self_attn.head_dim
    q, k, v, o = (getattr(whole.self_attn, name + '_proj').weight for name in 'qkvo')
    groups = len(k) // size
    shared = len(q) // len(k)
    pairs = (rows(q[:, kept]).view(groups, shared, size).sum(1) * rows(k[:, kept]).view(groups, size)).view(groups, 2, size // 2).sum(1)
    turned = largest(pairs, small // 2)
    within = torch.cat([turned, turned + size // 2], 1)
    valued = largest(rows(v[:, kept]).view(groups, size), small)

    def of_heads(chosen):
        return (torch.arange(len(chosen))[:, None] * size + chosen).flatten()

    q, k, v = q[of_heads(within.repeat_interleave(shared, 0))], k[of_heads(within)], v[of_heads(valued)]
    o = o[:, of_heads(valued.repeat_interleave(shared, 0))]
    between = kept if one_set else largest(rows(o), len(kept))
    side.input_layernorm.weight.copy_(whole.input_layernorm.weight[kept])
    for name, weight in zip('qkv', (q, k, v)):
        getattr(side.self_attn, name + '_proj').weight.copy_(weight[:, kept])
    side.self_attn.o_proj.weight.copy_(o[between] / scale)

    gate, up, down = (getattr(whole.mlp, name + '_proj').weight for name in ('gate', 'up', 'down'))
    neurons = largest(rows(gate[:, between]) * rows(up[:, between]) * columns(down), len(side.mlp.gate_proj.weight))
    written = kept if one_set else largest(rows(down[:, neurons]), len(kept))
    side.post_attention_layernorm.weight.copy_(whole.post_attention_layernorm.weight[between])
    side.mlp.gate_proj.weight.copy_(gate[neurons][:, between])
    side.mlp.up_proj.weight.copy_(up[neurons][:, between])
    side.mlp.down_proj.weight.copy_(down[written][:, neurons] / scale)
    return written


@torch.no_grad()
def start_bert_block(block, whole, scale, read=None, write=None, mean=None, kept=None):
    """Starts the bottleneck block `block` from the feed-forward block of the BERT layer `whole`, neurons of largest norm.

    `read` [d, r] and `write` [r, d] lead out of and into the side network's state, whose zero stands for `mean` [d]; without them the hidden dimensions `kept`
    are read and written, or, where none are named, those of largest norm in either matrix.
    """
    first, second = whole.intermediate.dense, whole.output.dense
    inner, r = block.up.weight.shape
    neurons = largest(rows(first.weight) * columns(second.weight), inner)
    into, out = first.weight[neurons], second.weight[:, neurons]
    if read is None:
        pick = torch.eye(into.shape[1])
        read = pick[:, largest(columns(into), r) if kept is None else kept]
        write = pick[largest(rows(out), r) if kept is None else kept]
    block.up.weight.copy_(into @ read * scale)
    block.up.bias.copy_(first.bias[neurons] if mean is None else first.bias[neurons] + into @ mean * scale)
    block.down.weight.copy_(write @ out / scale)
    block.down.bias.copy_(write @ second.bias / scale)
