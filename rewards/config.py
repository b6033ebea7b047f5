"""Which reward is computed, of what parts, and with which weights (docs/rewards.md)."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from radflow.rewards.metrics.bertscore import BertScoreConfig
from radflow.rewards.metrics.chexbert import ChexbertConfig
from radflow.rewards.metrics.ratescore import RateScoreConfig
from radflow.rewards.metrics.srrbert import SrrBertConfig
from radflow.rewards.metrics.temporal import TemporalConfig
from radflow.rewards.radgraph.f1 import RadGraphConfig

Preset = Literal["hierarchical", "bleu", "bertscore", "radgraph", "plugin"]


@dataclass(frozen=True)
class RewardConfig:
    """The reward: by default R = syntax R_syntax + domain R_domain + consistent R_consistent + gamma R_imp."""

    preset: Preset = "hierarchical"
    """`hierarchical` is the paper's reward; `bleu`, `bertscore` and `radgraph` are one metric over the whole report, to
    compare with (paper, table 5); `plugin` is the function that `plugin` names and nothing else."""
    expert: Literal["chexpert_rules", "carotid_rules", "chexbert"] = "chexpert_rules"
    """Labeler of the Impression part. Consistency rules, criticality, warm-up and the balance of batches use the same
    rules; with `chexbert` they keep those of the chest."""
    domain_metric: Literal["entity_f1_rules", "radgraph_f1"] = "entity_f1_rules"
    """What compares the Findings: local rules, or the RadGraph model."""
    consistency: Literal["rules", "llm"] = "rules"
    """Who judges whether the Impression follows from the Findings: local rules, or the large language model of the
    section `judge`."""
    syntax: float = 1.0
    """Weight of the mean of BLEU-2 and ROUGE-L over the whole report, in [0, 1]. Weights are read by `hierarchical`;
    a part of weight 0 is not computed."""
    domain: float = 1.0
    """Weight of the agreement of the Findings with those of the reference, in [0, 1]."""
    consistent: float = 1.0
    """Weight of the consistency of Findings and Impression, -1 or 1."""
    gamma: float = 1.0
    """Weight of the label F1 of the Impression, in [0, 1]."""
    lexicon: Path | None = None
    """Keywords of `keyword_f1_rules`, a file like rewards/rules/lexicons/carotid.json. Unset: that one."""
    plugin: str | None = None
    """`module:function` of your own reward, f(candidates, references) -> list of float or None; it is added to the
    preset's, and is a metric by its name: exploration may rank by it."""
    plugin_weight: float = 1.0
    """Weight of the plug-in's values."""
    printed: bool = False
    """The plain sum of the parts, as the paper prints it. Otherwise what a report earns is scaled down for every error
    about the findings of its reference, and for repetition, length and line breaks (docs/rewards.md)."""
    bertscore: BertScoreConfig = field(default_factory=BertScoreConfig)
    chexbert: ChexbertConfig = field(default_factory=ChexbertConfig)
    radgraph: RadGraphConfig = field(default_factory=RadGraphConfig)
    ratescore: RateScoreConfig = field(default_factory=RateScoreConfig)
    srrbert: SrrBertConfig = field(default_factory=SrrBertConfig)
    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    workers: int = 1
    """Processes that score groups while others are decoded; 0 scores in the main process. It changes no number."""
    timeout_s: float = 600.0
    """Seconds that a part may take for one group. Then it is missing there, and the process is replaced."""
    max_failed: float = 0.5
    """Largest share of a step's reports, or of those of one table, for which a part may fail (raise, answer no finite
    number, hang); above it the run ends with an error."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"expected reward.workers of at least 0, got {self.workers}")
        if not 0 < self.timeout_s < math.inf:
            raise ValueError(f"expected reward.timeout_s above 0 and finite, got {self.timeout_s}")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"expected reward.max_failed in [0, 1], got {self.max_failed}")
        weights = (self.syntax, self.domain, self.consistent, self.gamma)
        if not all(0 <= weight < math.inf for weight in weights) or max(weights) == 0:
            raise ValueError(f"expected reward weights finite, not negative and not all zero, got {weights}")
        if self.preset == "plugin" and self.plugin is None:
            raise ValueError("reward.preset plugin: expected reward.plugin, the module:function to call")
        if self.plugin is not None and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", self.plugin):
            raise ValueError(f"expected reward.plugin as module:function, got {self.plugin!r}")
        if not 0 < self.plugin_weight < math.inf:
            weight = self.plugin_weight
            raise ValueError(
                f"expected reward.plugin_weight above 0 and finite, got {weight}; scale inside the plug-in"
            )

    @property
    def gated(self) -> bool:
        """Whether truth decides how much of the hierarchical reward is paid."""
        return self.preset == "hierarchical" and not self.printed

    @property
    def plugin_name(self) -> str | None:
        """Name of the plug-in's function, which names its part of the reward and its column."""
        return None if self.plugin is None else self.plugin.rpartition(":")[2]
