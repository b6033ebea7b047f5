"""Rewards of a group of reports -> advantages.

A missing reward (NaN) leaves its group: it changes neither mean nor std of its siblings, and its own advantage is 0.
A group whose known rewards are all equal, or that has fewer than two, gives 0 throughout and is counted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupAdvantages:
    """Advantages and what became of the groups they come from."""

    advantages: Tensor  # [N] float32 (float64 for float64 rewards), on the rewards' device
    num_zero_std: int  # groups without spread, singletons included: they teach nothing
    num_missing: int  # rewards that were NaN


def group_advantages(rewards: Tensor, groups: Tensor, *, eps: float = 1e-4) -> GroupAdvantages:
    """GRPO: each reward normalised within its group (paper eq. 1).

        A_i = (r_i - mean(r)) / (std(r) + eps)        std with ddof = 1, over the group's known rewards

    Args:
        rewards: [N] float, NaN where the reward failed.
        groups: [N] int64, equal for the reports of one study; in any order, of any sizes.
        eps: added to the std; keeps rewards that differ by rounding only from becoming +-1.5.

    Raises:
        ValueError: shapes differ, a reward is infinite, or eps is negative.

    Source: GRPO, arXiv:2402.03300, section 4.1.2; ddof and eps as in TRL.
    """
    if eps < 0:
        raise ValueError(f"expected eps of at least 0, got {eps}")
    group = _Groups.of(rewards, groups)
    squares = torch.zeros_like(group.sizes).index_add(0, group.index, group.centred.square())
    std = (squares / (group.sizes - 1).clamp(min=1)).sqrt()
    return group.result(group.centred / (std + eps)[group.index])


def centred_advantages(rewards: Tensor, groups: Tensor) -> GroupAdvantages:
    """Dr. GRPO: A_i = r_i - mean(r) of its group, not divided by the std, so that easy studies do not weigh more.

    Source: arXiv:2503.20783, section 3.2. Arguments and errors as in `group_advantages`.
    """
    group = _Groups.of(rewards, groups)
    return group.result(group.centred)


def leave_one_out_advantages(rewards: Tensor, groups: Tensor) -> GroupAdvantages:
    """RLOO: each reward against the mean of its siblings.

        A_i = r_i - (sum_{j != i} r_j) / (k - 1) = k / (k - 1) (r_i - mean(r)),   k known rewards in the group

    Source: arXiv:2402.14740, eq. 7. Arguments and errors as in `group_advantages`.
    """
    group = _Groups.of(rewards, groups)
    return group.result(group.centred * (group.sizes / (group.sizes - 1).clamp(min=1))[group.index])


@dataclass(frozen=True)
class _Groups:
    """Rewards with their groups numbered from 0; sums in float64, so that equal rewards centre to 0."""

    rewards: Tensor  # [N] as given
    index: Tensor  # [N] int64 in [0, M)
    sizes: Tensor  # [M] float64, known rewards of each group
    centred: Tensor  # [N] float64, 0 where missing
    flat: Tensor  # [M] bool, groups without spread

    @classmethod
    def of(cls, rewards: Tensor, groups: Tensor) -> "_Groups":
        if rewards.ndim != 1 or rewards.shape != groups.shape:
            raise ValueError(f"expected one shape [N], got rewards {[*rewards.shape]} and groups {[*groups.shape]}")
        if not rewards.is_floating_point() or groups.is_floating_point():
            raise ValueError(f"expected float rewards and integer groups, got {rewards.dtype} and {groups.dtype}")
        if rewards.isinf().any():
            first = int(rewards.isinf().nonzero()[0])
            raise ValueError(f"reward {first} is infinite; return NaN for a reward that could not be computed")
        distinct, index = torch.unique(groups, return_inverse=True)
        known = ~rewards.isnan()
        values = torch.where(known, rewards, 0.0).double()
        zeros = values.new_zeros(len(distinct))
        sizes = zeros.index_add(0, index, known.double())
        mean = zeros.index_add(0, index, values) / sizes.clamp(min=1)
        lowest = (zeros + torch.inf).scatter_reduce(0, index, torch.where(known, values, torch.inf), "amin")
        highest = (zeros - torch.inf).scatter_reduce(0, index, torch.where(known, values, -torch.inf), "amax")
        return cls(rewards, index, sizes, torch.where(known, values - mean[index], 0.0), ~(highest > lowest))

    def result(self, advantages: Tensor) -> GroupAdvantages:
        dtype = torch.float64 if self.rewards.dtype == torch.float64 else torch.float32
        # The mean of equal rewards may differ from them by a rounding; that is no advantage.
        advantages = torch.where(self.flat[self.index], 0.0, advantages).to(dtype)
        return GroupAdvantages(advantages, int(self.flat.sum()), int(self.rewards.isnan().sum()))
