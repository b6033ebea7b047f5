"""Metrics of policy losses, summed on the device over micro-batches and read once at the end of a step."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from capo.loss import LossTerms, log_ratio, sampler_weights
from capo.ranks import Ranks


@dataclass(frozen=True)
class PolicyMetrics:
    """Metrics of the updates of one step; means are over report tokens unless noted."""

    loss: float  # of one update
    ratio_mean: float  # near 1
    ratio_max: float
    ratio_min: float
    ratio_gap_max: float  # largest |r - 1|: clipping stops gradients, it does not keep the ratio in its range
    ratio_gap_max_critical: float  # of the tokens of critical cases; 0 if there is none
    ratio_gap_max_normal: float
    kl: float
    kl_critical: float  # per token of critical cases; 0 if there is none
    kl_normal: float
    entropy: float | None  # nats; None if no entropy was given
    clip_low_critical: float  # share of the tokens of critical cases with r < 1 - eps and A < 0
    clip_high_critical: float  # ... with r > 1 + eps and A > 0
    clip_low_normal: float
    clip_high_normal: float
    tokens: int  # report tokens, counted in every pass
    effective_samples: float  # Kish: (sum r)^2 / sum r^2, in tokens; equals `tokens` if all ratios are equal
    reports: int  # counted in every pass
    learning_reports: int  # of these, with a token whose advantage is not 0


class LossMetrics:
    """Sums over the terms of micro-batches, kept on the device until `read`."""

    def __init__(self) -> None:
        self._totals = _Totals()

    def add(
        self,
        terms: LossTerms,
        *,
        critical: Tensor | None = None,
        entropy: Tensor | None = None,
        sampled: Tensor | None = None,
    ) -> None:
        """Add a micro-batch.

        Args:
            critical: [B] bool; None if all are normal.
            entropy: [B, T] in nats.
            sampled: [B] bool, the reports that the policy sampled; the others count in the loss only. None: all.
        """
        if sampled is not None:
            terms = _only(terms, sampled)
        totals, mask = self._totals, terms.mask
        if critical is None:
            critical = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
        ratio = torch.where(mask, terms.ratio, 0.0)
        totals.add("loss", terms.loss.detach())
        totals.add("ratio", ratio)
        totals.add("ratio_squared", ratio.double().square())
        totals.add_max("ratio_max", torch.where(mask, terms.ratio, 0.0))
        totals.add_max("ratio_min", -torch.where(mask, terms.ratio, torch.inf))
        totals.add_max("ratio_gap_max", (terms.ratio - 1).abs())
        totals.add("kl", terms.kl)
        totals.add("tokens", mask)
        totals.add("reports", mask.any(-1))
        totals.add("learning_reports", (terms.advantages != 0).any(-1))
        if entropy is not None:
            totals.add("entropy", torch.where(mask, entropy, 0.0))
        for name, rows in (("critical", critical), ("normal", ~critical)):
            of_kind = rows[:, None]
            totals.add(f"tokens_{name}", mask & of_kind)
            totals.add(f"kl_{name}", torch.where(of_kind, terms.kl, 0.0))
            totals.add_max(f"ratio_gap_max_{name}", torch.where(of_kind, (terms.ratio - 1).abs(), 0.0))
            totals.add(f"clip_low_{name}", terms.clipped_low & of_kind)
            totals.add(f"clip_high_{name}", terms.clipped_high & of_kind)

    def read(self, ranks: Ranks | None = None, *, num_updates: int = 1) -> PolicyMetrics:
        """Metrics of all ranks and `num_updates` optimiser steps; without tokens ratios are 1 and the rest 0."""
        sums, maxima = self._totals.read(ranks)
        tokens, some = max(1.0, sums["tokens"]), sums["tokens"] > 0
        by_kind = {name: value for name, value in maxima.items() if name.startswith("ratio_gap_max_")}
        for kind in ("critical", "normal"):
            for mean in (f"clip_low_{kind}", f"clip_high_{kind}", f"kl_{kind}"):
                by_kind[mean] = sums[mean] / max(1.0, sums[f"tokens_{kind}"])
        return PolicyMetrics(
            loss=sums["loss"] / num_updates,
            ratio_mean=sums["ratio"] / tokens if some else 1.0,
            ratio_max=maxima["ratio_max"] if some else 1.0,
            ratio_min=-maxima["ratio_min"] if some else 1.0,
            ratio_gap_max=maxima["ratio_gap_max"],
            kl=sums["kl"] / tokens,
            entropy=sums["entropy"] / tokens if "entropy" in sums else None,
            tokens=int(sums["tokens"]),
            effective_samples=sums["ratio"] ** 2 / sums["ratio_squared"] if some else 0.0,
            reports=int(sums["reports"]),
            learning_reports=int(sums["learning_reports"]),
            **by_kind,
        )


def _only(terms: LossTerms, rows: Tensor) -> LossTerms:
    """The terms as if the other reports had no tokens; the loss stays."""
    mask = terms.mask & rows[:, None]
    return replace(
        terms,
        mask=mask,
        ratio=torch.where(mask, terms.ratio, 1.0),
        kl=torch.where(mask, terms.kl, 0.0),
        clipped_low=terms.clipped_low & mask,
        clipped_high=terms.clipped_high & mask,
        advantages=torch.where(mask, terms.advantages, 0.0),
    )


class ScoringMetrics:
    """Metrics of the rollouts before the first update; level ("off": no weights) and cap as in `sampler_weights`."""

    def __init__(self, *, level: Literal["off", "token", "report"] = "off", cap: float = 3.0) -> None:
        self.level, self.cap = level, cap
        self._totals = _Totals()

    def add(self, sampled: Tensor, behaviour: Tensor, kl: Tensor, entropy: Tensor, mask: Tensor) -> None:
        """Add a micro-batch; [B, T] each, KL and entropy 0 outside the mask, `sampled` NaN where the sampler gave none:
        such a token has no gap and the weight 1."""
        known = mask & ~sampled.isnan()
        gap = log_ratio(behaviour, sampled, known).abs()
        self._totals.add("tokens", mask)
        self._totals.add("known", known)
        self._totals.add("kl_before", kl)
        self._totals.add("entropy", entropy)
        self._totals.add("sampler_gap_mean", gap)
        self._totals.add_max("sampler_gap_max", gap)
        if self.level != "off":
            # All tokens of a report have its weight: count the first.
            counted = mask if self.level == "token" else mask & (mask.cumsum(-1) == 1)
            given = torch.where(known, sampled, behaviour)
            weights = sampler_weights(behaviour, given, mask, level=self.level, cap=self.cap)
            self._totals.add("weights", counted)
            self._totals.add("sampler_weight_mean", torch.where(counted, weights, 0.0))
            self._totals.add("sampler_weight_capped", counted & (weights >= self.cap))

    def read(self, ranks: Ranks | None = None) -> dict[str, float | None]:
        """KL and entropy per token, mean and maximum of the gap between sampler and training path (None if the sampler
        gave no log-probability), and unless "off" mean of the weights and share at the cap, over tokens or reports as
        the level says."""
        sums, maxima = self._totals.read(ranks)
        tokens, known, weights = sums.pop("tokens"), sums.pop("known"), sums.pop("weights", 0.0)
        counts = {name: weights if "_weight_" in name else known if "_gap_" in name else tokens for name in sums}
        found: dict[str, float | None] = {name: value / max(1.0, counts[name]) for name, value in sums.items()}
        found |= maxima
        return found if known or not tokens else {**found, "sampler_gap_mean": None, "sampler_gap_max": None}


class _Totals:
    """Named sums and maxima on the device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.maxima: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value.detach().sum(dtype=torch.float64)

    def add_max(self, name: str, value: Tensor) -> None:
        if not value.numel():
            value = value.new_full((1,), -torch.inf)  # the micro-batch of an idle rank has no reports
        largest = value.detach().max()
        self.maxima[name] = torch.maximum(self.maxima.get(name, largest), largest)

    def read(self, ranks: Ranks | None = None) -> tuple[dict[str, float], dict[str, float]]:
        mine = [{name: float(value) for name, value in d.items()} for d in (self.sums, self.maxima)]
        sums, maxima = zip(*(ranks or Ranks()).all_gather(mine), strict=True)
        total = {name: sum(each[name] for each in sums) for name in self.sums}
        largest = {name: max(each[name] for each in maxima) for name in self.maxima}
        return total, {name: value if value > -math.inf else 0.0 for name, value in largest.items()}
