import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capo.advantages import (
    batch_advantages,
    centred_advantages,
    group_advantages,
    leave_one_out_advantages,
)

# Hundredths: sums and differences of them stay exact enough that equal rewards are equal.
rewards_of_four = st.lists(st.integers(-500, 500).map(lambda x: x / 100), min_size=4, max_size=4)
ONE_GROUP = torch.zeros(4, dtype=torch.int64)
EVERY = [group_advantages, batch_advantages, centred_advantages, leave_one_out_advantages]


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_one_group_by_hand():
    # mean 2, deviations -1, 0, 1, std with ddof 1 is 1; leave one out: 1 - (2 + 3)/2, 2 - (1 + 3)/2, 3 - (1 + 2)/2
    rewards, groups = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, dtype=torch.int64)
    expected = torch.tensor([-1.0, 0.0, 1.0])
    torch.testing.assert_close(group_advantages(rewards, groups, eps=0.0).advantages, expected)
    torch.testing.assert_close(group_advantages(rewards, groups, eps=1.0).advantages, expected / 2)
    torch.testing.assert_close(centred_advantages(rewards, groups).advantages, expected)
    torch.testing.assert_close(leave_one_out_advantages(rewards, groups).advantages, expected * 1.5)
    torch.testing.assert_close(batch_advantages(rewards, groups, eps=1.0).advantages, expected / 2)


def test_batch_divides_every_group_by_the_std_of_all_rewards_by_hand():
    # rewards 0, 2 and 4, 10, and one that is missing: deviations 1 and 3, mean 4, squares 16, 4, 0, 36, std sqrt(56/3)
    rewards, groups = torch.tensor([0.0, 2.0, 4.0, 10.0, math.nan]), torch.tensor([0, 0, 1, 1, 1])
    expected = torch.tensor([-1.0, 1.0, -3.0, 3.0, 0.0])
    found = batch_advantages(rewards, groups, eps=0.5)
    torch.testing.assert_close(found.advantages, expected / (math.sqrt(56 / 3) + 0.5))
    assert (found.num_zero_std, found.num_missing) == (0, 1)


def test_missing_reward_leaves_its_group_and_touches_nobody():
    rewards = torch.tensor([1.0, math.nan, 3.0, 7.0, 7.0])
    result = group_advantages(rewards, torch.tensor([4, 4, 4, 9, 9]), eps=0.0)
    # siblings 1 and 3: mean 2, std sqrt(2)
    expected = torch.tensor([-1 / math.sqrt(2), 0.0, 1 / math.sqrt(2), 0.0, 0.0])
    torch.testing.assert_close(result.advantages, expected)
    assert (result.num_zero_std, result.num_missing) == (1, 1)
    left_out = leave_one_out_advantages(rewards, torch.tensor([4, 4, 4, 9, 9]))
    assert left_out.advantages.tolist() == [-2.0, 0.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize("advantages_of", EVERY)
def test_what_teaches_nothing_is_zero_and_counted(advantages_of):
    # a singleton, equal rewards (0.1 three times does not sum to 0.3), a group with one known reward, one with none
    rewards = torch.tensor([5.0, 0.1, 0.1, 0.1, 2.0, math.nan, math.nan, math.nan])
    result = advantages_of(rewards, torch.tensor([0, 1, 1, 1, 2, 2, 3, 3]))
    assert result.advantages.tolist() == [0.0] * 8
    assert (result.num_zero_std, result.num_missing) == (4, 3)


def test_groups_of_unequal_size_in_any_order_do_not_mix():
    rewards, groups = double(1, 10, 3, 20, 60, 2), torch.tensor([7, -1, 7, -1, -1, 7])
    mixed = group_advantages(rewards, groups).advantages
    for group in (7, -1):
        alone = group_advantages(rewards[groups == group], groups[groups == group]).advantages
        torch.testing.assert_close(mixed[groups == group], alone)


def test_rewards_equal_up_to_rounding_stay_small():
    # with eps 1e-9 this noise would become advantages of -0.5 and +1.5
    rewards = torch.tensor([0.7, 0.7 + 6e-8, 0.7, 0.7])
    assert group_advantages(rewards, ONE_GROUP).advantages.abs().max() < 1e-3


@pytest.mark.parametrize("advantages_of", EVERY)
@given(rewards_of_four, st.integers(-1000, 1000))
@settings(max_examples=50, deadline=None)
def test_adding_a_constant_changes_nothing_and_groups_are_centred(advantages_of, values, constant):
    rewards = double(*values)
    first = advantages_of(rewards, ONE_GROUP).advantages
    second = advantages_of(rewards + constant, ONE_GROUP).advantages
    # A shift of 1000 rounds rewards by 1e-13; equal rewards stay equal, so nothing divides it by eps.
    torch.testing.assert_close(first, second, atol=1e-8, rtol=1e-8)
    assert abs(float(first.sum())) < 1e-9


@given(rewards_of_four, st.floats(0.01, 100))
@settings(max_examples=50, deadline=None)
def test_scaling_changes_nothing_without_eps_and_scales_the_others(values, factor):
    rewards = double(*values)
    torch.testing.assert_close(
        group_advantages(rewards * factor, ONE_GROUP, eps=0.0).advantages,
        group_advantages(rewards, ONE_GROUP, eps=0.0).advantages,
    )
    for advantages_of in (centred_advantages, leave_one_out_advantages):
        torch.testing.assert_close(
            advantages_of(rewards * factor, ONE_GROUP).advantages, advantages_of(rewards, ONE_GROUP).advantages * factor
        )


@given(rewards_of_four)
@settings(max_examples=50, deadline=None)
def test_size_of_the_advantages_of_four(values):
    # ddof 1 and eps 0: sum of squares G - 1 = 3, none above (G - 1)/sqrt(G) = 1.5; ddof 0 would give 4 and 1.73
    result = group_advantages(double(*values), ONE_GROUP, eps=0.0)
    assert float(result.advantages.square().sum()) == pytest.approx(0 if result.num_zero_std else 3)
    assert float(result.advantages.abs().max()) <= 1.5 + 1e-9


@pytest.mark.parametrize("advantages_of", EVERY)
@given(rewards_of_four, st.permutations(range(4)))
@settings(max_examples=30, deadline=None)
def test_order_within_a_group_does_not_matter(advantages_of, values, order):
    rewards = double(*values)
    straight = advantages_of(rewards, ONE_GROUP).advantages
    torch.testing.assert_close(advantages_of(rewards[list(order)], ONE_GROUP).advantages, straight[list(order)])


def test_result_is_in_the_rewards_precision():
    assert group_advantages(double(1, 2), ONE_GROUP[:2]).advantages.dtype == torch.float64
    assert group_advantages(torch.tensor([1.0, 2.0]).bfloat16(), ONE_GROUP[:2]).advantages.dtype == torch.float32


def test_no_rewards():
    result = group_advantages(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert (len(result.advantages), result.num_zero_std) == (0, 0)


def test_bad_rewards_are_refused():
    with pytest.raises(ValueError, match="reward 1 is infinite"):
        group_advantages(torch.tensor([1.0, math.inf]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="one shape"):
        group_advantages(torch.ones(2, 1), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="integer groups"):
        group_advantages(torch.ones(2), torch.zeros(2))
    with pytest.raises(ValueError, match="eps"):
        group_advantages(torch.ones(2), torch.tensor([0, 0]), eps=-1.0)
