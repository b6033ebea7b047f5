import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capo.advantages import group_advantages

rewards_of_four = st.lists(st.floats(-5, 5).map(lambda x: round(x, 2)), min_size=4, max_size=4)
ONE_GROUP = torch.zeros(4, dtype=torch.int64)


def test_one_group_by_hand():
    # mean 2, deviations -1, 0, 1, std with ddof 1 is 1
    result = group_advantages(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, dtype=torch.int64), eps=0.0)
    torch.testing.assert_close(result.advantages, torch.tensor([-1.0, 0.0, 1.0]))


def test_missing_reward_leaves_its_group_and_touches_nobody():
    rewards = torch.tensor([1.0, float("nan"), 3.0, 7.0, 7.0])
    result = group_advantages(rewards, torch.tensor([4, 4, 4, 9, 9]), eps=0.0)
    # siblings 1 and 3: mean 2, std sqrt(2)
    expected = torch.tensor([-1 / math.sqrt(2), 0.0, 1 / math.sqrt(2), 0.0, 0.0])
    torch.testing.assert_close(result.advantages, expected)
    assert (result.num_groups, result.num_zero_std, result.num_missing) == (2, 1, 1)


def test_singleton_and_equal_rewards_teach_nothing():
    result = group_advantages(torch.tensor([5.0, 0.1, 0.1]), torch.tensor([0, 1, 1]))
    assert result.advantages.tolist() == [0, 0, 0] and result.num_zero_std == 2


def test_rewards_equal_up_to_rounding_stay_small():
    # with eps 1e-9 this noise would become advantages of -0.5 and +1.5
    rewards = torch.tensor([0.7, 0.7 + 6e-8, 0.7, 0.7])
    assert group_advantages(rewards, ONE_GROUP).advantages.abs().max() < 1e-3


@given(rewards_of_four, st.floats(-10, 10))
def test_adding_a_constant_changes_nothing_and_groups_are_centred(values, constant):
    rewards = torch.tensor(values, dtype=torch.float64)
    first = group_advantages(rewards, ONE_GROUP).advantages
    second = group_advantages(rewards + constant, ONE_GROUP).advantages
    # 1e-3: a shift of 10 rounds equal rewards apart by 1e-15, which eps 1e-4 keeps below 1e-10; 0.01 steps stay exact
    torch.testing.assert_close(first, second, atol=1e-3, rtol=1e-3)
    assert abs(float(first.sum())) < 1e-4
    assert float(first.abs().max()) <= 1.5 + 1e-6  # (G - 1) / sqrt(G) for G = 4


@given(rewards_of_four, st.permutations(range(4)))
def test_order_within_a_group_does_not_matter(values, order):
    rewards = torch.tensor(values)
    straight = group_advantages(rewards, ONE_GROUP).advantages
    permuted = group_advantages(rewards[list(order)], ONE_GROUP).advantages
    torch.testing.assert_close(straight[list(order)], permuted, atol=1e-4, rtol=1e-4)


def test_infinite_reward_is_refused():
    with pytest.raises(ValueError, match="infinite"):
        group_advantages(torch.tensor([1.0, math.inf]), torch.tensor([0, 0]))
