"""Target Exploration: which training studies the SFT policy reports worst (paper 4.1)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExploreConfig:
    """How hard studies are found."""

    weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "bleu2": 1.0,
            "rouge_l": 0.0,
            "entity_f1_rules": 1.0,
            "label_f1_rules": 1.0,
            "consistency_rules": 0.0,
            "bertscore": 0.0,
            "sembscore": 0.0,
            "keyword_f1_rules": 0.0,
            "radgraph_f1": 0.0,
            "radgraph_f1_report": 0.0,
            "label_f1_chexbert": 0.0,
            "consistency_llm": 0.0,
        }
    )
    """Weight of each metric in s_i; 0 leaves it out. The paper's are bleu2, bertscore and radgraph_f1, whose models
    must be at hand; they need not be parts of the reward."""
    normalise: Literal["minmax", "zscore", "rank"] = "minmax"
    """How a metric is made comparable over the set before weighting."""
    fraction: float = 0.1
    """Share of training studies to keep, hardest first (the paper: 0.1)."""
    threshold: float | None = None
    """Keep every study with s_i below this instead of a share."""
    part_size: int = 256
    """Studies a part file; a killed exploration repeats at most one part."""

    def __post_init__(self) -> None:
        if self.part_size < 1:
            raise ValueError(f"expected explore.part_size of at least 1, got {self.part_size}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"expected explore.fraction above 0 and at most 1, got {self.fraction}")
        if not self.weights or any(w < 0 for w in self.weights.values()) or sum(self.weights.values()) == 0:
            raise ValueError(f"expected explore.weights not negative and not all zero, got {dict(self.weights)}")


def explored(config: ExploreConfig) -> list[str]:
    """Names of the metrics that count in s_i."""
    return [name for name, weight in config.weights.items() if weight]


def composite_score(metrics: Mapping[str, Sequence[float]], config: ExploreConfig) -> Tensor:
    """s_i: the weighted mean of the normalised metrics, [N] float64; higher is better reported.

    A metric that is the same for every study tells none apart and counts 0 (0.5 under rank).
    """
    weights = {name: config.weights[name] for name in explored(config)}
    if missing := sorted(set(weights) - set(metrics)):
        raise ValueError(f"expected scores of {sorted(weights)}, {missing} missing; got {sorted(metrics)}")
    total = sum(weights.values())
    columns = []
    for name, weight in weights.items():
        values = torch.tensor(metrics[name], dtype=torch.float64)
        if not values.isfinite().all():
            raise ValueError(f"metric {name} is not finite for study number {int((~values.isfinite()).nonzero()[0])}")
        columns.append(weight / total * _NORMALISERS[config.normalise](values))
    return torch.stack(columns).sum(0)


def select_hard(scores: Tensor, config: ExploreConfig) -> list[int]:
    """Indices of the studies to train on, hardest first; ties by index. At least one."""
    order = scores.sort(stable=True).indices.tolist()
    if config.threshold is not None:
        chosen = [i for i in order if scores[i] < config.threshold]
        if not chosen:
            raise ValueError(f"no study has s_i below {config.threshold}; the lowest is {float(scores.min()):.4f}")
        return chosen
    return order[: max(1, math.ceil(config.fraction * len(order)))]


def _minmax(values: Tensor) -> Tensor:
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else torch.zeros_like(values)


def _zscore(values: Tensor) -> Tensor:
    spread = values.std(correction=0)
    return (values - values.mean()) / spread if spread > 0 else torch.zeros_like(values)


def _rank(values: Tensor) -> Tensor:
    """Mean rank of equal values, scaled to [0, 1]."""
    if len(values) == 1:
        return torch.full_like(values, 0.5)
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    below = counts.cumsum(0) - counts
    return (below + (counts - 1).double() / 2)[which] / (len(values) - 1)


_NORMALISERS = {"minmax": _minmax, "zscore": _zscore, "rank": _rank}
