"""Advantages and log-probabilities against the peers' own functions (`make test-peers`)."""

import inspect
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trl import GRPOTrainer
from trl.trainer.utils import nanstd, selective_log_softmax
from verl.trainer.ppo.core_algos import (
    compute_gdpo_outcome_advantage,
    compute_grpo_outcome_advantage,
    compute_rloo_outcome_advantage,
)

from capo.advantages import (
    batch_advantages,
    centred_advantages,
    decoupled_advantages,
    group_advantages,
    leave_one_out_advantages,
)
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


def trl(parts, weights, **options):
    """TRL's own lines: they are inside a method that also generates, and are cut out of it. Groups of 4."""
    lines = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    start = lines.index("        unscorable_mask =")
    end = lines.index("\n", lines.index("advantages = torch.nan_to_num(advantages, nan=0.0)"))
    own = {"reward_weights": weights, "reward_funcs": [None] * parts.shape[1], "scale_rewards": "group"}
    own["multi_objective_aggregation"] = "sum_then_normalize"
    values = {"torch": torch, "nanstd": nanstd, "rewards_per_func": parts, "num_generations": 4, "device": "cpu"}
    values["self"] = SimpleNamespace(**{**own, **options})
    exec(textwrap.dedent(lines[start:end]), values)
    return values["advantages"]


OF_FOUR = torch.arange(3).repeat_interleave(4)


def random_parts(seed, *, missing):
    """Of three groups of four, with ranges that differ; some values missing, and all of one report."""
    parts = torch.randn(12, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if missing:
        parts[1, 0] = parts[2, 2] = parts[7, 1] = torch.nan
        parts[5] = torch.nan
    return parts * torch.tensor([1.0, 0.1, 5.0], dtype=torch.float64)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_decoupled_equals_trl(seed, missing):
    parts, weights = random_parts(seed, missing=missing), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    expected = trl(parts, weights, multi_objective_aggregation="normalize_then_sum")
    torch.testing.assert_close(decoupled_advantages(parts, OF_FOUR, weights).advantages, expected)


@pytest.mark.parametrize("function", [group_advantages, batch_advantages])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_of_totals_equal_trl(seed, missing, function):
    rewards = random_parts(seed, missing=missing)[:, 0]
    scale = "batch" if function is batch_advantages else "group"
    expected = trl(rewards[:, None], torch.ones(1, dtype=torch.float64), scale_rewards=scale)
    torch.testing.assert_close(function(rewards, OF_FOUR).advantages, expected)


@pytest.mark.parametrize("seed", range(5))
def test_decoupled_equals_verl(seed):
    parts, weights = random_parts(seed, missing=False), [1.0, 2.0, 0.5]
    names = [f"part {number}" for number in range(3)]
    of_parts = {name: part.numpy() for name, part in zip(names, parts.unbind(1), strict=True)}
    one_token = torch.ones(12, 1)
    (found, _) = compute_gdpo_outcome_advantage(
        one_token,
        one_token,
        OF_FOUR.numpy(),
        epsilon=1e-6,
        config={"gdpo_reward_keys": names, "gdpo_reward_weights": weights},
        non_tensor_batch=of_parts,
        batch={"prompts": one_token, "attention_mask": torch.ones(12, 2, dtype=torch.int64)},
    )
    ours = decoupled_advantages(parts, OF_FOUR, torch.tensor(weights), eps=1e-6).advantages
    torch.testing.assert_close(ours.float(), found[:, 0], rtol=1e-4, atol=1e-5)


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
