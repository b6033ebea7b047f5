"""Metrics of one CAPO step, summed on the device and read once at its end."""

import torch
from torch import Tensor

from capo.loss import LossTerms


class StepMetrics:
    """Sums and maxima over the micro-batches and inner epochs of a step."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.maxima: dict[str, Tensor] = {}

    def scored(self, sampled: Tensor, behaviour: Tensor, kl: Tensor, entropy: Tensor, mask: Tensor) -> None:
        """What is known before the first update; [R, T] each, 0 outside the mask."""
        self._add("scored_tokens", mask)
        self._add("kl_before", kl)
        self._add("entropy", entropy)
        self._most("sampler_gap_max", (sampled - behaviour).abs())

    def updated(self, terms: LossTerms, mask: Tensor, critical: Tensor) -> None:
        """One micro-batch of one inner epoch. mask: [R, T] bool; critical: [R] bool."""
        self._add("loss", terms.loss.detach())
        self._add("ratio", torch.where(mask, terms.ratio, 0.0))
        self._most("ratio_gap_max", (terms.ratio - 1).abs())
        self._add("kl", terms.kl)
        self._add("tokens", mask)
        for name, rows in (("critical", critical), ("normal", ~critical)):
            self._add(f"tokens_{name}", mask[rows])
            self._add(f"clip_low_{name}", terms.clipped_low[rows])
            self._add(f"clip_high_{name}", terms.clipped_high[rows])

    def read(self, num_updates: int) -> dict[str, float]:
        """Means a token (loss: a pass), maxima, and clip fractions of critical and normal tokens apart."""
        sums = {name: float(value) for name, value in self.sums.items()}
        tokens, scored = max(1.0, sums["tokens"]), max(1.0, sums["scored_tokens"])
        result = {
            "loss": sums["loss"] / num_updates,
            "kl": sums["kl"] / tokens,
            "kl_before": sums["kl_before"] / scored,
            "entropy": sums["entropy"] / scored,
            "ratio_mean": sums["ratio"] / tokens,
            **{name: float(value) for name, value in self.maxima.items()},
        }
        for name in ("critical", "normal"):
            of_kind = max(1.0, sums[f"tokens_{name}"])
            result[f"clip_low_{name}"] = sums[f"clip_low_{name}"] / of_kind
            result[f"clip_high_{name}"] = sums[f"clip_high_{name}"] / of_kind
        return result

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value.sum(dtype=torch.float64)

    def _most(self, name: str, value: Tensor) -> None:
        largest = value.max() if value.numel() else value.new_zeros(())
        self.maxima[name] = torch.maximum(self.maxima.get(name, largest), largest)
