"""Means with bootstrap intervals, alone and paired."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean and the 95 % percentile interval of its bootstrap distribution."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: Sequence[float], *, num_resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean of `values` over studies, resampled with replacement.

    Raises:
        ValueError: no value, or one that is not finite.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"expected at least one value, all finite, got {data.size}")
    generator, means = np.random.default_rng(seed), []
    # In slices, so that memory stays at about 8 MB however many studies there are.
    rows = max(1, 1_000_000 // data.size)
    for start in range(0, num_resamples, rows):
        drawn = generator.integers(0, data.size, (min(rows, num_resamples - start), data.size))
        means.append(data[drawn].mean(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float(data.mean()), float(low), float(high))


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], *, num_resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of second - first over the same studies; an interval above 0 says that `second` scores higher."""
    if len(first) != len(second):
        raise ValueError(f"expected as many values on both sides, got {len(first)} and {len(second)}")
    difference = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    return bootstrap_mean(difference, num_resamples=num_resamples, seed=seed)


def distinct_share(texts: Sequence[str]) -> float:
    """Share of different texts, in (0, 1]; 1 / N when a model writes one and the same report for every study."""
    return len(set(texts)) / len(texts)
