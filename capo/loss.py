"""Policy losses for reports: CAPO, GRPO, DAPO, GSPO and Dr. GRPO, composed of the same few parts.

Each is a sum over a denominator that the caller gives, so that the gradient does not depend on how a step is split
over micro-batches, accumulation or ranks. Every clip range may differ per report, so CAPO's range per case combines
with each of them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor

# exp(20) is 5e8: far beyond any clip range, and far from overflow, whose backward pass is NaN (inf times 0).
MAX_LOG_RATIO = 20.0
# DAPO and GSPO clip further upwards than downwards: their published upper range as a multiple of the lower one.
DAPO_UPPER = 0.28 / 0.2  # arXiv:2503.14476, section 4.1
GSPO_UPPER = 4e-4 / 3e-4  # arXiv:2507.18071, section 5.1

Clip = float | Tensor  # how far a ratio may go from 1: a number, [B] or [B, 1]


@dataclass(frozen=True)
class LossTerms:
    """Loss of a micro-batch and the per-token tensors the metrics are made of; all but the loss are detached."""

    loss: Tensor  # scalar, to call backward on
    ratio: Tensor  # [B, T], 1 outside the mask
    kl: Tensor  # [B, T] as given, 0 outside the mask
    clipped_low: Tensor  # [B, T] bool: r < 1 - low and A < 0, where the range stops the gradient
    clipped_high: Tensor  # [B, T] bool: r > 1 + high and A > 0
    advantages: Tensor  # [B, T], of each token, 0 outside the mask
    mask: Tensor  # [B, T] bool


class LossOptions(TypedDict, total=False):
    """Keyword arguments of every loss, as in `policy_loss`."""

    kl: Tensor | None
    beta: float
    weights: Tensor | None
    dual_clip: float | None


def log_ratio(logps: Tensor, other_logps: Tensor, mask: Tensor) -> Tensor:
    """logps - other_logps in at least float32, [B, T]; 0 outside the mask. No gradient flows to `other_logps`."""
    # Half precision has 3 digits; the difference of two of its log-probabilities would have none left.
    logps, other_logps = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (logps, other_logps))
    # Mask before anything else: masking a result later would still send NaN gradients back from padding.
    return torch.where(mask, logps - other_logps.detach(), 0.0)


def token_ratio(logps: Tensor, behaviour_logps: Tensor, mask: Tensor) -> Tensor:
    """exp(logps - behaviour_logps) of each token, [B, T]; 1 outside the mask (paper eq. 2).

    Log-ratios are held within +-20; beyond, the gradient is 0.
    """
    return log_ratio(logps, behaviour_logps, mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def sequence_ratio(logps: Tensor, behaviour_logps: Tensor, mask: Tensor) -> Tensor:
    """The length-normalised ratio of a whole report, on each of its tokens, [B, T]; 1 outside the mask.

        s_i = exp( (1/|o_i|) sum_t (logps_t - behaviour_logps_t) )

    A report without tokens has ratio 1. Source: GSPO, arXiv:2507.18071, eq. 7.
    """
    mean = log_ratio(logps, behaviour_logps, mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(mask, mean.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp(), 1.0)


def sampler_weights(
    behaviour_logps: Tensor, sampled_logps: Tensor, mask: Tensor, *, level: Literal["token", "report"], cap: float
) -> Tensor:
    """Truncated importance weights from the sampler to the trainer, [B, T], without gradient; 1 outside the mask.

        token:   w_it = min( exp( behaviour_it - sampled_it ), cap )
        report:  w_it = min( exp( sum_s (behaviour_is - sampled_is) ), cap )   the same on each token of report i

    They correct for kernels that differ between the two, as in bf16; weights per report have more variance. Log-ratios
    are held within +-20 before exp.

    Args:
        behaviour_logps: [B, T] under the policy that sampled, computed on the training path.
        sampled_logps: [B, T] as the sampler computed them.
        mask: [B, T] bool, True on report tokens. What is outside it, NaN too, has no effect.
        level: one weight per token or per report.
        cap: the largest weight, above 1.

    Raises:
        ValueError: level or cap is not as above.

    Source: Yao et al. 2025, https://fengyao.notion.site/off-policy-rl. TRL: `token_truncate` and `sequence_truncate` of
    `vllm_importance_sampling_mode`; verl: `rollout_is`, `token` and `sequence`.
    """
    if level not in ("token", "report"):
        raise ValueError(f"expected level as token or report, got {level!r}")
    check_sampler_cap(cap)
    difference = log_ratio(behaviour_logps.detach(), sampled_logps, mask)
    if level == "report":
        difference = difference.sum(-1, keepdim=True)
    weights = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().clamp(max=cap)
    return torch.where(mask, weights, 1.0)


def check_sampler_cap(cap: float) -> None:
    """Raise ValueError unless the cap is above 1 and finite."""
    if not 1 < cap < math.inf:
        raise ValueError(
            f"expected sampler_cap above 1 and finite, got {cap}: 1 or less also lowers the weight of tokens that "
            "sampler and trainer agree on, and without a cap one token can outweigh the step"
        )


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_low: Tensor, clip_high: Tensor) -> Tensor:
    """min(r A, clip(r, 1 - low, 1 + high) A) of each token, [B, T]; ratio [B, T], A [B, T] or [B, 1], ranges [B, 1].

    Source: PPO, arXiv:1707.06347, eq. 7. Unequal bounds: DAPO, arXiv:2503.14476.
    """
    clipped = torch.minimum(torch.maximum(ratio, 1 - clip_low), 1 + clip_high)
    return torch.minimum(ratio * advantages, clipped * advantages)


def dual_clipped(surrogate: Tensor, advantages: Tensor, bound: float) -> Tensor:
    """max(surrogate, c A) where A < 0: no gradient to a bad report more than c times likelier than before.

    surrogate [B, T], advantages [B, T] or [B, 1], bound c above 1 -> [B, T]. Source: arXiv:1912.09729, eq. 8.
    """
    return torch.where(advantages < 0, torch.maximum(surrogate, bound * advantages), surrogate)


def report_mean(per_token: Tensor, mask: Tensor, *, num_reports: int) -> Tensor:
    """Mean over the step's reports of the mean over their tokens: sum_i (1/|o_i|) sum_t x_it / num_reports."""
    _check_counts(num_reports=num_reports)
    lengths = mask.sum(-1).clamp(min=1)
    return (torch.where(mask, per_token, 0.0).sum(-1) / lengths).sum() / num_reports


def token_mean(per_token: Tensor, mask: Tensor, *, num_tokens: int) -> Tensor:
    """Mean over the step's tokens: sum_it x_it / num_tokens."""
    _check_counts(num_tokens=num_tokens)
    return torch.where(mask, per_token, 0.0).sum() / num_tokens


def policy_loss(
    logps: Tensor,
    behaviour_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    ratio: Callable[[Tensor, Tensor, Tensor], Tensor],
    clip_low: Clip,
    clip_high: Clip,
    aggregate: Callable[[Tensor, Tensor], Tensor],
    dual_clip: float | None = None,
    kl: Tensor | None = None,
    beta: float = 0.0,
    weights: Tensor | None = None,
) -> LossTerms:
    """The general form, of which every named loss is a choice of parts.

        L = -aggregate( w surrogate(ratio, A, clip_low, clip_high) - beta kl )

    Advantages, ranges and weights are constants: no gradient flows to them.

    Args:
        logps: [B, T] log-probabilities under the policy being trained. bf16 and fp16 are computed on in float32.
        behaviour_logps: [B, T] under the policy that sampled, computed on the same path; no gradient.
        advantages: A, [B] or [B, 1], one per report, or [B, T], one per token (credit by section).
        mask: [B, T] bool, True on report tokens, EOS included. What is outside it, NaN too, has no effect.
        ratio: `token_ratio` or `sequence_ratio`.
        clip_low, clip_high: how far below and above 1 the ratio may go: numbers, [B] or [B, 1], 0 or more.
        aggregate: from per-token values [B, T] and the mask to a scalar, with the step's denominator bound.
        dual_clip: c of `dual_clipped`; None leaves the growth of a bad report's loss unbounded.
        kl: [B, T] from `capo.kl`; needed when beta > 0, otherwise only logged.
        beta: weight of the KL term, 0 or more.
        weights: [B, T] w, from `sampler_weights`. They multiply the surrogate after its clips and not the KL term. None
            is 1 everywhere.

    Raises:
        ValueError: a shape, dtype or value is not as above. A range in a tensor on a device is not read; one that is
            negative or NaN makes the loss NaN.
    """
    _check(logps, mask, {"behaviour_logps": behaviour_logps, "mask": mask, "kl": kl, "weights": weights})
    _check_options(kl, beta, dual_clip)
    advantages = _per_token(advantages, logps, mask)
    low, high = _range(clip_low, logps, "clip_low"), _range(clip_high, logps, "clip_high")
    ratios = ratio(logps, behaviour_logps, mask)
    objective = clipped_surrogate(ratios, advantages, low, high)
    if dual_clip is not None:
        objective = dual_clipped(objective, advantages, dual_clip)
    if weights is not None:  # masked: `aggregate` may multiply by the mask, and NaN times 0 is NaN
        objective = objective * torch.where(mask, weights.detach(), 1.0)
    divergence = torch.zeros_like(ratios) if kl is None else torch.where(mask, kl, 0.0)
    loss = -aggregate(objective - beta * divergence if beta else objective, mask)
    ratios = ratios.detach()
    clipped_low = (ratios < 1 - low) & (advantages < 0)
    clipped_high = (ratios > 1 + high) & (advantages > 0)
    return LossTerms(loss, ratios, divergence.detach(), clipped_low, clipped_high, advantages, mask)


def capo_loss(
    logps: Tensor,
    behaviour_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: Clip,
    num_reports: int,
    clip_high: Clip | None = None,
    **options: Unpack[LossOptions],
) -> LossTerms:
    """CAPO (paper eq. 8): the GRPO objective with a clip range for each report.

        L = -(1/N) sum_i (1/|o_i|) sum_t [ min(r A_i, clip(r, 1 - eps_i, 1 + eps_i) A_i) - beta kl_t ]

    The paper prints the KL inside min(); as in the GRPO it cites, it is outside here. On-policy (r == 1) the range has
    no effect: CAPO differs from GRPO only from the second optimiser step on the same rollouts. The range stops a
    token's gradient, not its ratio: updates for other tokens may still move it.

    Args:
        logps, behaviour_logps, advantages, mask, options: as in `policy_loss`.
        clip: eps_i, a number, [B] or [B, 1], from `capo.clipping.critical_clip`.
        num_reports: N, the reports of the whole optimiser step.
        clip_high: upper range if it differs from `clip` (clip-higher).
    """
    batch, mean = (logps, behaviour_logps, advantages, mask), partial(report_mean, num_reports=num_reports)
    high = clip if clip_high is None else clip_high
    return policy_loss(*batch, ratio=token_ratio, clip_low=clip, clip_high=high, aggregate=mean, **options)


def grpo_loss(
    logps: Tensor,
    behaviour_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    num_reports: int,
    clip: float = 0.2,
    **options: Unpack[LossOptions],
) -> LossTerms:
    """GRPO (paper eq. 3; arXiv:2402.03300, eq. 3): `capo_loss` with one clip range for all."""
    batch = (logps, behaviour_logps, advantages, mask)
    return capo_loss(*batch, clip=float(clip), num_reports=num_reports, **options)


def dapo_loss(
    logps: Tensor,
    behaviour_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    num_tokens: int,
    clip_low: Clip = 0.2,
    clip_high: Clip = 0.28,
    **options: Unpack[LossOptions],
) -> LossTerms:
    """DAPO: every token of the step has the same weight, and the upper range is wider (clip-higher).

        L = -(1/N) sum_i sum_t min(r A_i, clip(r, 1 - low_i, 1 + high_i) A_i),   N tokens in the whole step

    Its dynamic sampling and overlong penalty choose and score reports, and are no part of the loss. DAPO itself uses
    no KL. Other arguments as in `policy_loss`. Source: DAPO, arXiv:2503.14476, eq. 8 and 12.
    """
    batch, mean = (logps, behaviour_logps, advantages, mask), partial(token_mean, num_tokens=num_tokens)
    return policy_loss(*batch, ratio=token_ratio, clip_low=clip_low, clip_high=clip_high, aggregate=mean, **options)


def gspo_loss(
    logps: Tensor,
    behaviour_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    num_reports: int,
    clip_low: Clip = 3e-4,
    clip_high: Clip = 4e-4,
    **options: Unpack[LossOptions],
) -> LossTerms:
    """GSPO: one length-normalised ratio per report, so a report is clipped whole.

        L = -(1/N) sum_i min(s_i A_i, clip(s_i, 1 - low_i, 1 + high_i) A_i),   s_i as in `sequence_ratio`

    Its ranges are a thousand times narrower than GRPO's, because s_i is a geometric mean over the report's tokens.
    Tokens share the gradient of s_i, so advantages per token act through their mean over the tokens not clipped.
    Other arguments as in `policy_loss`. Source: GSPO, arXiv:2507.18071, eq. 5 and 7, ranges of section 5.1.
    """
    batch, mean = (logps, behaviour_logps, advantages, mask), partial(report_mean, num_reports=num_reports)
    return policy_loss(*batch, ratio=sequence_ratio, clip_low=clip_low, clip_high=clip_high, aggregate=mean, **options)


def dr_grpo_loss(
    logps: Tensor,
    behaviour_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    num_reports: int,
    max_tokens: int,
    clip: Clip = 0.2,
    **options: Unpack[LossOptions],
) -> LossTerms:
    """Dr. GRPO: divides by a constant length, so that no report's length changes the weight of its tokens.

        L = -(1/(N max_tokens)) sum_i sum_t min(r A_i, clip(r, 1 - eps_i, 1 + eps_i) A_i)

    Its advantages are not divided by the std (`capo.advantages.centred_advantages`). `max_tokens` is the longest report
    that sampling allows. Other arguments as in `policy_loss`. Source: arXiv:2503.20783, section 3.2.
    """
    _check_counts(num_reports=num_reports, max_tokens=max_tokens)
    batch, mean = (logps, behaviour_logps, advantages, mask), partial(token_mean, num_tokens=num_reports * max_tokens)
    return policy_loss(*batch, ratio=token_ratio, clip_low=clip, clip_high=clip, aggregate=mean, **options)


# The losses that a run can optimise, with the same arguments: each divides by some of the counts of the whole step.
# DAPO and GSPO widen eps_i upwards by their own factor, so that a critical case is tighter by the same on both sides.
def _capo(
    *batch: Tensor, clip: Clip, num_reports: int, num_tokens: int, max_tokens: int, **options: Unpack[LossOptions]
) -> LossTerms:
    return capo_loss(*batch, clip=clip, num_reports=num_reports, **options)


def _dapo(
    *batch: Tensor, clip: Clip, num_reports: int, num_tokens: int, max_tokens: int, **options: Unpack[LossOptions]
) -> LossTerms:
    return dapo_loss(*batch, clip_low=clip, clip_high=DAPO_UPPER * clip, num_tokens=num_tokens, **options)


def _gspo(
    *batch: Tensor, clip: Clip, num_reports: int, num_tokens: int, max_tokens: int, **options: Unpack[LossOptions]
) -> LossTerms:
    return gspo_loss(*batch, clip_low=clip, clip_high=GSPO_UPPER * clip, num_reports=num_reports, **options)


def _dr_grpo(
    *batch: Tensor, clip: Clip, num_reports: int, num_tokens: int, max_tokens: int, **options: Unpack[LossOptions]
) -> LossTerms:
    return dr_grpo_loss(*batch, clip=clip, num_reports=num_reports, max_tokens=max_tokens, **options)


OBJECTIVES: Mapping[str, Callable[..., LossTerms]] = {"capo": _capo, "dapo": _dapo, "gspo": _gspo, "dr_grpo": _dr_grpo}


def _per_token(advantages: Tensor, logps: Tensor, mask: Tensor) -> Tensor:
    """[B], [B, 1] or [B, T] as [B, T] without gradient, 0 outside the mask."""
    rows, tokens = logps.shape
    if tuple(advantages.shape) not in ((rows,), (rows, 1), (rows, tokens)):
        expected = f"[B], [B, 1] or [B, T] with B = {rows} and T = {tokens}"
        raise ValueError(f"expected advantages as {expected}, got {[*advantages.shape]}")
    advantages = advantages.detach().to(logps.device, torch.promote_types(logps.dtype, torch.float32))
    return torch.where(mask, advantages[:, None] if advantages.ndim == 1 else advantages, 0.0)


def _range(value: Clip, like: Tensor, name: str) -> Tensor:
    """A number, [B] or [B, 1] as [B, 1]. A [T] tensor would broadcast over the wrong axis, unnoticed if B == T."""
    rows, dtype = like.shape[0], torch.promote_types(like.dtype, torch.float32)  # in half precision 1 - 3e-4 is 1
    if not isinstance(value, Tensor):
        if not value >= 0:
            raise ValueError(f"expected {name} of at least 0, got {value}")
        return like.new_full((rows, 1), value, dtype=dtype)  # not torch.full: `like` may be a DTensor
    if value.ndim and tuple(value.shape) not in ((rows,), (rows, 1)):
        raise ValueError(f"expected {name} as a number or [B] or [B, 1] with B = {rows}, got {[*value.shape]}")
    # Only a plain tensor in memory is read: reading would wait for a device, and needs a collective if it is sharded.
    if type(value) is Tensor and value.is_cpu and not torch.compiler.is_compiling() and not (value >= 0).all():
        raise ValueError(f"expected {name} of at least 0, got {float(value.min())}")
    column = value.detach().to(like.device, dtype).reshape(-1, 1).expand(rows, 1)
    return torch.where(column >= 0, column, torch.nan)


def _check_options(kl: Tensor | None, beta: float, dual_clip: float | None) -> None:
    if not 0 <= beta < math.inf:
        raise ValueError(f"expected beta of at least 0 and finite, got {beta}")
    if beta and kl is None:
        raise ValueError(f"beta is {beta} but kl is missing; pass kl=k3(logps, reference_logps, mask) or beta=0")
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"expected dual_clip above 1, got {dual_clip}; None switches it off")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not count >= 1:
            raise ValueError(f"expected {name} of at least 1, got {count}")


def _check(logps: Tensor, mask: Tensor, others: Mapping[str, Tensor | None]) -> None:
    if logps.ndim != 2:
        raise ValueError(f"expected logps [B, T], got {[*logps.shape]}")
    if mask.dtype != torch.bool:
        raise ValueError(f"expected mask of dtype bool, got {mask.dtype}; pass mask.bool()")
    for name, other in others.items():
        if other is not None and other.shape != logps.shape:
            raise ValueError(f"expected {name} of the shape of logps {[*logps.shape]}, got {[*other.shape]}")
