"""Criticality of a case -> its clip range (paper eq. 9)."""

import math

import torch
from torch import Tensor


def critical_clip(critical: Tensor, *, eps_normal: float = 0.2, tightening: float = 4.0) -> Tensor:
    """Clip range of each report: eps_normal, or eps_normal / tightening if the reference report is critical.

    Args:
        critical: [B] bool.
        eps_normal: range of a normal case, in (0, 1).
        tightening: how many times narrower a critical case is clipped; 1 makes CAPO equal GRPO.

    Returns:
        [B] float32.
    """
    if critical.dtype != torch.bool or critical.ndim != 1:
        raise ValueError(f"expected critical as bool [B], got {critical.dtype} {[*critical.shape]}")
    check_clip(eps_normal, tightening)
    return torch.where(critical, eps_normal / tightening, eps_normal)


def check_clip(eps_normal: float, tightening: float) -> None:
    """Raise ValueError unless eps_normal is in (0, 1) and tightening at least 1 and finite; NaN is neither."""
    if not (0 < eps_normal < 1 and 1 <= tightening < math.inf):
        raise ValueError(f"expected 0 < eps_normal < 1 and tightening >= 1, got {eps_normal} and {tightening}")
