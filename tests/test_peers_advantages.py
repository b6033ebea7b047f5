"""Advantages and log-probabilities against the peers' own functions (`make test-peers`)."""

import numpy as np
import pytest
import torch
from trl.trainer.utils import nanstd, selective_log_softmax
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, compute_rloo_outcome_advantage

from capo.advantages import centred_advantages, group_advantages, leave_one_out_advantages
from capo.logprobs import linear_logps

GROUPS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2])


def rewards(seed):
    return torch.randn(len(GROUPS), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def verl(function, values, **options):
    # one token a report, which carries the whole reward
    mask = torch.ones(len(values), 1, dtype=torch.float64)
    return function(values[:, None], mask, GROUPS.numpy(), **options)[0][:, 0]


@pytest.mark.parametrize("seed", range(5))
def test_verl(seed):
    values = rewards(seed)
    grpo = verl(compute_grpo_outcome_advantage, values, epsilon=1e-4)
    centred = verl(compute_grpo_outcome_advantage, values, norm_adv_by_std_in_grpo=False)
    rloo = verl(compute_rloo_outcome_advantage, values)
    # verl's mean and std go through float32: torch.tensor of a list of rewards
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(group_advantages(values, GROUPS).advantages, grpo, **tolerance)
    torch.testing.assert_close(centred_advantages(values, GROUPS).advantages, centred, **tolerance)
    torch.testing.assert_close(leave_one_out_advantages(values, GROUPS).advantages, rloo, **tolerance)


@pytest.mark.parametrize("seed", range(5))
def test_trl(seed):
    # TRL computes advantages inside a method that also generates; its statistics are these two lines
    values = rewards(seed)
    values[1] = torch.nan
    expected = torch.empty_like(values)
    for group in GROUPS.unique():
        rows = group == GROUPS
        of_group = values[rows]
        expected[rows] = (of_group - of_group.nanmean()) / (nanstd(of_group) + 1e-4)
    torch.testing.assert_close(group_advantages(values, GROUPS).advantages, expected.nan_to_num(0.0))


def test_singletons_differ():
    # verl makes a lone report's reward its advantage; here and in TRL it has no group to beat
    one, group = torch.tensor([[5.0]]), np.array([0])
    assert compute_grpo_outcome_advantage(one, torch.ones(1, 1), group)[0].item() == pytest.approx(5.0, rel=1e-5)
    assert group_advantages(torch.tensor([5.0]), torch.tensor([0])).advantages == 0


def test_log_probabilities():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(s, 16, generator=generator, dtype=torch.float64) for s in (10, 50))
    targets = torch.randint(50, (10,), generator=generator)
    expected = selective_log_softmax(hidden @ weight.T / 0.7, targets)
    torch.testing.assert_close(linear_logps(hidden, weight, targets, temperature=0.7, chunk=8)[0], expected)
