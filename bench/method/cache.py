"""What is cached in place of the taps: principal components, number formats, and the pooled taps that the head reads."""
import torch

from taps import Taps

POOLS = ('cls', 'mean', 'first', 'second')


def pool(taps):
    """Means of the scaled taps over [CLS], all tokens, the first and the second sentence: [taps, samples, 4, d], f32."""
    samples = len(taps.start)
    of = torch.repeat_interleave(torch.arange(samples), taps.length)
    at_cls = torch.zeros(len(taps.sentence))
    at_cls[taps.start] = 1
    weights = (at_cls, torch.ones(len(of)), (taps.sentence == 0).float(), (taps.sentence == 1).float())
    result = torch.zeros(taps.scaled.shape[0], samples, len(POOLS), taps.scaled.shape[2])
    for tap in range(taps.scaled.shape[0]):
        x = taps.scaled[tap].float()
        for k, w in enumerate(weights):
            total = torch.zeros(samples).index_add_(0, of, w).clamp(min=1)
            result[tap, :, k] = torch.zeros(samples, x.shape[1]).index_add_(0, of, x * w[:, None]) / total[:, None]
    return result


def principal_components(taps, width, samples=1024):
    """Per tap: mean [taps, 1, d] and basis [taps, d, width] from the first samples, scaled so that what they give
    has unit mean square in every tap."""
    tokens = int(taps.length[:samples].sum())
    means, bases = [], []
    for x in taps.scaled[:, :tokens].float():
        mean = x.mean(0, keepdim=True)
        values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / tokens)
        values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
        means.append(mean)
        bases.append(vectors * values.mean().rsqrt())
    return torch.stack(means), torch.stack(bases)


def project(taps, mean, basis):
    scaled = torch.stack([(x.float() - m) @ p for x, m, p in zip(taps.scaled, mean, basis)])
    return Taps(scaled, taps.rms, taps.sentence, taps.start, taps.length, taps.label, taps.pooled)


def stored_as(taps, kind):
    """The taps as they come back from a cache of this number format."""
    x = taps.scaled.float()
    if kind == 'f16':
        x = x.half().float()
    elif kind in ('int8', 'int4'):
        top = 127 if kind == 'int8' else 7
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-8) / top
        x = (x / scale).round().clamp(-top, top) * scale.half().float()
    elif kind != 'f32':
        raise SystemExit(f'no number format {kind}: f32, f16, int8 or int4')
    return Taps(x, taps.rms, taps.sentence, taps.start, taps.length, taps.label, taps.pooled)


def bytes_per_sample(taps, kind):
    """Mean bytes: numbers of all real tokens, and an f16 scale a token and tap for the integers."""
    n, tokens, width = taps.scaled.shape
    numbers = tokens * n * width * {'f32': 4, 'f16': 2, 'int8': 1, 'int4': 0.5}[kind]
    scales = tokens * n * 2 if kind in ('int8', 'int4') else 0
    return (numbers + scales) / len(taps.start)
