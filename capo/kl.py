"""Estimators of KL(policy || reference) from the log-probabilities of sampled tokens."""

import torch
from torch import Tensor


def k3(logps: Tensor, reference_logps: Tensor, mask: Tensor) -> Tensor:
    """Per-token k3 estimate, never negative and 0 where the two agree; 0 outside the mask.

        k3_t = exp(q_t - l_t) - (q_t - l_t) - 1        l policy, q reference

    No clamp, and not multiplied by the importance ratio (the paper's and GRPO's plain form).

    Args:
        logps, reference_logps: [B, T] of the same temperature-scaled, banned-token-masked distribution.
        mask: [B, T] bool.

    Source: Schulman, "Approximating KL divergence", 2020; GRPO, arXiv:2402.03300, eq. 4.
    """
    # Mask before exp: masking the result would still send NaN gradients back from padding.
    difference = torch.where(mask, reference_logps - logps, 0.0)
    return difference.exp() - difference - 1
