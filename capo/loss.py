"""Policy losses. Each is a sum over a denominator that the caller gives, so that the gradient does not depend on
how a step is split over micro-batches, accumulation or ranks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from capo.kl import k3


def token_ratio(logps: Tensor, behaviour_logps: Tensor, mask: Tensor) -> Tensor:
    """Importance ratio exp(logps - behaviour_logps) of each token, [B, T]; 1 outside the mask (paper eq. 2)."""
    # Mask before exp: masking the result would still send NaN gradients back from padding.
    return torch.where(mask, logps - behaviour_logps, 0.0).exp()


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_low: Tensor, clip_high: Tensor) -> Tensor:
    """min(r A, clip(r, 1 - low, 1 + high) A) of each token, [B, T].

    Args:
        ratio: [B, T].
        advantages, clip_low, clip_high: [B, 1].

    Source: PPO, arXiv:1707.06347, eq. 7. Unequal bounds: DAPO, arXiv:2503.14476.
    """
    clipped = torch.minimum(torch.maximum(ratio, 1 - clip_low), 1 + clip_high)
    return torch.minimum(ratio * advantages, clipped * advantages)


def report_mean(per_token: Tensor, mask: Tensor, *, num_reports: int) -> Tensor:
    """Mean over reports of the mean over their tokens: sum_i (1/|o_i|) sum_t x_it / num_reports.

    `num_reports` counts every report of the optimiser step, over all micro-batches and ranks. A report without
    tokens adds 0 and is counted by whoever counts `num_reports`.
    """
    lengths = mask.sum(-1).clamp(min=1)
    return (torch.where(mask, per_token, 0.0).sum(-1) / lengths).sum() / num_reports


def per_report(value: float | Tensor, like: Tensor, name: str) -> Tensor:
    """A float, [B] or [B, 1] as [B, 1].

    Raises:
        ValueError: any other shape. A [T] tensor would broadcast over the wrong axis and be silently wrong when B == T.
    """
    value = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if value.ndim == 0:
        return value.expand(like.shape[0], 1)
    if tuple(value.shape) not in ((like.shape[0],), (like.shape[0], 1)):
        raise ValueError(f"expected {name} as a number or [B] or [B, 1] with B = {like.shape[0]}, got {[*value.shape]}")
    return value.reshape(-1, 1)


@dataclass(frozen=True)
class LossTerms:
    """Loss of a micro-batch and the per-token tensors the metrics are made of, all but the loss detached."""

    loss: Tensor  # scalar, to call backward on
    ratio: Tensor  # [B, T], 1 outside the mask
    kl: Tensor  # [B, T] k3 against the reference, 0 outside the mask
    clipped_low: Tensor  # [B, T] bool: r < 1 - eps and A < 0, where the clip stops the gradient
    clipped_high: Tensor  # [B, T] bool: r > 1 + eps and A > 0


def capo_loss(
    logps: Tensor,
    behaviour_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float | Tensor,
    num_reports: int,
    reference_logps: Tensor | None = None,
    beta: float = 0.0,
    clip_high: float | Tensor | None = None,
) -> LossTerms:
    """CAPO (paper eq. 8): the GRPO objective with a clip range for each report.

        L = -(1/N) sum_i (1/|o_i|) sum_t [ min(r A_i, clip(r, 1 - eps_i, 1 + eps_i) A_i) - beta k3_t ]

    The paper prints the KL inside min(); as in the GRPO it cites, it stands outside here. On-policy (r == 1) the
    range has no effect: CAPO differs from GRPO only from the second optimiser step on the same rollouts.

    Args:
        logps: [B, T] log-probabilities under the policy being trained.
        behaviour_logps: [B, T] under the policy that sampled, computed on the same path; no gradient.
        advantages: [B], one a report.
        mask: [B, T] bool, True on report tokens, EOS included.
        clip: eps_i, a number, [B] or [B, 1], from `capo.clipping.critical_clip`.
        num_reports: N, the reports of the whole optimiser step.
        reference_logps: [B, T] under the frozen SFT policy; needed when beta > 0.
        beta: weight of the KL term.
        clip_high: upper range where it differs from `clip` (clip-higher).

    Raises:
        ValueError: a shape is not as above, or beta > 0 without reference_logps.
    """
    _check_shapes(logps, behaviour_logps, mask, reference_logps, beta)
    advantages = per_report(advantages, logps, "advantages")
    low = per_report(clip, logps, "clip")
    high = low if clip_high is None else per_report(clip_high, logps, "clip_high")
    ratio = token_ratio(logps, behaviour_logps, mask)
    objective = clipped_surrogate(ratio, advantages, low, high)
    divergence = torch.zeros_like(logps) if reference_logps is None else k3(logps, reference_logps, mask)
    loss = -report_mean(objective - beta * divergence, mask, num_reports=num_reports)
    ratio = ratio.detach()
    return LossTerms(
        loss=loss,
        ratio=ratio,
        kl=divergence.detach(),
        clipped_low=mask & (ratio < 1 - low) & (advantages < 0),
        clipped_high=mask & (ratio > 1 + high) & (advantages > 0),
    )


def grpo_loss(
    logps: Tensor,
    behaviour_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    num_reports: int,
    clip: float = 0.2,
    reference_logps: Tensor | None = None,
    beta: float = 0.0,
) -> LossTerms:
    """GRPO (paper eq. 3): `capo_loss` with one clip range for all."""
    return capo_loss(
        logps, behaviour_logps, advantages, mask,
        clip=clip, num_reports=num_reports, reference_logps=reference_logps, beta=beta,
    )  # fmt: skip


def _check_shapes(
    logps: Tensor, behaviour_logps: Tensor, mask: Tensor, reference_logps: Tensor | None, beta: float
) -> None:
    if logps.ndim != 2:
        raise ValueError(f"expected logps [B, T], got {[*logps.shape]}")
    if mask.dtype != torch.bool:
        raise ValueError(f"expected mask of dtype bool, got {mask.dtype}; pass mask.bool()")
    for name, other in (("behaviour_logps", behaviour_logps), ("mask", mask), ("reference_logps", reference_logps)):
        if other is not None and other.shape != logps.shape:
            raise ValueError(f"expected {name} of the shape of logps {[*logps.shape]}, got {[*other.shape]}")
    if beta and reference_logps is None:
        raise ValueError(f"beta is {beta} but reference_logps is missing; pass it, or set beta to 0")
