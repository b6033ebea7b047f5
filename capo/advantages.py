"""Rewards of a group of reports -> advantages.

A missing reward (NaN) leaves its group: it changes neither mean nor std of its siblings, and its own advantage is 0.
A group whose known rewards are all equal, or that has fewer than two, gives 0 throughout and is counted.

Every function takes `counted`, [N] bool: the reports that enter means and stds; by default all. The others leave the
advantages of these as they are. Their own are measured against these, and where the std of the group divides, as if
each had joined it: the distance from a group with little spread has no bound.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from capo.logprobs import add_at

Estimator = Literal["group", "decoupled", "batch", "centred", "leave_one_out"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)


@dataclass(frozen=True)
class GroupAdvantages:
    """Advantages and what became of the groups they come from."""

    advantages: Tensor  # [N] float32 (float64 for float64 rewards), on the rewards' device
    num_zero_std: int  # groups without spread, singletons included: they teach nothing
    num_missing: int  # rewards that were NaN


def estimate_advantages(
    estimator: Estimator,
    parts: Tensor,
    groups: Tensor,
    weights: Tensor | None = None,
    *,
    eps: float = 1e-4,
    counted: Tensor | None = None,
) -> GroupAdvantages:
    """Advantages by name; all but `decoupled` are of the sum of the parts (`sum_parts`).

    Args:
        estimator: a name of ESTIMATORS.
        parts: [N, K], what each part adds to the reward, weights included; NaN where it is missing.
        weights: [K], of the normalised parts, for `decoupled`; by default 1.

    Raises:
        ValueError: the name is unknown, or as the function of that name.
    """
    if estimator == "decoupled":
        return decoupled_advantages(parts, groups, weights, eps=eps, counted=counted)
    rewards = sum_parts(parts, groups, counted=counted)
    if estimator in ("group", "batch"):
        normalise = group_advantages if estimator == "group" else batch_advantages
        return normalise(rewards, groups, eps=eps, counted=counted)
    if estimator not in ESTIMATORS:
        raise ValueError(f"expected an estimator of {', '.join(ESTIMATORS)}, got {estimator!r}")
    centre = centred_advantages if estimator == "centred" else leave_one_out_advantages
    return centre(rewards, groups, counted=counted)


def group_advantages(
    rewards: Tensor, groups: Tensor, *, eps: float = 1e-4, counted: Tensor | None = None
) -> GroupAdvantages:
    """GRPO: each reward normalised within its group (paper eq. 1).

        A_i = (r_i - mean(r)) / (std(r) + eps)        std with ddof = 1, over the group's known rewards

    Args:
        rewards: [N] float, NaN where the reward failed.
        groups: [N] int64, equal for the reports of one study; in any order, of any sizes.
        eps: added to the std; keeps rewards that differ by rounding only from becoming +-1.5.
        counted: [N] bool, as above.

    Raises:
        ValueError: shapes differ, a reward is infinite, or eps is negative.

    Source: GRPO, arXiv:2402.03300, section 4.1.2; ddof and eps as in TRL.
    """
    group = _Groups.of(rewards, groups, counted)
    return group.result(group.normalised(eps))


def decoupled_advantages(
    parts: Tensor,
    groups: Tensor,
    weights: Tensor | None = None,
    *,
    eps: float = 1e-4,
    counted: Tensor | None = None,
) -> GroupAdvantages:
    """GDPO: each part of the reward normalised within its group, summed, and divided by the std over the batch.

        S_i = sum_k w_k (r_ik - mean(r_k)) / (std(r_k) + eps)        A_i = S_i / (std(S) + eps)

    A part with a wide range then counts no more than its weight. A missing part (NaN) leaves that part of its group
    only: the report's other parts count. A report without any known part is missing.

    Args:
        parts: [N, K] float, K parts of each report's reward.
        groups, eps, counted: as in `group_advantages`.
        weights: [K], by default 1.

    Raises:
        ValueError: a shape is not as above, a part is infinite, or eps is negative.

    Source: GDPO, arXiv:2601.05242; TRL: `multi_objective_aggregation="normalize_then_sum"`.
    """
    if parts.ndim != 2 or (weights is not None and weights.shape != parts.shape[1:]):
        got = f"{[*parts.shape]} and {None if weights is None else [*weights.shape]}"
        raise ValueError(f"expected parts [N, K] and weights [K], got {got}")
    columns = [_Groups.of(part, groups, counted) for part in parts.unbind(1)]
    total = parts.new_zeros(len(parts), dtype=torch.float64)
    for column, weight in zip(columns, [1.0] * len(columns) if weights is None else weights.tolist(), strict=True):
        total += weight * column.normalised(eps)
    known = ~parts.isnan().all(1)
    spread = total[known if counted is None else known & counted]
    std = spread.std() if len(spread) > 1 else torch.zeros(())
    nothing = _Groups.of(parts.new_full(groups.shape, torch.nan), groups)  # so that there may be no part at all
    flat = torch.stack([column.flat for column in (nothing, *columns)]).all(0)
    dtype = torch.float64 if parts.dtype == torch.float64 else torch.float32
    scaled = torch.where(total == 0, 0.0, total / (std + eps))  # without eps: 0 / 0
    return GroupAdvantages(scaled.to(dtype), int(flat.sum()), int((~known).sum()))


def batch_advantages(
    rewards: Tensor, groups: Tensor, *, eps: float = 1e-4, counted: Tensor | None = None
) -> GroupAdvantages:
    """Each reward less the mean of its group, divided by the std of the whole batch.

        A_i = (r_i - mean(r of its group)) / (std(r of the batch) + eps)

    A group whose rewards hardly differ then weighs less than one whose rewards differ much.

    Source: arXiv:2508.08221, section 4.1; TRL: `scale_rewards="batch"`. Arguments and errors as in `group_advantages`.
    """
    group = _Groups.of(rewards, groups, counted)
    known = rewards[group.counted].double()
    std = known.std() if len(known) > 1 else torch.zeros(())
    scaled = group.centred / (std + _checked(eps))
    return group.result(torch.where(group.centred == 0, 0.0, scaled))  # without eps: 0 / 0


def centred_advantages(rewards: Tensor, groups: Tensor, *, counted: Tensor | None = None) -> GroupAdvantages:
    """Dr. GRPO: A_i = r_i - mean(r) of its group, not divided by the std, so that easy studies do not weigh more.

    Source: arXiv:2503.20783, section 3.2. Arguments and errors as in `group_advantages`.
    """
    group = _Groups.of(rewards, groups, counted)
    return group.result(group.centred)


def leave_one_out_advantages(rewards: Tensor, groups: Tensor, *, counted: Tensor | None = None) -> GroupAdvantages:
    """RLOO: each reward against the mean of its siblings.

        A_i = r_i - (sum_{j != i} r_j) / (k - 1) = k / (k - 1) (r_i - mean(r)),   k known rewards in the group

    A report that is not counted is compared with the mean of all k.

    Source: arXiv:2402.14740, eq. 7. Arguments and errors as in `group_advantages`.
    """
    group = _Groups.of(rewards, groups, counted)
    factor = (group.sizes / (group.sizes - 1).clamp(min=1))[group.index]
    return group.result(torch.where(group.counted, group.centred * factor, group.centred))


def sum_parts(parts: Tensor, groups: Tensor, *, counted: Tensor | None = None) -> Tensor:
    """Total rewards, [N]: the sum of the parts that every report of a group has, so that totals can be compared.

    A part that no report of the group has is none of its parts. If every part is lacked by some, all parts count, and
    the total of a report that lacks one is NaN. Reports that are not counted take no part out of a group; the total of
    one that lacks a part is NaN.

    Args:
        parts: [N, K] float, NaN where a part is missing.
        groups: [N] int64.
        counted: [N] bool, as above.
    """
    distinct, index = torch.unique(groups, return_inverse=True)
    lacks = parts.isnan()
    counted = torch.ones_like(groups, dtype=torch.bool) if counted is None else counted
    zeros = torch.zeros(len(distinct), parts.shape[1], dtype=torch.float64, device=parts.device)
    lacking, having = (zeros.index_add(0, index[counted], rows[counted].double()) > 0 for rows in (lacks, ~lacks))
    complete = having & ~lacking
    used = torch.where(complete.any(1, keepdim=True), complete, having)[index]
    totals = torch.where(lacks | ~used, 0.0, parts).sum(1)
    return torch.where((lacks & used).any(1) | ~used.any(1), torch.nan, totals)


def variance_shares(parts: Tensor, groups: Tensor) -> Tensor:
    """How much of the variance of the reward within groups each part holds, [K]; they add up to 1.

        share_k = sum_i (r_ik - mean r_k) (r_i - mean r) / sum_i (r_i - mean r)^2,   r_i = sum_k r_ik

    A part that runs against the total has a negative share. All are 0 if no group has spread. A missing part (NaN)
    counts as the mean of its group.
    """
    centred = torch.zeros_like(parts, dtype=torch.float64)
    for number, part in enumerate(parts.unbind(1)):
        centred[:, number] = _Groups.of(part, groups).centred
    total = centred.sum(1, keepdim=True)
    whole = total.square().sum()
    return (centred * total).sum(0) / whole if whole > 0 else torch.zeros_like(centred[0])


@dataclass(frozen=True)
class _Groups:
    """Rewards with their groups numbered from 0; sums in float64, so that equal rewards centre to 0."""

    rewards: Tensor  # [N] as given
    index: Tensor  # [N] int64 in [0, M)
    counted: Tensor  # [N] bool, known rewards that enter mean and std
    sizes: Tensor  # [M] float64, counted rewards of each group
    centred: Tensor  # [N] float64, 0 where missing
    flat: Tensor  # [M] bool, groups without spread

    @classmethod
    def of(cls, rewards: Tensor, groups: Tensor, counted: Tensor | None = None) -> "_Groups":
        _check(rewards, groups, counted)
        distinct, index = torch.unique(groups, return_inverse=True)
        known = ~rewards.isnan()
        counted = known if counted is None else known & counted
        values = torch.where(known, rewards, 0.0).double()
        zeros = values.new_zeros(len(distinct))
        sizes = zeros.index_add(0, index, counted.double())
        mean = add_at(zeros.clone(), index, torch.where(counted, values, 0.0)) / sizes.clamp(min=1)
        lowest = (zeros + torch.inf).scatter_reduce(0, index, torch.where(counted, values, torch.inf), "amin")
        highest = (zeros - torch.inf).scatter_reduce(0, index, torch.where(counted, values, -torch.inf), "amax")
        flat, some = ~(highest > lowest), sizes > 0
        # The mean of equal rewards may differ from them by a rounding; that is no advantage.
        mean = torch.where(flat & some, highest, mean)
        centred = torch.where(known & some[index], values - mean[index], 0.0)
        return cls(rewards, index, counted, sizes, centred, flat)

    def normalised(self, eps: float) -> Tensor:
        """[N] float64, divided by the std of the group; a report that does not count joins the group for its own."""
        squares = add_at(torch.zeros_like(self.sizes), self.index, self.centred.square() * self.counted)
        sizes, squares, centred = self.sizes[self.index], squares[self.index], self.centred
        shift = torch.where(self.counted, 0.0, centred / (sizes + 1))  # of the mean, if it joins
        sizes, squares = sizes + ~self.counted, squares + centred * shift * sizes
        std = (squares / (sizes - 1).clamp(min=1)).sqrt()
        scaled = (centred - shift) / (std + _checked(eps))
        return torch.where(centred == 0, 0.0, scaled)  # without eps: 0 / 0

    def result(self, advantages: Tensor) -> GroupAdvantages:
        dtype = torch.float64 if self.rewards.dtype == torch.float64 else torch.float32
        return GroupAdvantages(advantages.to(dtype), int(self.flat.sum()), int(self.rewards.isnan().sum()))


def _checked(eps: float) -> float:
    if not eps >= 0:
        raise ValueError(f"expected eps of at least 0, got {eps}")
    return eps


def _check(rewards: Tensor, groups: Tensor, counted: Tensor | None) -> None:
    if rewards.ndim != 1 or rewards.shape != groups.shape:
        raise ValueError(f"expected one shape [N], got rewards {[*rewards.shape]} and groups {[*groups.shape]}")
    if not rewards.is_floating_point() or groups.is_floating_point():
        raise ValueError(f"expected float rewards and integer groups, got {rewards.dtype} and {groups.dtype}")
    if counted is not None and (counted.dtype != torch.bool or counted.shape != rewards.shape):
        raise ValueError(f"expected counted bool [{len(rewards)}], got {counted.dtype} {[*counted.shape]}")
    if rewards.isinf().any():
        first = int(rewards.isinf().nonzero()[0])
        raise ValueError(f"reward {first} is infinite; return NaN for a reward that could not be computed")
