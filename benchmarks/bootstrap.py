"""10,000 resamples of a mean against scipy.stats.bootstrap, which is vectorised and given batches that fit a cache."""

import functools
from collections.abc import Callable

import numpy as np
from harness import arguments, compare

SIZES, RESAMPLES = (590, 10_000), 10_000


def values(count: int) -> np.ndarray:
    return np.random.default_rng(1).random(count)


def ours(count: int) -> Callable[[], float]:
    from radflow.rewards.statistics import bootstrap_mean

    data = values(count)
    return lambda: bootstrap_mean(data, num_resamples=RESAMPLES).low


def scipy(count: int) -> Callable[[], float]:
    from scipy.stats import bootstrap

    data, batch = values(count), max(1, 100_000 // count)
    options = {"n_resamples": RESAMPLES, "method": "percentile", "vectorized": True, "axis": -1, "batch": batch}
    return lambda: float(bootstrap((data,), np.mean, rng=np.random.default_rng(0), **options).confidence_interval.low)


if __name__ == "__main__":
    options = arguments(__doc__)
    variants, against = {}, {}
    for count in SIZES:
        for kind, prepare in (("RadFlow", ours), ("scipy", scipy)):
            variants[f"{count:,} studies, {kind}"] = functools.partial(prepare, count)
            against[f"{count:,} studies, {kind}"] = f"{count:,} studies, RadFlow"
    compare(
        "bootstrap",
        variants,
        setting=f"{RESAMPLES:,} resamples of a mean over studies",
        rounds=options.rounds,
        threads=1,
        against=against,
    )
