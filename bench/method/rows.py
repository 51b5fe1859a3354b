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


