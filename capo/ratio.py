"""Importance ratios between the policy being trained, the one that sampled, and what the sampler computed of it."""

import math
from typing import Literal

import torch
from torch import Tensor

# exp(20) is 5e8: far beyond any clip range, and far from overflow, whose backward pass is NaN (inf times 0).
MAX_LOG_RATIO = 20.0


def log_ratio(logps: Tensor, other_logps: Tensor, mask: Tensor) -> Tensor:
    """logps - other_logps in at least float32, [B, T]; 0 outside the mask, whatever stands there.

    No gradient flows to `other_logps`.
    """
    # Half precision has 3 digits; the difference of two of its log-probabilities would have none left.
    logps, other_logps = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in (logps, other_logps))
    # Mask before anything else: masking a result later would still send NaN gradients back from padding.
    return torch.where(mask, logps - other_logps.detach(), 0.0)


def token_ratio(logps: Tensor, behaviour_logps: Tensor, mask: Tensor) -> Tensor:
    """exp(logps - behaviour_logps) of each token, [B, T]; 1 outside the mask (paper eq. 2).

    Log-ratios are held within +-20; beyond, the gradient is 0.
    """
    return log_ratio(logps, behaviour_logps, mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def sequence_ratio(logps: Tensor, behaviour_logps: Tensor, mask: Tensor) -> Tensor:
    """The ratio of a whole report, normalised for its length, on each of its tokens, [B, T]; 1 outside the mask.

        s_i = exp( (1/|o_i|) sum_t (logps_t - behaviour_logps_t) )

    A report without tokens has ratio 1.

    Source: GSPO, arXiv:2507.18071, eq. 7.
    """
    mean = log_ratio(logps, behaviour_logps, mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    ratio = mean.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return torch.where(mask, ratio, 1.0)


def sampler_weights(
    behaviour_logps: Tensor, sampled_logps: Tensor, mask: Tensor, *, level: Literal["token", "report"], cap: float
) -> Tensor:
    """Truncated importance weights from the sampler to the trainer, [B, T], without gradient; 1 outside the mask.

        token:   w_it = min( exp( behaviour_it - sampled_it ), cap )
        report:  w_it = min( exp( sum_s (behaviour_is - sampled_is) ), cap )   the same on each token of report i

    Sampler and trainer run the same weights through different kernels, and in bf16 their log-probabilities differ: the
    reports come from the sampler's distribution, the gradient is of the trainer's. A token's weight corrects for the
    difference at that token, a report's weight for that of the whole report, with more variance. It is exactly 1 where
    both agree. Log-ratios are held within +-20 before exp.

    Args:
        behaviour_logps: [B, T] under the policy that sampled, computed on the training path.
        sampled_logps: [B, T] as the sampler computed them.
        mask: [B, T] bool, True on report tokens. What is outside it, NaN too, has no effect.
        level: one weight per token or per report.
        cap: the largest weight, above 1.

    Raises:
        ValueError: level or cap is not as above.

    Source: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training",
    https://fengyao.notion.site/off-policy-rl. The same as `token_truncate` and `sequence_truncate` of
    `vllm_importance_sampling_mode` in TRL, and as `rollout_is` of `token` and `sequence` in verl.
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
    """Refuse a cap that `sampler_weights` cannot use.

    Raises:
        ValueError: it is not above 1, or not finite.
    """
    if not 1 < cap < math.inf:
        raise ValueError(
            f"expected sampler_cap above 1 and finite, got {cap}: 1 or less also lowers the weight of tokens that "
            "sampler and trainer agree on, and without a cap one token can outweigh the step"
        )
