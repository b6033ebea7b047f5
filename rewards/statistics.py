"""Statistics over studies with bootstrap intervals, and tests of the difference of two systems.

Everything here is a function of sums over studies: a mean, an F1 over a corpus, the inverse of a mean. A resample is
then a product of counts and columns.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]  # sums [..., K] over studies -> one value each, [...]
SLICE = 100_000  # numbers drawn at one time, which stay in a core's cache: 0.8 MB, however many studies there are


@dataclass(frozen=True)
class Interval:
    """A statistic and the 95 % percentile interval of its bootstrap distribution."""

    mean: float
    low: float
    high: float


def mean_of(sums: np.ndarray) -> np.ndarray:
    """The statistic of columns (value, 1): their mean over studies."""
    return sums[..., 0] / sums[..., 1]


def with_ones(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """[N, 2], the columns that `mean_of` reads; ValueError without a value, or with one that is not finite."""
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"expected at least one value, all finite, got {data.size}")
    return np.stack([data, np.ones_like(data)], 1)


def bootstrap(columns: np.ndarray, statistic: Statistic, *, num_resamples: int = 10_000, seed: int = 0) -> Interval:
    """`statistic` over studies, resampled with replacement; resamples that do not define it (NaN) are left out.

    Args:
        columns: [N, K], what each study adds to the sums.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    found = (statistic(counts @ columns) for counts in _resamples(len(columns), num_resamples, seed))
    return _interval(float(statistic(columns.sum(0))), found)


def bootstrap_difference(
    first: np.ndarray, second: np.ndarray, statistic: Statistic, *, num_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """`statistic` of the second system minus that of the first, both over the same resampled studies."""
    split = first.shape[1]

    def difference(sums: np.ndarray) -> np.ndarray:
        return statistic(sums[..., split:]) - statistic(sums[..., :split])

    return bootstrap(np.concatenate([first, second], 1), difference, num_resamples=num_resamples, seed=seed)


def bootstrap_mean(values: Sequence[float] | np.ndarray, *, num_resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of `values` over studies; ValueError without a value, or with one that is not finite."""
    data = with_ones(values)[:, 0]
    # The same resamples as in `bootstrap`, without counting how often each study is drawn.
    found = (data.take(drawn).mean(1) for drawn in _draws(len(data), num_resamples, seed))
    return _interval(float(data.mean()), found)


def paired_bootstrap(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Mean of second - first over the same studies; an interval above 0 says that `second` scores higher."""
    if len(first) != len(second):
        raise ValueError(f"expected as many values on both sides, got {len(first)} and {len(second)}")
    difference = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    return bootstrap_mean(difference)


def randomisation_test(
    first: np.ndarray, second: np.ndarray, statistic: Statistic, *, num_shuffles: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p-value that two systems differ: how often a difference as large comes out when the systems swap their
    reports, study by study, at random.

    The observed arrangement counts as one of the shuffles, so that p is at least 1 / (num_shuffles + 1).

    Source: approximate randomisation, Noreen, Computer-Intensive Methods for Testing Hypotheses, 1989.
    """
    moved = second - first
    sums = first.sum(0), second.sum(0)
    observed = abs(statistic(sums[1]) - statistic(sums[0]))
    generator, extreme = np.random.default_rng(seed), 0
    rows = max(1, SLICE // len(first))
    for start in range(0, num_shuffles, rows):
        swapped = generator.integers(0, 2, (min(rows, num_shuffles - start), len(first)), dtype=np.int8)
        shift = swapped.astype(np.float64) @ moved
        difference = np.abs(statistic(sums[1] - shift) - statistic(sums[0] + shift))
        # Sums in another order differ in the last digits; an equal difference, or an undefined one, counts as large.
        extreme += int((~(difference < observed - 1e-12 * max(1.0, float(observed)))).sum())
    return (extreme + 1) / (num_shuffles + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, so that the chance of any false claim among them stays at the level.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979).
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def distinct_share(texts: Sequence[str]) -> float:
    """Share of different texts, in (0, 1]; 1 / N when a model writes one and the same report for every study."""
    return len(set(texts)) / len(texts)


def _interval(value: float, resampled: Iterator[np.ndarray]) -> Interval:
    low, high = np.nanpercentile(np.concatenate(list(resampled)), [2.5, 97.5])
    return Interval(value, float(low), float(high))


def _draws(count: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """[rows, N] int64: the studies of each resample, a slice at a time."""
    generator = np.random.default_rng(seed)
    rows = max(1, SLICE // count)
    for start in range(0, num_resamples, rows):
        yield generator.integers(0, count, (min(rows, num_resamples - start), count))


def _resamples(count: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """[rows, N] float64: how often each study is drawn in each resample, a slice at a time."""
    for drawn in _draws(count, num_resamples, seed):
        flat = drawn + count * np.arange(len(drawn))[:, None]
        yield np.bincount(flat.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)
