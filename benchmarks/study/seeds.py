"""Statistics over seeds: each seed is one experiment of its own, from data and initial weights to the tested policy.

A mean over the held-out studies of one seed says how well that policy does; only differences between seeds say how well
the *method* does. Studies enter through these means, and intervals are those of Student's t over seeds.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and half the width of its 95 % interval; NaN with a single seed."""

    mean: float
    half: float


@dataclass(frozen=True)
class Comparison:
    """One row against another on the same seeds."""

    difference: Estimate
    effect: float  # Cohen's d_z: mean difference / its std over seeds
    p: float  # two-sided paired t-test; NaN with a single seed, 1 where no seed differs
    wins: int  # seeds on which the difference is above 0
    seeds: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean over seeds with Student's t, n - 1 degrees of freedom."""
    if len(values) < 2:
        return Estimate(statistics.fmean(values), math.nan)
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(statistics.fmean(values), float(stats.t.ppf(0.975, len(values) - 1)) * spread)


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
    """`second` minus `first`, seed by seed.

    Raises:
        ValueError: not the same number of seeds.
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    found = estimate(differences)
    wins = sum(d > 0 for d in differences)
    if len(differences) < 2:
        return Comparison(found, math.nan, math.nan, wins, len(differences))
    spread = statistics.stdev(differences)
    if spread <= 1e-12 * max(1.0, abs(found.mean)):  # the same difference on every seed, up to rounding
        return Comparison(
            found,
            0.0 if found.mean == 0 else math.copysign(math.inf, found.mean),
            float(found.mean == 0),
            wins,
            len(differences),
        )
    p = float(stats.ttest_rel(second, first).pvalue)
    return Comparison(found, found.mean / spread, p, wins, len(differences))
