"""Every metric that can be part of a reward or a column of a table: its name, label, what it reads, how it loads."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from rewards.base import ConsistencyJudge, Labeler, Metric
from rewards.bertscore import BertScore
from rewards.chexbert import Chexbert, ChexbertLabels, SembScore
from rewards.chexpert_rules import ChexpertRules
from rewards.config import RewardConfig
from rewards.consistency import ConsistencyRules
from rewards.entity_rules import EntityF1Rules
from rewards.expert import LabelF1
from rewards.judge_config import JudgeConfig
from rewards.keywords import CarotidRules, KeywordMatch
from rewards.lexical import Bleu2, RougeL

# report: both whole texts; text: the same, never re-spaced; findings, impression: these sections of both;
# sections: Findings and Impression of the candidate alone.
Reads = Literal["report", "text", "findings", "impression", "sections"]


class Backends:
    """The models that metrics share, each loaded when the first metric that needs it is."""

    def __init__(self, config: RewardConfig, judge: JudgeConfig) -> None:
        self.config, self._judge = config, judge

    @cached_property
    def rules(self) -> Labeler:
        """The rule labeler; beside CheXbert it is that of chest radiographs."""
        return CarotidRules() if self.config.expert == "carotid_rules" else ChexpertRules()

    @cached_property
    def chexbert(self) -> Chexbert:
        return Chexbert.load(self.config.chexbert)

    @cached_property
    def radgraph(self) -> Metric:
        from rewards.radgraph import RadGraphF1

        return RadGraphF1.load(self.config.radgraph)

    @cached_property
    def judge(self) -> ConsistencyJudge:
        from rewards.judge import ConsistencyLlm

        return ConsistencyLlm.from_config(self._judge)

    def chexbert_labels(self) -> ChexbertLabels:
        return ChexbertLabels(self.chexbert, uncertain=self.config.chexbert.uncertain)


@dataclass(frozen=True)
class Entry:
    """One metric of the catalogue."""

    label: str  # in tables
    reads: Reads
    load: Callable[[Backends], Metric | ConsistencyJudge]


CATALOGUE = {
    "bleu2": Entry("BLEU-2", "report", lambda _: Bleu2()),
    "rouge_l": Entry("ROUGE-L", "report", lambda _: RougeL()),
    "bertscore": Entry("BERTScore", "report", lambda b: BertScore.load(b.config.bertscore)),
    "sembscore": Entry("SembScore", "report", lambda b: SembScore(b.chexbert)),
    "entity_f1_rules": Entry("entity F1 of the Findings (rules)", "findings", lambda _: EntityF1Rules()),
    "keyword_f1_rules": Entry(
        "keyword F1 of the report (rules)", "report", lambda b: KeywordMatch.with_lexicon(b.config.lexicon)
    ),
    "radgraph_f1": Entry("RadGraph F1 of the Findings", "findings", lambda b: b.radgraph),
    "radgraph_f1_report": Entry("RadGraph F1 of the report", "report", lambda b: b.radgraph),
    "consistency_rules": Entry("consistency (rules)", "sections", lambda b: ConsistencyRules(b.rules)),
    "consistency_llm": Entry("consistency (LLM)", "sections", lambda b: b.judge),
    "label_f1_rules": Entry("label F1 of the Impression (rules)", "impression", lambda b: LabelF1(b.rules)),
    "label_f1_chexbert": Entry(
        "label F1 of the Impression (CheXbert)",
        "impression",
        lambda b: LabelF1(b.chexbert_labels(), "label_f1_chexbert"),
    ),
}


def label_of(name: str) -> str:
    """How a table names a metric; one that is not of the catalogue (a plug-in's) by its own name."""
    return CATALOGUE[name].label if name in CATALOGUE else name
