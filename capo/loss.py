"""Policy losses for reports: CAPO, GRPO, DAPO, GSPO and Dr. GRPO, composed of the same few parts.

Each is a sum over a denominator that the caller gives, so that the gradient does not depend on how a step is split
over micro-batches, accumulation or ranks. Each takes a clip range for each report where it takes one at all, so CAPO's
per-case range composes with any of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from capo.ratio import sequence_ratio, token_ratio


@dataclass(frozen=True)
class LossTerms:
    """Loss of a micro-batch and the per-token tensors the metrics are made of; all but the loss are detached."""

    loss: Tensor  # scalar, to call backward on
    ratio: Tensor  # [B, T], 1 outside the mask
    kl: Tensor  # [B, T] as given, 0 outside the mask
    clipped_low: Tensor  # [B, T] bool: r < 1 - low and A < 0, where the range stops the gradient
    clipped_high: Tensor  # [B, T] bool: r > 1 + high and A > 0
    advantages: Tensor  # [B]
    mask: Tensor  # [B, T] bool


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_low: Tensor, clip_high: Tensor) -> Tensor:
    """min(r A, clip(r, 1 - low, 1 + high) A) of each token, [B, T].

    Args:
        ratio: [B, T].
        advantages, clip_low, clip_high: [B, 1].

    Source: PPO, arXiv:1707.06347, eq. 7. Unequal bounds: DAPO, arXiv:2503.14476.
    """
    clipped = torch.minimum(torch.maximum(ratio, 1 - clip_low), 1 + clip_high)
    return torch.minimum(ratio * advantages, clipped * advantages)


def dual_clipped(surrogate: Tensor, advantages: Tensor, bound: float) -> Tensor:
    """max(surrogate, c A) where A < 0, [B, T]: a bad report that grew more than c times likelier stops counting more.

    Args:
        surrogate: [B, T].
        advantages: [B, 1].
        bound: c, above 1.

    Source: arXiv:1912.09729, eq. 8.
    """
    return torch.where(advantages < 0, torch.maximum(surrogate, bound * advantages), surrogate)


def report_mean(per_token: Tensor, mask: Tensor, *, num_reports: int) -> Tensor:
    """Mean over reports of the mean over their tokens: sum_i (1/|o_i|) sum_t x_it / num_reports.

    `num_reports` counts every report of the optimiser step, over all micro-batches and ranks. A report without
    tokens adds 0 and is counted by whoever counts `num_reports`.
    """
    lengths = mask.sum(-1).clamp(min=1)
    return (torch.where(mask, per_token, 0.0).sum(-1) / lengths).sum() / num_reports


def token_mean(per_token: Tensor, mask: Tensor, *, num_tokens: int) -> Tensor:
    """Mean over tokens, long reports weighing more: sum_it x_it / num_tokens.

    `num_tokens` counts the report tokens of the optimiser step, over all micro-batches and ranks. For the constant
    length of Dr. GRPO pass num_reports * max_tokens.
    """
    return torch.where(mask, per_token, 0.0).sum() / num_tokens


def policy_loss(
    logps: Tensor,
    behaviour_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    ratio: Callable[[Tensor, Tensor, Tensor], Tensor],
    clip_low: float | Tensor,
    clip_high: float | Tensor,
    aggregate: Callable[[Tensor, Tensor], Tensor],
    dual_clip: float | None = None,
    kl: Tensor | None = None,
    beta: float = 0.0,
    weights: Tensor | None = None,
) -> LossTerms:
    """The general form, of which every named loss is a choice of parts.

        L = -aggregate( w surrogate(ratio, A, clip_low, clip_high) - beta kl )

    Args:
        logps: [B, T] log-probabilities under the policy being trained. bf16 and fp16 are computed on in float32.
        behaviour_logps: [B, T] under the policy that sampled, computed on the same path; no gradient.
        advantages: [B], one a report.
        mask: [B, T] bool, True on report tokens, EOS included. What stands outside it, NaN too, has no effect.
        ratio: `capo.ratio.token_ratio` or `capo.ratio.sequence_ratio`.
        clip_low, clip_high: how far below and above 1 the ratio may go: numbers, [B] or [B, 1].
        aggregate: from per-token values [B, T] and the mask to a scalar, with the step's denominator bound.
        dual_clip: c of `dual_clipped`; None leaves the growth of a bad report's loss unbounded.
        kl: [B, T] from `capo.kl`; needed when beta > 0, otherwise only reported.
        beta: weight of the KL term.
        weights: [B, T] w, from `capo.ratio.sampler_weights`; no gradient. They multiply the surrogate after its clips
            and not the KL term. None is 1 everywhere.

    Raises:
        ValueError: a shape, dtype or value is not as above.
    """
    _check(logps, behaviour_logps, mask, kl, beta, dual_clip, weights)
    column = partial(per_report, like=logps)
    advantages = column(advantages, name="advantages")
    low, high = column(clip_low, name="clip_low"), column(clip_high, name="clip_high")
    ratios = ratio(logps, behaviour_logps, mask)
    objective = clipped_surrogate(ratios, advantages, low, high)
    if dual_clip is not None:
        objective = dual_clipped(objective, advantages, dual_clip)
    if weights is not None:  # masked: `aggregate` may multiply by the mask, and NaN times 0 is NaN
        objective = objective * torch.where(mask, weights.detach(), 1.0)
    divergence = torch.zeros_like(ratios) if kl is None else torch.where(mask, kl, 0.0)
    loss = -aggregate(objective - beta * divergence if beta else objective, mask)
    ratios = ratios.detach()
    return LossTerms(
        loss=loss,
        ratio=ratios,
        kl=divergence.detach(),
        clipped_low=mask & (ratios < 1 - low) & (advantages < 0),
        clipped_high=mask & (ratios > 1 + high) & (advantages > 0),
        advantages=advantages[:, 0],
        mask=mask,
    )


def capo_loss(
    logps: Tensor,
    behaviour_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float | Tensor,
    num_reports: int,
    clip_high: float | Tensor | None = None,
    dual_clip: float | None = None,
    kl: Tensor | None = None,
    beta: float = 0.0,
    weights: Tensor | None = None,
) -> LossTerms:
    """CAPO (paper eq. 8): the GRPO objective with a clip range for each report.

        L = -(1/N) sum_i (1/|o_i|) sum_t [ min(r A_i, clip(r, 1 - eps_i, 1 + eps_i) A_i) - beta kl_t ]

    The paper prints the KL inside min(); as in the GRPO it cites, it stands outside here. On-policy (r == 1) the
    range has no effect: CAPO differs from GRPO only from the second optimiser step on the same rollouts. The range
    stops a token's gradient and not the token: other tokens may still carry its ratio further.

    Args:
        logps, behaviour_logps, advantages, mask, dual_clip, kl, beta, weights: as in `policy_loss`.
        clip: eps_i, a number, [B] or [B, 1], from `capo.clipping.critical_clip`.
        num_reports: N, the reports of the whole optimiser step.
        clip_high: upper range where it differs from `clip` (clip-higher).

    Raises:
        ValueError: a shape is not as above, or beta > 0 without kl.
    """
    return policy_loss(
        logps, behaviour_logps, advantages, mask,
        ratio=token_ratio,
        clip_low=clip, clip_high=clip if clip_high is None else clip_high, dual_clip=dual_clip,
        aggregate=partial(report_mean, num_reports=num_reports),
        kl=kl, beta=beta, weights=weights,
    )  # fmt: skip


def grpo_loss(
    logps: Tensor,
    behaviour_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    num_reports: int,
    clip: float = 0.2,
    kl: Tensor | None = None,
    beta: float = 0.0,
    weights: Tensor | None = None,
) -> LossTerms:
    """GRPO (paper eq. 3; arXiv:2402.03300, eq. 3): `capo_loss` with one clip range for all."""
    return capo_loss(
        logps, behaviour_logps, advantages, mask,
        clip=float(clip), num_reports=num_reports, kl=kl, beta=beta, weights=weights,
    )  # fmt: skip


def dapo_loss(
    logps: Tensor,
    behaviour_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    num_tokens: int,
    clip_low: float | Tensor = 0.2,
    clip_high: float | Tensor = 0.28,
    kl: Tensor | None = None,
    beta: float = 0.0,
    weights: Tensor | None = None,
) -> LossTerms:
    """DAPO: every token of the step weighs alike, and the upper range is wider (clip-higher).

        L = -(1/N) sum_i sum_t min(r A_i, clip(r, 1 - low_i, 1 + high_i) A_i),   N tokens in the whole step

    Other arguments as in `policy_loss`. DAPO itself uses no KL.

    Source: DAPO, arXiv:2503.14476, eq. 8 and 12.
    """
    return policy_loss(
        logps, behaviour_logps, advantages, mask,
        ratio=token_ratio, clip_low=clip_low, clip_high=clip_high,
        aggregate=partial(token_mean, num_tokens=num_tokens),
        kl=kl, beta=beta, weights=weights,
    )  # fmt: skip


def gspo_loss(
    logps: Tensor,
    behaviour_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    num_reports: int,
    clip_low: float | Tensor = 3e-4,
    clip_high: float | Tensor = 4e-4,
    kl: Tensor | None = None,
    beta: float = 0.0,
    weights: Tensor | None = None,
) -> LossTerms:
    """GSPO: one length-normalised ratio a report, so a report is clipped whole.

        L = -(1/N) sum_i min(s_i A_i, clip(s_i, 1 - low_i, 1 + high_i) A_i),   s_i as in `capo.ratio.sequence_ratio`

    Its ranges are a thousand times narrower than GRPO's, because s_i is a geometric mean over the report's tokens.
    Other arguments as in `policy_loss`.

    Source: GSPO, arXiv:2507.18071, eq. 5 and 7, ranges of section 5.1.
    """
    return policy_loss(
        logps, behaviour_logps, advantages, mask,
        ratio=sequence_ratio, clip_low=clip_low, clip_high=clip_high,
        aggregate=partial(report_mean, num_reports=num_reports),
        kl=kl, beta=beta, weights=weights,
    )  # fmt: skip


def dr_grpo_loss(
    logps: Tensor,
    behaviour_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    num_reports: int,
    max_tokens: int,
    clip: float | Tensor = 0.2,
    kl: Tensor | None = None,
    beta: float = 0.0,
    weights: Tensor | None = None,
) -> LossTerms:
    """Dr. GRPO: divides by a constant length, so that no report's length changes the weight of its tokens.

        L = -(1/(N max_tokens)) sum_i sum_t min(r A_i, clip(r, 1 - eps_i, 1 + eps_i) A_i)

    Its advantages are not divided by the std (`capo.advantages.centred_advantages`). `max_tokens` is the longest report
    that sampling allows. Other arguments as in `policy_loss`.

    Source: arXiv:2503.20783, section 3.2.
    """
    return policy_loss(
        logps, behaviour_logps, advantages, mask,
        ratio=token_ratio, clip_low=clip, clip_high=clip,
        aggregate=partial(token_mean, num_tokens=num_reports * max_tokens),
        kl=kl, beta=beta, weights=weights,
    )  # fmt: skip


def per_report(value: float | Tensor, like: Tensor, name: str) -> Tensor:
    """A number, [B] or [B, 1] as [B, 1].

    Raises:
        ValueError: any other shape. A [T] tensor would broadcast over the wrong axis and be silently wrong when B == T.
    """
    if not isinstance(value, Tensor) and math.isnan(value):
        raise ValueError(f"expected {name} as a number, got nan")
    # Not in half precision: 1 - 3e-4 is 1 there.
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    value = torch.as_tensor(value, dtype=dtype, device=like.device)
    if value.ndim == 0:
        return value.expand(like.shape[0], 1)
    if tuple(value.shape) not in ((like.shape[0],), (like.shape[0], 1)):
        raise ValueError(f"expected {name} as a number or [B] or [B, 1] with B = {like.shape[0]}, got {[*value.shape]}")
    return value.reshape(-1, 1)


def _check(
    logps: Tensor, behaviour_logps: Tensor, mask: Tensor, kl: Tensor | None, beta: float, dual_clip: float | None,
    weights: Tensor | None,
) -> None:  # fmt: skip
    if logps.ndim != 2:
        raise ValueError(f"expected logps [B, T], got {[*logps.shape]}")
    if mask.dtype != torch.bool:
        raise ValueError(f"expected mask of dtype bool, got {mask.dtype}; pass mask.bool()")
    for name, other in (("behaviour_logps", behaviour_logps), ("mask", mask), ("kl", kl), ("weights", weights)):
        if other is not None and other.shape != logps.shape:
            raise ValueError(f"expected {name} of the shape of logps {[*logps.shape]}, got {[*other.shape]}")
    if beta and kl is None:
        raise ValueError(
            f"beta is {beta} but kl is missing; pass kl=k3(logps, reference_logps, mask), or set beta to 0"
        )
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"expected dual_clip above 1, got {dual_clip}; None switches it off")
