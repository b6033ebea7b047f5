"""Rewards of a group of reports -> advantages (paper eq. 1)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupAdvantages:
    """Advantages and what became of the groups they come from."""

    advantages: Tensor  # [N] float32; 0 for a missing reward and in a group without spread
    num_groups: int
    num_zero_std: int  # groups whose rewards are all equal, singletons included: they teach nothing
    num_missing: int  # rewards that were NaN


def group_advantages(rewards: Tensor, groups: Tensor, *, eps: float = 1e-4) -> GroupAdvantages:
    """Normalise each reward within its group.

        A_i = (r_i - mean(r)) / (std(r) + eps)        std with ddof = 1, over the group's known rewards

    A missing reward (NaN) leaves its group: it changes neither mean nor std of its siblings, and its own
    advantage is 0. A group whose known rewards are all equal, or that has fewer than two, gives 0.

    Args:
        rewards: [N] float, NaN where the reward failed.
        groups: [N] int64, equal for the reports of one study.
        eps: added to the std; keeps rewards that differ by rounding only from becoming +-1.5.

    Raises:
        ValueError: shapes differ, or a reward is infinite.

    Source: GRPO, arXiv:2402.03300; ddof and eps as in TRL.
    """
    if rewards.ndim != 1 or rewards.shape != groups.shape:
        raise ValueError(f"expected rewards and groups of one shape [N], got {[*rewards.shape]} and {[*groups.shape]}")
    if rewards.isinf().any():
        raise ValueError("a reward is infinite; return NaN for a reward that could not be computed")
    advantages = torch.zeros(rewards.shape, dtype=torch.float32)
    num_zero_std = 0
    distinct = groups.unique()
    for group in distinct:
        known = (groups == group) & ~rewards.isnan()
        values = rewards[known].double()
        if len(values) < 2 or bool((values == values[0]).all()):
            num_zero_std += 1
            continue
        advantages[known] = ((values - values.mean()) / (values.std() + eps)).float()
    return GroupAdvantages(advantages, len(distinct), num_zero_std, int(rewards.isnan().sum()))
