"""Trains a side network over cached taps: AdamW, warm-up and linear decay, batches of similar length."""
import random
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class TrainOptions:
    epochs: int = 6
    batch: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0


def batches(lengths, size, rng):
    """Shuffled batches; within windows of 16 batches samples are grouped by length, so that little is padded."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    result = []
    for at in range(0, len(order), 16 * size):
        window = sorted(order[at:at + 16 * size], key=lambda i: lengths[i])
        result += [window[i:i + size] for i in range(0, len(window), size)]
    rng.shuffle(result)
    return result


def gather(taps, rows):
    """Padded taps, what else the model reads (pooled taps, or each token's scale where none are kept; the boundary), sentences, labels."""
    length = taps.length[rows]
    longest = int(length.max())
    at = torch.arange(longest)
    where = (taps.start[rows][:, None] + at).clamp(max=taps.scaled.shape[1] - 1)
    real = at < length[:, None]
    x = taps.scaled[:, where.view(-1)].float().view(taps.scaled.shape[0], len(rows), longest, -1)
    sentence = torch.where(real, taps.sentence[where], -1)
    beside = taps.rms[:, where] if taps.pooled is None else taps.pooled[:, rows]
    if taps.boundary is not None:
        beside = beside, taps.boundary[where], taps.scale[where]
    return x, beside, sentence, taps.label[rows]


@torch.no_grad()
def evaluate(model, taps, batch=64):
    model.eval()
    order = taps.length.argsort()
    right, loss = 0, 0.0
    for rows in order.split(batch):
        x, r, s, y = gather(taps, rows)
        logits = model(x, r, s)
        right += (logits.argmax(-1) == y).sum().item()
        loss += F.cross_entropy(logits, y, reduction='sum').item()
    model.train()
    return 100 * right / len(order), loss / len(order)


def fit(model, train, validation, o, seed):
    """Trains in place; returns validation (accuracy, loss) of every epoch and seconds per epoch."""
    rng = random.Random(seed)
    lengths = train.length.tolist()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=o.learning_rate, weight_decay=o.weight_decay)
    total = o.epochs * ((len(lengths) + o.batch - 1) // o.batch)
    warm = max(1, int(o.warmup * total))
    history, seconds, step = [], [], 0
    for _ in range(o.epochs):
        began = time.process_time()
        for rows in batches(lengths, o.batch, rng):
            rate = o.learning_rate * ((step + 1) / warm if step < warm else (total - step) / (total - warm))
            for group in optimiser.param_groups:
                group['lr'] = rate
            x, r, s, y = gather(train, torch.tensor(rows))
            loss = F.cross_entropy(model(x, r, s), y)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, o.clip)
            optimiser.step()
            step += 1
        seconds.append(time.process_time() - began)
        history.append(evaluate(model, validation))
    return history, sum(seconds) / len(seconds)
