"""The reward of a report: the hierarchical one (paper eq. 4 to 7), one metric alone, or a plug-in.

    R = R_global + gamma R_imp                                (4)
    R_global = R_syntax + R_domain + R_consistent             (5)
    p = Expert(Impression), of candidate and reference        (6)
    R_imp = F1(Binarize(p candidate), Binarize(p reference))  (7)

`radflow.rewards.registry.build_reward` loads the metrics that the parts are made of.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import cast

from radflow.rewards.config import RewardConfig
from radflow.rewards.faults import describe_faults
from radflow.rewards.guard import guard
from radflow.rewards.measure import Measured, Metrics, Table
from radflow.rewards.rules.errors import FindingErrors
from radflow.rewards.types import Fault, Score, Scored

SYNTAX = ("bleu2", "rouge_l")  # their mean is the part "syntax"
TRUTH, CONTRADICTIONS = GATE = ("truth_rules", "contradictions_rules")  # what truth is measured by
JUDGES = frozenset({"consistency_rules", "consistency_llm"})
LOWEST = {"bertscore": -1.0}  # rescaled, that of an empty report is -5.6: alone it would decide its group's spread


class LabelF1:
    """F1 of the positive labels of candidate and reference, per report, in [0, 1] (eq. 6 and 7).

    The paper asks for the macro F1 of binarised labels. For a single report most labels are absent on both sides and
    have no F1; this is the example-based form, 2 |A and B| / (|A| + |B|). Two reports without any positive label agree
    completely and score 1.

    Args:
        labeler: the expert, texts -> the positive labels of each; its rule is what counts as positive: an uncertain
            label does for the rule labelers, and for CheXbert unless `chexbert.uncertain` says otherwise.
    """

    def __init__(self, labeler: Callable[[Sequence[str]], list[set[str]]]) -> None:
        self.labeler = labeler

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        pairs = zip(self.labeler(candidates), self.labeler(references), strict=True)  # eq. 6
        return [self.agreement(a, b) for a, b in pairs]  # eq. 7

    @staticmethod
    def agreement(first: AbstractSet[str], second: AbstractSet[str]) -> float:
        """Dice overlap of two label sets."""
        return 2 * len(first & second) / (len(first) + len(second)) if first or second else 1.0


def part_weights(config: RewardConfig) -> dict[str, float]:
    """Part -> weight of the reward that a config asks for; parts of weight 0 are left out."""
    if config.preset == "hierarchical":
        weights = {
            "syntax": config.syntax,  # eq. 5, the three terms of R_global
            config.domain_metric: config.domain,
            "consistency_llm" if config.consistency == "llm" else "consistency_rules": config.consistent,
            "label_f1_chexbert" if config.expert == "chexbert" else "label_f1_rules": config.gamma,  # eq. 4, R_imp
        }
    else:
        single = {"bleu": "bleu2", "bertscore": "bertscore", "radgraph": "radgraph_f1_report"}
        weights = {single[config.preset]: 1.0} if config.preset in single else {}
    if config.plugin_name is not None:
        weights[config.plugin_name] = config.plugin_weight
    return {name: weight for name, weight in weights.items() if weight}


def part_metrics(config: RewardConfig) -> list[str]:
    """Names of the metrics that the reward's parts are made of."""
    parts = [metric for name in part_weights(config) for metric in (SYNTAX if name == "syntax" else (name,))]
    return [*parts, *GATE] if config.gated else parts


class HierarchicalReward:
    """Reward of generated reports against their references; with all weights 1 a perfect report gets 4.

        total = guard * truth * (positive parts, weighted) + (negative parts, weighted)

    guard is 1 for ordinary reports (`radflow.rewards.guard`), truth for a report without an error about the findings of
    its reference (`radflow.rewards.rules.errors`). Being consistent pays in proportion to the agreement of the
    Findings, and nothing to a report that contradicts its reference; it is left out if the reference itself is judged
    inconsistent. With `printed` the sum is that of the paper. What the headers of a report decide:
    `radflow.rewards.measure`.

    Args:
        metrics: at least those of `part_metrics`; others are columns of tables and part of no reward.
        errors: of findings, with the labeler that warm-up, balance and criticality read too, whatever the reward is.
    """

    def __init__(self, config: RewardConfig, *, metrics: Metrics, errors: FindingErrors) -> None:
        self.config, self.metrics, self.errors, self.labeler = config, metrics, errors, errors.labeler
        self.parse = metrics.parse
        self.weights = part_weights(config)
        self._own = metrics.only(part_metrics(config))
        self._judge = metrics.only([name for name in self.weights if name in JUDGES and config.gated])

    def __call__(
        self, candidates: Sequence[str], references: Sequence[str], *, groups: Sequence[int] | None = None
    ) -> list[Score]:
        """Scores of reports; `scored` without the times. What failed is a warning, or RewardError if it is too much."""
        scored = self.scored(candidates, references, groups=groups)
        faults = ((str(fault.report), fault) for fault in scored.faults)
        for line in describe_faults(faults, self.config, num_reports=len(candidates)):
            warnings.warn(line, RuntimeWarning, stacklevel=2)
        return list(scored.scores)

    def scored(
        self, candidates: Sequence[str], references: Sequence[str], *, groups: Sequence[int] | None = None
    ) -> Scored:
        """Scores of reports.

        Args:
            groups: reports with the same number are compared with one another: a part that one of them lacks counts in
                the total of none. By default each report is a group of its own.
        """
        refused, faults = self._refused(references)
        measured = self._own(candidates, references, respaced=True)
        groups = range(len(candidates)) if groups is None else groups
        lacking: dict[int, set[str]] = {group: set() for group in groups}
        for i, group in enumerate(groups):
            lacking[group].update(self._missing(measured, i))
        pairs = enumerate(zip(candidates, references, groups, strict=True))
        scores = tuple(
            self._score(measured, i, c, r, refused.get(r, frozenset()), lacking[group]) for i, (c, r, group) in pairs
        )
        return Scored(scores, measured.seconds, faults=(*measured.faults, *faults))

    def table(self, candidates: Sequence[str], references: Sequence[str]) -> Table:
        """The total reward and every metric, these on the texts as written (the reward itself reads them without line
        breaks)."""
        scored, table = self.scored(candidates, references), self.metrics.table(candidates, references)
        faults = {(fault.part, fault.report): fault for fault in (*scored.faults, *table.faults)}
        return Table({"total": [score.total for score in scored.scores], **table.columns}, tuple(faults.values()))

    def _refused(self, references: Sequence[str]) -> tuple[dict[str, AbstractSet[str]], list[Fault]]:
        """Reference -> judges of consistency that refuse its own two sections; where a judge failed."""
        distinct = [r for r in dict.fromkeys(references) if self.metrics.parse(r).status == "ok"]
        judged = self._judge(distinct, distinct)
        faults = [replace(fault, report=references.index(distinct[fault.report])) for fault in judged.faults]
        values = judged.values
        return {r: {name for name in values if values[name][i] == -1.0} for i, r in enumerate(distinct)}, faults

    def _missing(self, measured: Measured, i: int) -> tuple[str, ...]:
        """Parts that could not be computed for a report."""
        lacks = {name for name, column in measured.missing.items() if column[i]}
        return tuple(part for part in self.weights if lacks & self._needs(part))

    def _needs(self, part: str) -> set[str]:
        """Metrics that the term of a part is made of."""
        needed = {*SYNTAX} if part == "syntax" else {part}
        if self.config.gated:
            needed |= {*GATE, self.config.domain_metric} if part in JUDGES else {*GATE}
        return needed

    def _score(
        self,
        measured: Measured,
        i: int,
        candidate: str,
        reference: str,
        refused: AbstractSet[str],
        lacking: AbstractSet[str],
    ) -> Score:
        parts: dict[str, float | None] = {}
        for name, column in measured.values.items():
            parts[name] = column[i]
            if name == SYNTAX[-1] and "syntax" in self.weights:
                both = [value for n in SYNTAX if (value := measured.values[n][i]) is not None]
                parts["syntax"] = sum(both) / len(SYNTAX) if len(both) == len(SYNTAX) else None
        missing = self._missing(measured, i)
        parts["guard"] = 1.0 if self.config.printed else guard(candidate, reference)
        refused = refused if self.weights.keys() - refused else frozenset()
        left_out = refused | lacking
        terms = {name: term for name, term in self._terms(parts).items() if name not in {*refused, *missing}}
        truth = parts[TRUTH] if self.config.gated and terms else 1.0  # without it there are no terms
        score = Score(None, parts, missing, tuple(sorted(left_out)), terms, cast(float, truth))  # with its total below
        # If nothing else is left to compare, the reports that lack a part leave their group, and no other.
        counted = [name for name in terms if name not in left_out] or ([] if missing else [*terms])
        return replace(score, total=sum(map(score.scaled, counted)) if counted else None)

    def _terms(self, parts: Mapping[str, float | None]) -> dict[str, float]:
        """The weighted parts, the positive ones times guard; 0 for one that a rule skips."""
        values = {name: 0.0 if (value := parts[name]) is None else value for name in self.weights}
        terms = {name: self.weights[name] * max(value, LOWEST.get(name, value)) for name, value in values.items()}
        if self.config.gated:
            terms |= self._consistent(parts, terms)
        guard = cast(float, parts["guard"])
        return {name: guard * term if term > 0 else term for name, term in terms.items()}

    def _consistent(self, parts: Mapping[str, float | None], terms: Mapping[str, float]) -> dict[str, float]:
        """What consistency earns: in proportion to the agreement of the Findings, and nothing if the report contradicts
        its reference. What it loses stays."""
        agreement = 0.0 if parts[CONTRADICTIONS] else parts.get(self.config.domain_metric)
        share = 1.0 if agreement is None else agreement
        return {name: share * terms[name] for name in JUDGES & terms.keys() if terms[name] > 0}
