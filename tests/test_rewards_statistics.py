import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radflow.rewards.statistics import (
    bootstrap,
    bootstrap_difference,
    bootstrap_mean,
    distinct_share,
    holm,
    mean_of,
    paired_bootstrap,
    randomisation_test,
    with_ones,
)


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


def skewed(generator, rows, studies):
    """Scores in [0, 1] as reports have them: many middling ones, a few very good ones, some exactly 0."""
    values = generator.beta(2, 5, (rows, studies))
    return np.where(generator.random((rows, studies)) < 0.1, 0.0, values)


def test_the_interval_covers_the_true_mean_in_93_to_97_percent_of_1000_experiments():
    runs, true_mean = skewed(np.random.default_rng(0), 1000, 200), 0.9 * 2 / 7
    intervals = [bootstrap_mean(run, num_resamples=1000, seed=i) for i, run in enumerate(runs)]
    assert 0.93 <= np.mean([interval.low <= true_mean <= interval.high for interval in intervals]) <= 0.97


def test_two_equal_systems_are_called_different_in_4_to_6_percent_of_1000_experiments():
    generator = np.random.default_rng(1)
    first, second = skewed(generator, 1000, 100), skewed(generator, 1000, 100)
    p_values = [
        randomisation_test(with_ones(a), with_ones(b), mean_of, num_shuffles=999, seed=i)
        for i, (a, b) in enumerate(zip(first, second, strict=True))
    ]
    assert 0.04 <= np.mean(np.array(p_values) <= 0.05) <= 0.06


def test_randomisation_agrees_with_all_arrangements_of_eight_studies():
    first = np.array([0.1, 0.4, 0.3, 0.9, 0.2, 0.5, 0.7, 0.6])
    second = first + np.array([0.3, 0.1, -0.1, 0.05, 0.2, 0.15, -0.05, 0.1])
    difference = second - first
    sums = np.array([np.dot(signs, difference) for signs in itertools.product([1, -1], repeat=8)])
    exact = np.mean(np.abs(sums) >= abs(difference.sum()) - 1e-12)
    p = randomisation_test(with_ones(first), with_ones(second), mean_of, num_shuffles=40_000)
    assert p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 40_000))


def test_a_ratio_of_sums_is_resampled_as_a_ratio():
    """F1 over a corpus is no mean of the F1 of its reports: of sums (2 TP, 2 TP + FP + FN) it is the quotient."""
    columns = np.array([[2.0, 2.0], [0.0, 3.0], [2.0, 3.0]])
    interval = bootstrap(columns, mean_of)
    assert interval.mean == pytest.approx(4 / 8)
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, 3, (10_000, 3))
    quotients = columns[drawn, 0].sum(1) / columns[drawn, 1].sum(1)
    assert (interval.low, interval.high) == tuple(np.percentile(quotients, [2.5, 97.5]))


def test_a_difference_of_means_is_the_paired_bootstrap():
    generator = np.random.default_rng(2)
    first, second = generator.random(50), generator.random(50)
    interval = bootstrap_difference(with_ones(first), with_ones(second), mean_of)
    expected = paired_bootstrap(first, second)
    for field in ("mean", "low", "high"):
        assert getattr(interval, field) == pytest.approx(getattr(expected, field), abs=1e-12)


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, and none may fall below the one before it
    assert holm([0.02, 0.01, 0.04, 0.03]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_nothing_and_bonferroni(p_values):
    corrected = holm(p_values)
    for p, q in zip(p_values, corrected, strict=True):
        assert p <= q <= min(1.0, len(p_values) * max(p_values)) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(corrected)[order]) >= 0)
