"""Metrics of policy losses, summed on the device over micro-batches and read once at the end of a step."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from capo.loss import LossTerms
from capo.ranks import Ranks
from capo.ratio import log_ratio, sampler_weights


@dataclass(frozen=True)
class PolicyMetrics:
    """What a step's losses say about the update; means are over report tokens unless said otherwise."""

    loss: float  # of one update
    ratio_mean: float  # near 1
    ratio_max: float
    ratio_min: float
    ratio_gap_max: float  # largest |r - 1|: clipping stops gradients, it does not hold the ratio in its range
    ratio_gap_max_critical: float  # of the tokens of critical cases; 0 where there is none
    ratio_gap_max_normal: float
    kl: float
    kl_critical: float  # a token of critical cases; 0 where there is none
    kl_normal: float
    entropy: float | None  # nats; None where no entropy was given
    clip_low_critical: float  # share of the tokens of critical cases with r < 1 - eps and A < 0
    clip_high_critical: float  # ... with r > 1 + eps and A > 0
    clip_low_normal: float
    clip_high_normal: float
    tokens: int  # report tokens, each pass over them counted
    effective_samples: float  # Kish: (sum r)^2 / sum r^2, in tokens; equals `tokens` when all weigh alike
    reports: int  # each pass counted
    learning_reports: int  # of these, with an advantage other than 0


class LossMetrics:
    """Adds up the terms of micro-batches; nothing is moved off the device before `read`."""

    def __init__(self) -> None:
        self._totals = _Totals()

    def add(self, terms: LossTerms, *, critical: Tensor | None = None, entropy: Tensor | None = None) -> None:
        """One micro-batch.

        Args:
            critical: [B] bool; without it every case counts as normal.
            entropy: [B, T] nats, outside the mask anything.
        """
        totals, mask = self._totals, terms.mask
        if critical is None:
            critical = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
        ratio = torch.where(mask, terms.ratio, 0.0)
        totals.add("loss", terms.loss.detach())
        totals.add("ratio", ratio)
        totals.add("ratio_squared", ratio.double().square())
        totals.most("ratio_max", torch.where(mask, terms.ratio, 0.0))
        totals.most("ratio_min", -torch.where(mask, terms.ratio, torch.inf))
        totals.most("ratio_gap_max", (terms.ratio - 1).abs())
        totals.add("kl", terms.kl)
        totals.add("tokens", mask)
        totals.add("reports", mask.any(-1))
        totals.add("learning_reports", mask.any(-1) & (terms.advantages != 0))
        if entropy is not None:
            totals.add("entropy", torch.where(mask, entropy, 0.0))
        for name, rows in (("critical", critical), ("normal", ~critical)):
            of_kind = rows[:, None]
            totals.add(f"tokens_{name}", mask & of_kind)
            totals.add(f"kl_{name}", torch.where(of_kind, terms.kl, 0.0))
            totals.most(f"ratio_gap_max_{name}", torch.where(of_kind, (terms.ratio - 1).abs(), 0.0))
            totals.add(f"clip_low_{name}", terms.clipped_low & of_kind)
            totals.add(f"clip_high_{name}", terms.clipped_high & of_kind)

    def read(self, ranks: Ranks | None = None, *, num_updates: int = 1) -> PolicyMetrics:
        """The metrics so far, of all ranks. Without any token: ratios 1, the rest 0.

        Args:
            num_updates: optimiser steps that share the loss.
        """
        sums, most = self._totals.read(ranks)
        tokens = max(1.0, sums["tokens"])
        by_kind = {}
        for name in ("critical", "normal"):
            of_kind = max(1.0, sums[f"tokens_{name}"])
            for mean in ("clip_low", "clip_high", "kl"):
                by_kind[f"{mean}_{name}"] = sums[f"{mean}_{name}"] / of_kind
            by_kind[f"ratio_gap_max_{name}"] = most[f"ratio_gap_max_{name}"]
        some = sums["tokens"] > 0
        return PolicyMetrics(
            loss=sums["loss"] / num_updates,
            ratio_mean=sums["ratio"] / tokens if some else 1.0,
            ratio_max=most["ratio_max"] if some else 1.0,
            ratio_min=-most["ratio_min"] if some else 1.0,
            ratio_gap_max=most["ratio_gap_max"],
            kl=sums["kl"] / tokens,
            entropy=sums["entropy"] / tokens if "entropy" in sums else None,
            tokens=int(sums["tokens"]),
            effective_samples=sums["ratio"] ** 2 / sums["ratio_squared"] if some else 0.0,
            reports=int(sums["reports"]),
            learning_reports=int(sums["learning_reports"]),
            **by_kind,
        )


class ScoringMetrics:
    """What is known of the rollouts before the first update.

    Args:
        level, cap: of the weights that the losses get (`capo.ratio.sampler_weights`); level "off" if they get none.
    """

    def __init__(self, *, level: Literal["off", "token", "report"] = "off", cap: float = 3.0) -> None:
        self.level, self.cap = level, cap
        self._totals = _Totals()

    def add(self, sampled: Tensor, behaviour: Tensor, kl: Tensor, entropy: Tensor, mask: Tensor) -> None:
        """One micro-batch; [B, T] each, KL and entropy 0 outside the mask."""
        gap = log_ratio(behaviour, sampled, mask).abs()
        self._totals.add("tokens", mask)
        self._totals.add("kl_before", kl)
        self._totals.add("entropy", entropy)
        self._totals.add("sampler_gap_mean", gap)
        self._totals.most("sampler_gap_max", gap)
        if self.level != "off":
            # The tokens of a report share its weight: the first one counts for it.
            counted = mask if self.level == "token" else mask & (mask.cumsum(-1) == 1)
            weights = sampler_weights(behaviour, sampled, mask, level=self.level, cap=self.cap)
            self._totals.add("weights", counted)
            self._totals.add("sampler_weight_mean", torch.where(counted, weights, 0.0))
            self._totals.add("sampler_weight_capped", counted & (weights >= self.cap))

    def read(self, ranks: Ranks | None = None) -> dict[str, float]:
        """KL and entropy per token, mean and largest gap between sampler and training path, and what the weights are.

        Of the weights: their mean and the share that the cap holds, over tokens or reports as the level says; absent
        if it is "off".
        """
        sums, most = self._totals.read(ranks)
        tokens, weights = max(1.0, sums.pop("tokens")), max(1.0, sums.pop("weights", 0.0))
        means = {name: value / (weights if "_weight_" in name else tokens) for name, value in sums.items()}
        return {**means, **most}


class _Totals:
    """Named sums and maxima, as tensors."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.maxima: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value.detach().sum(dtype=torch.float64)

    def most(self, name: str, value: Tensor) -> None:
        value = value.detach()
        largest = value.max() if value.numel() else value.new_zeros(())
        self.maxima[name] = torch.maximum(self.maxima.get(name, largest), largest)

    def read(self, ranks: Ranks | None = None) -> tuple[dict[str, float], dict[str, float]]:
        mine = [{name: float(value) for name, value in d.items()} for d in (self.sums, self.maxima)]
        return tuple(
            {name: combine(theirs[place][name] for theirs in gathered) for name in mine[place]}
            for gathered in [(ranks or Ranks()).gather(mine)]
            for place, combine in enumerate((sum, max))
        )
