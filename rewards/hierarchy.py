"""The reward of a report: the hierarchical one (paper eq. 4 to 7), one metric alone, or a plug-in."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

from rewards.base import Score, Scored
from rewards.catalogue import Backends
from rewards.config import RewardConfig
from rewards.expert import LabelF1
from rewards.guard import grounding, guard
from rewards.judge_config import JudgeConfig
from rewards.measure import Measured, Metrics, Parser
from rewards.plugin import name_of

EXPERTS = {
    "chexpert_rules": "label_f1_rules",
    "carotid_rules": "label_f1_rules",
    "chexbert": "label_f1_chexbert",
}
JUDGES = {"rules": "consistency_rules", "llm": "consistency_llm"}
SINGLE = {"bleu": "bleu2", "bertscore": "bertscore", "radgraph": "radgraph_f1_report"}
SYNTAX = ("bleu2", "rouge_l")  # their mean is the part "syntax"
LOWEST = {"bertscore": -1.0}  # rescaled, that of an empty report is -5.6: alone it would decide its group's spread


def weights_of(config: RewardConfig) -> dict[str, float]:
    """Part -> weight of the reward that a config asks for; parts of weight 0 are left out."""
    if config.preset == "hierarchical":
        weights = {
            "syntax": config.syntax,
            config.domain_metric: config.domain,
            JUDGES[config.consistency]: config.consistent,
            EXPERTS[config.expert]: config.gamma,
        }
    else:
        weights = {} if config.preset == "plugin" else {SINGLE[config.preset]: 1.0}
    if config.plugin is not None:
        weights[name_of(config.plugin)] = config.plugin_weight
    return {name: weight for name, weight in weights.items() if weight}


def _metrics_of(config: RewardConfig) -> list[str]:
    """Names of the metrics that the reward's parts are made of."""
    return [metric for name in weights_of(config) for metric in (SYNTAX if name == "syntax" else (name,))]


class HierarchicalReward:
    """Reward of generated reports against their references; with all weights 1 a perfect report gets 4.

        total = g * (positive parts, weighted) + (negative parts, weighted)

    g is the guard (`rewards.guard`), 1 for ordinary reports. What the headers of a report decide: `rewards.measure`.

    Args:
        metrics: at least those that the config's reward is made of.
        expert: label F1 by rules. Whatever the reward is, its labeler is what warm-up, balance and criticality read.

    `metrics` may hold more: they are columns of tables and part of no reward.
    """

    def __init__(self, config: RewardConfig, *, metrics: Metrics, expert: LabelF1) -> None:
        self.config, self.metrics, self.expert = config, metrics, expert
        self.weights = weights_of(config)
        self._own = metrics.only(_metrics_of(config))

    @classmethod
    def from_config(
        cls, config: RewardConfig, parse: Parser, *, judge: JudgeConfig | None = None, also: Sequence[str] = ()
    ) -> "HierarchicalReward":
        """The reward with its models.

        Args:
            judge: the language model that is asked, where the config asks one.
            also: metrics beside its parts, for tables and exploration.

        Raises:
            ValueError: a model is not there, with the way to get it; an unknown metric.
        """
        backends = Backends(config, judge or JudgeConfig())
        plugin = None if config.plugin is None else name_of(config.plugin)
        names = [name for name in dict.fromkeys([*_metrics_of(config), *also]) if name != plugin]
        metrics = Metrics.load(parse, names, backends, config.plugin)
        return cls(config, metrics=metrics, expert=LabelF1(backends.rules))

    def __call__(
        self, candidates: Sequence[str], references: Sequence[str], *, groups: Sequence[int] | None = None
    ) -> list[Score]:
        """Scores of reports; `scored` without the times."""
        return list(self.scored(candidates, references, groups=groups).scores)

    def scored(
        self, candidates: Sequence[str], references: Sequence[str], *, groups: Sequence[int] | None = None
    ) -> Scored:
        """Scores of reports.

        Args:
            groups: reports with the same number are compared with one another: a part that one of them lacks counts in
                the total of none. By default each report stands alone.
        """
        measured = self._own(candidates, references, respaced=True)
        groups = range(len(candidates)) if groups is None else groups
        left_out: dict[int, set[str]] = {}
        for name, lacks in measured.missing.items():
            for group, lacking in zip(groups, lacks, strict=True):
                left_out.setdefault(group, set()).update({name} if lacking else ())
        pairs = zip(candidates, references, groups, strict=True)
        return Scored(
            tuple(self._score(measured, i, c, r, left_out[group]) for i, (c, r, group) in enumerate(pairs)),
            measured.seconds,
        )

    def _score(
        self, measured: Measured, place: int, candidate: str, reference: str, left_out: AbstractSet[str]
    ) -> Score:
        parts = {}
        for name, column in measured.values.items():
            parts[name] = column[place]
            if name == SYNTAX[-1] and "syntax" in self.weights:
                parts["syntax"] = sum(parts[n] for n in SYNTAX) / len(SYNTAX)
        missing = tuple(name for name, lacks in measured.missing.items() if lacks[place])
        factor = self._guard(candidate, reference, parts)
        return Score(
            self._total(parts, factor, missing, left_out), {**parts, "guard": factor}, missing, tuple(sorted(left_out))
        )

    def _guard(self, candidate: str, reference: str, parts: Mapping[str, float | None]) -> float:
        if not self.config.guard:
            return 1.0
        factor, domain = guard(candidate, reference), self.config.domain_metric
        if self.config.preset == "hierarchical" and parts.get(domain) is not None:
            factor *= grounding(parts[domain], self.config.grounding)
        return factor

    def _total(
        self, parts: Mapping[str, float | None], factor: float, missing: Sequence[str], left_out: AbstractSet[str]
    ) -> float | None:
        counted = {name: weight for name, weight in self.weights.items() if name not in left_out}
        if not counted:
            # Nothing would be left to compare: then the reports that lack a part leave their group, and no other.
            if missing:
                return None
            counted = self.weights
        known = {name: parts[name] for name in counted if parts[name] is not None}
        terms = [counted[name] * max(value, LOWEST.get(name, value)) for name, value in known.items()]
        return sum(factor * term if term > 0 else term for term in terms)
