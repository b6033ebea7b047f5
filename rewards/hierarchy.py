"""The hierarchical reward: global parts over the whole report, a local part for the Impression (paper eq. 4 to 7)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rewards.base import Score
from rewards.chexpert_rules import ChexpertRules
from rewards.consistency import ConsistencyRules
from rewards.entity_rules import EntityF1Rules
from rewards.expert import LabelF1
from rewards.keywords import CarotidRules
from rewards.lexical import Bleu2, RougeL

LABELERS = {"chexpert_rules": ChexpertRules, "carotid_rules": CarotidRules}


class Sections(Protocol):
    """What a section parser returns."""

    findings: str
    impression: str
    status: str  # "ok", or what is wrong


@dataclass(frozen=True)
class RewardConfig:
    """Weights of R = syntax R_syntax + domain R_domain + consistent R_consistent + gamma R_imp."""

    expert: Literal["chexpert_rules", "carotid_rules"] = "chexpert_rules"
    """Labeler behind the Impression expert, the consistency judge and criticality."""
    syntax: float = 1.0
    """Weight of the mean of BLEU-2 and ROUGE-L over the whole report, in [0, 1]."""
    domain: float = 1.0
    """Weight of the entity F1 of the Findings, in [0, 1]."""
    consistent: float = 1.0
    """Weight of the consistency of Findings and Impression, -1 or 1."""
    gamma: float = 1.0
    """Weight of the label F1 of the Impression, in [0, 1]."""
    workers: int = 1
    """Processes that score groups while others are decoded; 0 scores in the main process. It changes no number."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"expected reward.workers of at least 0, got {self.workers}")
        weights = (self.syntax, self.domain, self.consistent, self.gamma)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(f"expected reward weights not negative and not all zero, got {weights}")


class HierarchicalReward:
    """Reward of generated reports against their references; with all weights 1 a perfect report gets 4.

    Parser rule: where the headers of a candidate are missing or ambiguous, its whole text is compared with the
    reference Findings, the consistency is -1 (no two sections to agree) and the Impression part is skipped: it adds
    nothing. A reference without Impression skips that part for every candidate.
    """

    def __init__(
        self, parse: Callable[[str], Sections], *, config: RewardConfig, expert: LabelF1, judge: ConsistencyRules
    ) -> None:
        self.parse, self.config, self.expert, self.judge = parse, config, expert, judge
        self.bleu2, self.rouge_l, self.domain = Bleu2(), RougeL(), EntityF1Rules()

    @classmethod
    def from_config(cls, config: RewardConfig, parse: Callable[[str], Sections]) -> "HierarchicalReward":
        labeler = LABELERS[config.expert]()
        return cls(parse, config=config, expert=LabelF1(labeler), judge=ConsistencyRules(labeler))

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[Score]:
        written, expected = [self.parse(c) for c in candidates], [self.parse(r) for r in references]
        whole = [s.findings if s.status == "ok" else text for s, text in zip(written, candidates, strict=True)]
        bleu2, rouge_l = self.bleu2(candidates, references), self.rouge_l(candidates, references)
        domain = self.domain(whole, [s.findings for s in expected])
        consistent = self.judge(
            [s.findings if s.status == "ok" else "" for s in written], [s.impression for s in written]
        )
        labels = self.expert([s.impression for s in written], [s.impression for s in expected])
        judged = [c.status == "ok" and bool(r.impression) for c, r in zip(written, expected, strict=True)]
        return [
            self._score(b, r, d, c, value if known else None)
            for b, r, d, c, value, known in zip(bleu2, rouge_l, domain, consistent, labels, judged, strict=True)
        ]

    def _score(self, bleu2: float, rouge_l: float, domain: float, consistent: float, labels: float | None) -> Score:
        config, syntax = self.config, (bleu2 + rouge_l) / 2
        total = config.syntax * syntax + config.domain * domain + config.consistent * consistent
        total += 0.0 if labels is None else config.gamma * labels
        parts = {
            "bleu2": bleu2,
            "rouge_l": rouge_l,
            "syntax": syntax,
            self.domain.name: domain,
            self.judge.name: consistent,
            self.expert.name: labels,
        }
        return Score(total, parts)
