"""Importance ratios between the policy being trained and the one that sampled."""

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
