"""Which studies each step reads: a function of seed and step alone, so that a resumed run needs only the step."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np


def shuffled_batches(
    count: int,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    weights: Sequence[float] | None = None,
    lengths: Sequence[int] | None = None,
    window: int = 50,
) -> Iterator[list[int]]:
    """Batches of indices below `count`, without end, from `start_step` on.

    Without weights each epoch visits every index once, in an order of its own, and a batch may span two epochs.
    With `count` weights of at least 0, not all 0, each batch is drawn anew in proportion to them, no index twice in a
    batch while there are enough. With `count` lengths, such as tokens, batches hold indices of similar length, which
    pads less; a larger `window` (batches sorted together) gives more similar lengths and less randomness.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(f"expected at least one study and a batch size of at least 1, got {count} and {batch_size}")
    if weights is not None and lengths is not None:
        raise ValueError("expected weights or lengths, got both: what is drawn anew each step has no order to group")
    if weights is not None:
        if len(weights) != count or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
            raise ValueError(f"expected {count} weights of at least 0 with a positive sum, got {list(weights)[:8]}")
        yield from _drawn(np.asarray(weights, dtype=np.float64), batch_size, seed, start_step)
    if lengths is not None and (len(lengths) != count or window < 1):
        raise ValueError(f"expected {count} lengths and a window of at least 1, got {len(lengths)} and {window}")
    epoch, order = -1, np.empty(0, dtype=np.int64)
    for step in itertools.count(start_step):
        batch = []
        for index in range(step * batch_size, (step + 1) * batch_size):
            if index // count != epoch:
                epoch = index // count
                generator = np.random.default_rng([seed, epoch])
                order = generator.permutation(count)
                if lengths is not None:
                    begun = -epoch * count % batch_size
                    order = _grouped(order, np.asarray(lengths), batch_size, window, generator, first=begun)
            batch.append(int(order[index % count]))
        yield batch


def _grouped(
    order: np.ndarray, lengths: np.ndarray, batch_size: int, window: int, generator: np.random.Generator, *, first: int
) -> np.ndarray:
    """An epoch's order [count], sorted by length within windows, the batches of each window shuffled again.

    The `first` of it complete the last batch of the previous epoch.
    """
    pieces = [order[:first]]
    for start in range(first, len(order), window * batch_size):
        part = order[start : start + window * batch_size]
        part = part[np.argsort(lengths[part], kind="stable")]
        whole = len(part) // batch_size * batch_size
        batches = part[:whole].reshape(-1, batch_size)
        pieces += [generator.permutation(batches).ravel(), part[whole:]]
    return np.concatenate(pieces)


def _drawn(weights: np.ndarray, batch_size: int, seed: int, start_step: int) -> Iterator[list[int]]:
    chances = weights / weights.sum()
    replace = batch_size > int(np.count_nonzero(weights))
    for step in itertools.count(start_step):
        yield np.random.default_rng([seed, step]).choice(len(weights), batch_size, replace, p=chances).tolist()
