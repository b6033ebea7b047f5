import numpy as np
import pytest

from rewards.statistics import bootstrap_mean, distinct_share, paired_bootstrap


def test_interval_equals_the_normal_one_on_many_normal_values():
    values = np.random.default_rng(0).normal(2.0, 3.0, 4000)
    interval = bootstrap_mean(values)
    half = 1.96 * values.std() / np.sqrt(4000)
    assert interval.mean == pytest.approx(values.mean())
    # 10,000 resamples place a percentile to about 2 % of the half width; 6 % is three of those
    assert interval.low == pytest.approx(interval.mean - half, abs=0.06 * half)
    assert interval.high == pytest.approx(interval.mean + half, abs=0.06 * half)


def test_pairing_removes_what_both_systems_share():
    generator = np.random.default_rng(1)
    study = generator.normal(0, 10, 200)
    first, second = study, study + 0.1 + generator.normal(0, 0.01, 200)
    interval = paired_bootstrap(first, second)
    assert 0.09 < interval.low < interval.high < 0.11
    assert paired_bootstrap(second, first).high < 0


def test_constant_difference_has_no_width_and_order_is_second_minus_first():
    interval = paired_bootstrap([1.0, 2.0], [1.5, 2.5])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.5, 0.5)


def test_bad_input_is_refused():
    for values in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite"):
            bootstrap_mean(values)
    with pytest.raises(ValueError, match="2 and 1"):
        paired_bootstrap([1.0, 2.0], [1.0])


def test_distinct_share():
    assert distinct_share(["a", "a", "b", "a"]) == 0.5
