"""Target Exploration: which training studies the SFT policy reports worst (paper 4.1)."""

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from capo.checks import check_range


@dataclass(frozen=True)
class ExploreConfig:
    """How hard studies are found."""

    # Not Mapping: tyro would offer one option for each key of the default, and no other key.
    weights: MutableMapping[str, float] = field(
        default_factory=lambda: {"bleu2": 1.0, "entity_f1_rules": 1.0, "label_f1_rules": 1.0}
    )
    """Weight of each metric in s_i, of all metrics that docs/rewards.md names and of a plug-in: a mapping in the YAML
    file, `--explore.weights bleu2 1 radgraph_f1 1` on the command line. It replaces the default. The paper's are bleu2,
    bertscore and radgraph_f1, whose models must be at hand; they need not be parts of the reward."""
    normalise: Literal["minmax", "zscore", "rank"] = "minmax"
    """How a metric is made comparable over the set before weighting."""
    fraction: float = 0.1
    """Share of training studies to keep, hardest first (the paper: 0.1)."""
    threshold: float | None = None
    """Keep every study with s_i below this instead of a share."""
    part_size: int = 256
    """Studies per part file; a killed exploration repeats at most one part."""

    def __post_init__(self) -> None:
        check_range(self, "part_size", least=1)
        check_range(self, "fraction", above=0, most=1)
        if self.threshold is not None:
            check_range(self, "threshold")
        weights = self.weights.values()
        if not all(0 <= weight < math.inf for weight in weights) or sum(weights) == 0:
            raise ValueError(
                f"expected explore.weights finite, not negative and not all zero, got {dict(self.weights)}"
            )


def metric_names(config: ExploreConfig) -> list[str]:
    """Names of the metrics that count in s_i."""
    return [name for name, weight in config.weights.items() if weight]


def composite_score(metrics: Mapping[str, Sequence[float]], config: ExploreConfig) -> Tensor:
    """s_i: the weighted mean of the normalised metrics, [N] float64; higher means a better report.

    A metric that is equal for all studies counts 0 (0.5 under rank).
    """
    weights = {name: config.weights[name] for name in metric_names(config)}
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


def _scale(values: Tensor, origin: Tensor, unit: Tensor) -> Tensor:
    return (values - origin) / unit if unit > 0 else torch.zeros_like(values)


def _rank(values: Tensor) -> Tensor:
    """Mean rank of equal values, scaled to [0, 1]."""
    if len(values) == 1:
        return torch.full_like(values, 0.5)
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    mean: Tensor = counts.cumsum(0) - counts + (counts - 1).double() / 2
    return mean[inverse] / (len(values) - 1)


_NORMALISERS = {
    "minmax": lambda values: _scale(values, values.min(), values.max() - values.min()),
    "zscore": lambda values: _scale(values, values.mean(), values.std(correction=0)),
    "rank": _rank,
}
