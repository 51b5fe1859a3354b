"""The rows of the table: which cache, which side network, which schedule. Named as in docs/METHOD.md."""
from dataclasses import dataclass, field, replace

from cache import bytes_per_sample
from side import SideOptions
from train import TrainOptions


@dataclass
class Row:
    side: SideOptions
    training: TrainOptions = field(default_factory=TrainOptions)
    separate: bool = False  # every sentence of a pair is run through the backbone by itself
    components: int = 0  # principal components cached in place of a tap, 0: the tap itself
    dtype: str = 'f16'  # of the cached taps or components
    tasks: tuple = ('mrpc',)

    def cache_bytes(self, model, taps, d):
        """Mean bytes a sample: the taps that the side network reads, and in f16 what the head reads of them, pooled."""
        used = len(model.taps) / taps.scaled.shape[0]
        reads_tokens = self.side.layers != 'none'
        pools = 2 if self.side.head.startswith('pair') else 1
        pooled = (len(model.taps) if self.side.out == 'mix' else 1) * pools * d
        return (bytes_per_sample(taps, self.dtype) * used if reads_tokens else 0) + 2 * pooled


FOUR, EIGHT = (TrainOptions(epochs=n, learning_rate=1e-3) for n in (4, 8))
V1 = SideOptions()
ATTENTION = SideOptions(heads=3, norm='pre', temperature=1.0, dropout=0.1, out='mix', start='identity', head='pair')
HEAD = SideOptions(layers='none', out='mix', head='pair', head_hidden=64, head_dropout=0.1)
DIRECT = replace(ATTENTION, every=2, direct=True)
ALIGN = replace(DIRECT, align=True)
GATED = replace(ALIGN, layers='bottleneck')
V2 = replace(GATED, fusion='sum')
SENTENCE = replace(DIRECT, fusion='sum', head='mean')  # one sentence: nothing to align with
COMPONENTS = dict(components=48, dtype='f32')

ROWS = {
    'v1': Row(V1, TrainOptions(epochs=6)),
    'v1-pair': Row(replace(V1, head='pair'), TrainOptions(epochs=6)),
    'joint-head': Row(HEAD, FOUR, **COMPONENTS),
    'joint-attention': Row(ATTENTION, FOUR, **COMPONENTS),
    'joint-match': Row(replace(ATTENTION, match=True), FOUR, **COMPONENTS),
    'joint-match-bottleneck': Row(replace(ATTENTION, match=True, layers='bottleneck'), FOUR, **COMPONENTS),
    'joint-align': Row(ALIGN, FOUR, **COMPONENTS),
    'head': Row(HEAD, FOUR, separate=True, **COMPONENTS),
    'attention': Row(ATTENTION, FOUR, separate=True, **COMPONENTS),
    'attention-second': Row(replace(ATTENTION, every=2), FOUR, separate=True, **COMPONENTS),
    'match-bottleneck': Row(replace(ATTENTION, match=True, layers='bottleneck'), FOUR, separate=True, **COMPONENTS),
    'direct': Row(DIRECT, FOUR, separate=True, **COMPONENTS),
    'direct-dropout': Row(replace(DIRECT, dropout=0.2, head_dropout=0.2), FOUR, separate=True, **COMPONENTS),
    'align': Row(ALIGN, FOUR, separate=True, **COMPONENTS),
    'gate': Row(GATED, FOUR, separate=True, **COMPONENTS),
    'gate-int8': Row(GATED, FOUR, separate=True, components=48, dtype='int8'),
    'gate-all': Row(replace(GATED, every=1), FOUR, separate=True, **COMPONENTS),
    'gate-match': Row(replace(GATED, match=True), FOUR, separate=True, **COMPONENTS),
    'v2-f32': Row(V2, FOUR, separate=True, **COMPONENTS),
    'v2': Row(V2, FOUR, separate=True, components=48, dtype='int8'),
    'v2-taps': Row(replace(V2, start='components'), FOUR, separate=True),
    'v2-pruned': Row(replace(V2, blocks='pruned'), FOUR, separate=True, components=48, dtype='int8'),
    'v2-projected': Row(replace(V2, blocks='projected'), FOUR, separate=True, components=48, dtype='int8'),
    'v2-picked': Row(replace(V2, start='picked'), FOUR, separate=True),
    'v2-picked-pruned': Row(replace(V2, start='picked', blocks='pruned'), FOUR, separate=True),
    'v2-long': Row(V2, EIGHT, separate=True, components=48, dtype='int8'),
    'sentence-bottleneck': Row(replace(SENTENCE, layers='bottleneck'), FOUR, components=48, dtype='int8', tasks=('sst2',)),
    'sentence-attention': Row(SENTENCE, FOUR, components=48, dtype='int8', tasks=('sst2',)),
    'sentence-attention-96': Row(replace(SENTENCE, width=96), FOUR, components=96, dtype='int8', tasks=('sst2',)),
    'sentence-attention-96-f32': Row(replace(SENTENCE, width=96), FOUR, components=96, dtype='f32', tasks=('sst2',)),
    'sentence-attention-96-taps': Row(replace(SENTENCE, width=96, start='components'), FOUR, tasks=('sst2',)),
    'sentence-attention-96-all': Row(replace(SENTENCE, width=96, every=1), FOUR, components=96, dtype='int8', tasks=('sst2',)),
    'sentence-attention-192': Row(replace(SENTENCE, width=192, heads=6), FOUR, components=192, dtype='int8', tasks=('sst2',)),
    'sentence-attention-96-long': Row(replace(SENTENCE, width=96, dropout=0.2, head_dropout=0.2), EIGHT, components=96, dtype='int8', tasks=('sst2',)),
    'sentence-head': Row(replace(HEAD, head='mean'), FOUR, components=48, dtype='int8', tasks=('sst2',)),
}
