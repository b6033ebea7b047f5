"""Which studies each step reads: a function of seed and step alone, so that a resumed run needs only the step."""

from collections.abc import Iterator, Sequence

import numpy as np


def shuffled_batches(
    count: int, batch_size: int, *, seed: int, start_step: int = 0, weights: Sequence[float] | None = None
) -> Iterator[list[int]]:
    """Batches of indices below `count`, without end, from `start_step` on.

    Without weights each epoch visits every index once, in an order of its own, and a batch may span two epochs.
    With weights each batch is drawn anew in proportion to them, no index twice in a batch while there are enough.

    Args:
        weights: `count` numbers of at least 0, not all 0.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(f"expected at least one study and a batch size of at least 1, got {count} and {batch_size}")
    if weights is not None:
        if len(weights) != count or min(weights) < 0 or not 0 < sum(weights) < float("inf"):
            raise ValueError(f"expected {count} weights of at least 0 with a positive sum, got {list(weights)[:8]}")
        yield from _drawn(np.asarray(weights, dtype=np.float64), batch_size, seed, start_step)
    epoch, order = -1, np.empty(0, dtype=np.int64)
    place = start_step * batch_size
    while True:
        batch = []
        for index in range(place, place + batch_size):
            if index // count != epoch:
                epoch = index // count
                order = np.random.default_rng([seed, epoch]).permutation(count)
            batch.append(int(order[index % count]))
        yield batch
        place += batch_size


def _drawn(weights: np.ndarray, batch_size: int, seed: int, step: int) -> Iterator[list[int]]:
    chances = weights / weights.sum()
    replace = batch_size > np.count_nonzero(weights)
    while True:
        yield np.random.default_rng([seed, step]).choice(len(weights), batch_size, replace, p=chances).tolist()
        step += 1
