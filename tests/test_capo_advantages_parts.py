"""Advantages of rewards that have parts, and of reports that enter no mean: the estimators by name."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capo.advantages import (
    ESTIMATORS,
    batch_advantages,
    centred_advantages,
    decoupled_advantages,
    estimate_advantages,
    group_advantages,
    leave_one_out_advantages,
    sum_parts,
    variance_shares,
)

NAN = math.nan
GROUPS = torch.tensor([3, 3, 3, 3, -1, -1, -1, -1])
SHORT = settings(max_examples=40, deadline=None)
each_seed = given(st.integers(0, 10_000))
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def random_parts(seed, *, num_parts=3, num=8):
    """Tenths, so that some are equal; [N, K]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-10, 11, (num, num_parts), generator=generator).double() / 10


def test_decoupled_by_hand():
    # Groups (0, 2, 4) and (1, 1, 1) in the first part, (0, 1, 2) and (5, 3, 4) in the second; stds 2, 0, 1, 1.
    parts = double([0, 0], [2, 1], [4, 2], [1, 5], [1, 3], [1, 4])
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    # sums -2, 0, 2 and 1, -1, 0: mean 0, squares 4 + 4 + 1 + 1 over 5
    expected = double(-2, 0, 2, 1, -1, 0)
    found = decoupled_advantages(parts, groups, eps=0.0)
    torch.testing.assert_close(found.advantages, expected / math.sqrt(2))
    assert (found.num_zero_std, found.num_missing) == (0, 0)  # the second group has spread in one part
    # weights 3 and 1: sums -4, 0, 4 and 1, -1, 0; eps counts in both divisions
    weighted = decoupled_advantages(parts, groups, torch.tensor([3.0, 1.0]), eps=0.0).advantages
    torch.testing.assert_close(weighted, double(-4, 0, 4, 1, -1, 0) / math.sqrt(34 / 5))
    # eps 1: sums of (-2, 0, 2) / (2 + 1) and of the others / (1 + 1)
    sums = double(-7 / 6, 0, 7 / 6, 1 / 2, -1 / 2, 0)
    with_eps = decoupled_advantages(parts, groups, eps=1.0).advantages
    torch.testing.assert_close(with_eps, sums / (sums.std() + 1))


@each_seed
@SHORT
def test_scale_and_shift_of_a_part_change_nothing(seed):
    parts = random_parts(seed)
    changed = parts * double(7.0, 0.3, 1.0) + double(-2.0, 5.0, 0.0)
    first, second = (decoupled_advantages(x, GROUPS, eps=1e-9).advantages for x in (parts, changed))
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


@each_seed
@SHORT
def test_one_part_is_the_group_advantage_divided_by_the_std_of_the_batch(seed):
    rewards = random_parts(seed, num_parts=1)
    alone = group_advantages(rewards[:, 0], GROUPS).advantages
    found = decoupled_advantages(rewards, GROUPS).advantages
    torch.testing.assert_close(found, alone / (alone.std() + 1e-4))


@every_estimator
@given(seed=st.integers(0, 10_000), order=st.permutations(range(8)))
@SHORT
def test_order_and_numbers_of_groups_do_not_matter(estimator, seed, order):
    parts, order = random_parts(seed), list(order)
    parts[seed % 8, seed % 3] = NAN
    straight = estimate_advantages(estimator, parts, GROUPS)
    shuffled = estimate_advantages(estimator, parts[order], 10 - 2 * GROUPS[order])
    torch.testing.assert_close(shuffled.advantages, straight.advantages[order])
    assert (shuffled.num_zero_std, shuffled.num_missing) == (straight.num_zero_std, straight.num_missing)


@given(seed=st.integers(0, 10_000), row=st.integers(0, 7), part=st.integers(0, 2))
@SHORT
def test_a_missing_part_leaves_only_itself(seed, row, part):
    """The report keeps its other parts, and its siblings are compared in that part as if it were not there."""
    parts = random_parts(seed)
    parts[row, part] = NAN
    others = torch.arange(8) != row
    columns = torch.zeros(8, 3, dtype=torch.float64)
    for k in range(3):
        rows = others if k == part else torch.ones(8, dtype=torch.bool)
        columns[rows, k] = group_advantages(parts[rows, k], GROUPS[rows]).advantages
    total = columns.sum(1)
    found = decoupled_advantages(parts, GROUPS)
    torch.testing.assert_close(found.advantages, total / (total.std() + 1e-4))
    assert found.num_missing == 0


def test_a_report_without_any_part_is_missing_and_enters_no_std():
    parts = double([0, 0], [1, 2], [NAN, NAN], [4, 1])
    groups = torch.zeros(4, dtype=torch.int64)
    found = decoupled_advantages(parts, groups)
    rest = decoupled_advantages(parts[[0, 1, 3]], groups[:3])
    assert found.advantages[2] == 0 and found.num_missing == 1
    torch.testing.assert_close(found.advantages[[0, 1, 3]], rest.advantages)


@every_estimator
def test_a_step_without_parts_or_without_spread_teaches_nothing(estimator):
    for parts in (torch.zeros(4, 0), torch.full((4, 2), NAN)):
        nothing = estimate_advantages(estimator, parts, torch.tensor([0, 0, 1, 1]), torch.ones(parts.shape[1]))
        assert nothing.advantages.tolist() == [0.0] * 4
        assert (nothing.num_zero_std, nothing.num_missing) == (2, 4)
    # 0.1 three times does not sum to 0.3, and here the parts' noise would be divided by almost nothing
    flat = estimate_advantages(estimator, torch.full((3, 2), 0.1), torch.zeros(3, dtype=torch.int64), eps=0.0)
    assert flat.advantages.tolist() == [0.0] * 3 and flat.num_zero_std == 1


def test_bad_parts_and_names_are_refused():
    groups = torch.tensor([0, 0])
    with pytest.raises(ValueError, match=r"expected parts \[N, K\] and weights \[K\], got \[2, 3\] and \[2\]"):
        decoupled_advantages(torch.ones(2, 3), groups, torch.ones(2))
    with pytest.raises(ValueError, match=r"expected parts \[N, K\]"):
        decoupled_advantages(torch.ones(2), groups)
    with pytest.raises(ValueError, match="reward 1 is infinite"):
        decoupled_advantages(torch.tensor([[1.0], [math.inf]]), groups)
    with pytest.raises(ValueError, match="expected an estimator of group, decoupled"):
        estimate_advantages("z-score", torch.ones(2, 3), groups)
    with pytest.raises(ValueError, match="counted bool"):
        group_advantages(torch.ones(2), groups, counted=torch.tensor([1, 0]))


@each_seed
@SHORT
def test_by_name_is_the_function_of_that_name_of_the_summed_parts(seed):
    parts, counted = random_parts(seed), torch.arange(8) % 4 != seed % 4
    rewards = sum_parts(parts, GROUPS)
    options = {"counted": counted}
    for estimator, wanted in (
        ("group", group_advantages(rewards, GROUPS, eps=0.2, **options)),
        ("batch", batch_advantages(rewards, GROUPS, eps=0.2, **options)),
        ("centred", centred_advantages(rewards, GROUPS, **options)),
        ("leave_one_out", leave_one_out_advantages(rewards, GROUPS, **options)),
        ("decoupled", decoupled_advantages(parts, GROUPS, double(1, 2, 3), eps=0.2, **options)),
    ):
        found = estimate_advantages(estimator, parts, GROUPS, double(1, 2, 3), eps=0.2, **options)
        assert torch.equal(found.advantages, wanted.advantages) and found.num_zero_std == wanted.num_zero_std


# reports that enter no mean and no std


@every_estimator
@given(seed=st.integers(0, 10_000), missing=st.booleans(), outlier=st.floats(-50, 50))
@SHORT
def test_a_report_that_is_not_counted_changes_nobody_elses_advantage(estimator, seed, missing, outlier):
    parts, kept = random_parts(seed), torch.arange(8) != 2
    parts[2] = outlier
    if missing:  # a part that only a copy lacks must not take it from the others
        parts[2, seed % 3] = NAN
    found = estimate_advantages(estimator, parts, GROUPS, counted=kept)
    alone = estimate_advantages(estimator, parts[kept], GROUPS[kept])
    torch.testing.assert_close(found.advantages[kept], alone.advantages)
    assert found.num_zero_std == alone.num_zero_std


def test_what_a_report_has_that_is_not_counted_by_hand():
    # counted: 1, 2, 3 with mean 2 and std 1; the other has 5. Once it has joined: mean 2.75, std sqrt(8.75 / 3)
    rewards, groups = double(1, 2, 3, 5), torch.zeros(4, dtype=torch.int64)
    counted, joined = torch.tensor([True, True, True, False]), 2.25 / (8.75 / 3) ** 0.5
    found = group_advantages(rewards, groups, eps=0.0, counted=counted).advantages
    torch.testing.assert_close(found, double(-1, 0, 1, joined))
    assert batch_advantages(rewards, groups, eps=0.5, counted=counted).advantages[3] == 3 / 1.5
    assert centred_advantages(rewards, groups, counted=counted).advantages[3] == 3
    assert leave_one_out_advantages(rewards, groups, counted=counted).advantages.tolist() == [-1.5, 0, 1.5, 3]
    # one part: -1, 0, 1 and that of the other, divided by the std of the counted, which is 1
    one_part = decoupled_advantages(rewards[:, None], groups, eps=0.0, counted=counted)
    torch.testing.assert_close(one_part.advantages, double(-1, 0, 1, joined))


@given(rewards=st.lists(st.floats(-9, 9), min_size=2, max_size=6), other=st.floats(-1e6, 1e6))
@SHORT
def test_a_report_that_is_not_counted_has_the_advantage_that_it_would_have_if_it_were(rewards, other):
    values, groups = double(*rewards, other), torch.zeros(len(rewards) + 1, dtype=torch.int64)
    counted = torch.arange(len(values)) < len(rewards)
    apart = group_advantages(values, groups, counted=counted).advantages[-1]
    torch.testing.assert_close(apart, group_advantages(values, groups).advantages[-1], rtol=1e-6, atol=1e-9)
    assert abs(apart) <= len(rewards) / (len(rewards) + 1) ** 0.5  # in a group of any spread, even none


def test_equal_rewards_whose_mean_is_rounded_give_nothing():
    # (0.1 + 0.1 + 0.1) / 3 is 0.10000000000000002: without eps each would be 0.8 standard deviations below its mean
    same = group_advantages(double(0.1, 0.1, 0.1), torch.zeros(3, dtype=torch.int64), eps=0.0)
    assert same.advantages.tolist() == [0, 0, 0] and same.num_zero_std == 1


def test_a_group_without_counted_reports_has_nothing_to_compare_with():
    found = group_advantages(double(1, 2), torch.tensor([0, 0]), counted=torch.tensor([False, False]))
    assert found.advantages.tolist() == [0, 0] and found.num_zero_std == 1


# totals


def test_a_part_that_one_report_lacks_counts_for_none_of_its_group():
    parts = double([1, 10, 100], [2, NAN, 200], [3, 30, 300], [4, 40, 400])
    assert sum_parts(parts, torch.tensor([0, 0, 1, 1])).tolist() == [101, 202, 333, 444]
    # a part that no report of the group has is none of its parts, whatever others have
    parts = double([NAN, 1], [NAN, NAN], [5, 6])
    assert sum_parts(parts, torch.tensor([0, 0, 1])).nan_to_num(-1.0).tolist() == [1, -1, 11]


def test_where_every_part_is_lacked_by_some_only_those_leave_that_lack_one():
    parts = double([1, NAN], [NAN, 2], [3, 4], [5, 6])
    assert sum_parts(parts, torch.zeros(4, dtype=torch.int64)).nan_to_num(-1.0).tolist() == [-1, -1, 7, 11]


def test_a_report_that_is_not_counted_takes_no_part_from_a_group():
    parts, counted = double([1, 10], [2, 20], [3, NAN]), torch.tensor([True, True, False])
    found = sum_parts(parts, torch.zeros(3, dtype=torch.int64), counted=counted)
    assert found.nan_to_num(-1.0).tolist() == [11, 22, -1]  # its total cannot be compared with theirs


# shares of the variance


def test_shares_of_the_variance_by_hand():
    # deviations -1, 1 and -3, 3; totals -4, 4: (4 + 4) / 32 and (12 + 12) / 32
    parts, groups = double([0, 0], [2, 6]), torch.tensor([0, 0])
    torch.testing.assert_close(variance_shares(parts, groups), double(0.25, 0.75))
    # a second group of equal totals adds -2, 2 against 2, -2: nothing; its parts cancel
    parts = torch.cat([parts, double([0, 4], [4, 0])])
    torch.testing.assert_close(variance_shares(parts, torch.tensor([0, 0, 1, 1])), double(0.25, 0.75))
    # one that runs against the total: -1, 1 and 3, -3 give (-2 - 2) / 8 and 12 / 8
    torch.testing.assert_close(variance_shares(double([0, 6], [2, 0]), groups), double(-0.5, 1.5))


@given(seed=st.integers(0, 10_000), shift=st.integers(-100, 100))
@SHORT
def test_shares_add_up_to_one_and_do_not_depend_on_the_level_of_a_group(seed, shift):
    parts = random_parts(seed)
    shares = variance_shares(parts, GROUPS)
    assert float(shares.sum()) == pytest.approx(1.0)
    moved = torch.where((GROUPS == 3)[:, None], parts + shift, parts - 2 * shift)
    torch.testing.assert_close(variance_shares(moved, GROUPS), shares, rtol=1e-6, atol=1e-6)


@each_seed
@SHORT
def test_a_part_that_is_the_whole_reward_has_share_one(seed):
    rewards = random_parts(seed, num_parts=1)
    level = 7.0 * GROUPS.double()[:, None]  # differs between groups only
    torch.testing.assert_close(variance_shares(torch.cat([level, rewards], 1), GROUPS), double(0, 1))


def test_shares_without_spread_are_zero_and_a_missing_part_is_the_mean():
    assert variance_shares(torch.ones(4, 2), torch.tensor([0, 0, 1, 1])).tolist() == [0, 0]
    assert variance_shares(torch.zeros(4, 0), torch.tensor([0, 0, 1, 1])).tolist() == []
    # the second part of the third report is missing: deviations -1, 0, 1 and -1, 1, 0 (mean of 2 and 4)
    found = variance_shares(double([0, 2], [1, 4], [2, NAN]), torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(found, double(3 / 6, 3 / 6))  # totals -2, 1, 1


# why: the measured cause of a reward that rises through one part


def test_a_part_of_wide_range_decides_the_group_advantage_and_not_the_decoupled_one():
    """A judge of +-1 next to two parts in [0, 1] that vary little, as in the demo: most pairs on whose better report
    both small parts agree were preferred the wrong way round whenever the judge said otherwise."""
    generator = torch.Generator().manual_seed(0)
    num_groups, size = 400, 4
    groups = torch.arange(num_groups).repeat_interleave(size)
    judge = 2.0 * (torch.rand(num_groups * size, generator=generator) < 0.5) - 1
    quality = torch.rand(num_groups * size, generator=generator)
    small = [0.3 * quality + 0.1 * torch.rand(num_groups * size, generator=generator) for _ in range(2)]
    parts = torch.stack([judge, *small], 1)
    mixed = torch.zeros(num_groups).index_add(0, groups, judge).abs()[groups] < size  # groups that hold both signs
    wrong, correlation = {}, {}
    for estimator in ("group", "decoupled"):
        advantages = estimate_advantages(estimator, parts, groups).advantages
        correlation[estimator] = float(torch.corrcoef(torch.stack([advantages, judge])[:, mixed])[0, 1])
        # of the first two reports of each group: by how much the first is preferred, and is better in each small part
        preferred, better, better_too = (x.reshape(num_groups, size)[:, :2].diff()[:, 0] for x in (advantages, *small))
        agreed = (better * better_too > 0) & mixed[::size]
        wrong[estimator] = float(((preferred * better < 0) & agreed).sum() / agreed.sum())
    assert correlation["group"] > 0.9 > 0.75 > correlation["decoupled"]
    assert wrong["group"] > 0.2 and wrong["decoupled"] < wrong["group"] / 3
    assert variance_shares(parts[mixed], groups[mixed])[0] > 0.8
