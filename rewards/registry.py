"""Every metric, once: its name, its label in tables, what it reads, which way is better, and how it is loaded.

Rewards, exploration, the table of a run and `evaluate.py` all take their metrics from here.
"""

import importlib
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from radflow.rewards.config import RewardConfig
from radflow.rewards.hierarchy import HierarchicalReward, LabelF1, part_metrics
from radflow.rewards.judge.config import JudgeConfig
from radflow.rewards.measure import Metrics, Reads
from radflow.rewards.memory import MB, remember
from radflow.rewards.metrics.bertscore import BertScore
from radflow.rewards.metrics.chexbert import Chexbert, ChexbertLabels, SembScore
from radflow.rewards.metrics.encoder import in_one_line
from radflow.rewards.metrics.lexical import Bleu, RougeL
from radflow.rewards.metrics.radcliq import SUB_SCORES, RadCliq, radcliq_v0, radcliq_v1
from radflow.rewards.metrics.ratescore import RateScore
from radflow.rewards.metrics.srrbert import SrrBert
from radflow.rewards.metrics.temporal import TemporalF1
from radflow.rewards.radgraph.f1 import Level, RadGraphF1
from radflow.rewards.rules.carotid import CarotidRules
from radflow.rewards.rules.chexpert_rules import ChexpertRules
from radflow.rewards.rules.consistency import ConsistencyRules
from radflow.rewards.rules.entity_rules import EntityF1Rules
from radflow.rewards.rules.errors import ContradictionsRules, FindingErrors, TruthRules
from radflow.rewards.rules.keywords import KeywordMatch
from radflow.rewards.types import Labeler, Metric, Parser

if TYPE_CHECKING:
    from radflow.rewards.metrics.captions import Meteor

LABELERS: dict[str, type[ChexpertRules] | type[CarotidRules]] = {
    "chexpert_rules": ChexpertRules,
    "carotid_rules": CarotidRules,
}
BY_CHARACTER = ("bleu1", "bleu2", "bleu3", "bleu4", "cider", "rouge_l")  # in scripts without blanks
# Names in the logs next to the parts of a reward, alone or after seconds_: no plug-in may have them.
RESERVED = ("total", "syntax", "guard", "rollout", "reward", "update", "std")


class Backends:
    """What metrics are loaded from: config and section parser, the labeler, and the models they share, each loaded when
    the first metric needs it."""

    def __init__(self, config: RewardConfig, parse: Parser, judge: JudgeConfig | None = None) -> None:
        self.config, self.judge = config, judge or JudgeConfig()
        # Metrics, labeler and truth each ask for the sections of the same texts: those of thousands of reports.
        self.parse = remember(parse, most_bytes=16 * MB)
        self._metrics: dict[str, Metric] = {}

    def metric(self, name: str) -> Metric:
        """The metric of this name, the same object whoever asks."""
        if name not in self._metrics:
            self._metrics[name] = remember_last(METRICS[name].load(self))
        return self._metrics[name]

    @cached_property
    def rules(self) -> Labeler:
        """The rule labeler; with CheXbert as expert that of chest radiographs."""
        return LABELERS["carotid_rules" if self.config.expert == "carotid_rules" else "chexpert_rules"](self.parse)

    @cached_property
    def errors(self) -> FindingErrors:
        return FindingErrors(self.rules)

    @cached_property
    def chexbert(self) -> Chexbert:
        return Chexbert.load(self.config.chexbert)

    @cached_property
    def chexbert_labels(self) -> ChexbertLabels:
        return ChexbertLabels(self.chexbert, uncertain=self.config.chexbert.uncertain)

    @cached_property
    def srrbert(self) -> SrrBert:
        return SrrBert.load(self.config.srrbert)

    @cached_property
    def radgraph(self) -> RadGraphF1:
        """At the level of the config."""
        return RadGraphF1.load(self.config.radgraph)

    def graph_f1(self, level: Level) -> RadGraphF1:
        """The same model at another level."""
        return RadGraphF1(self.radgraph.annotate, level=level, cache=self.radgraph.cache)

    def labels(self) -> LabelF1:
        return LabelF1(self.chexbert_labels)

    def everything(self, texts: Sequence[str]) -> list[set[str]]:
        """Labels by rules, and what is abnormal beyond them: two texts without any label need not agree."""
        return [labels | self.rules.abnormalities(text) for text, labels in zip(texts, self.rules(texts), strict=True)]

    def keywords(self) -> KeywordMatch:
        return KeywordMatch.with_lexicon(self.config.lexicon)

    @cached_property
    def meteor(self) -> "Meteor":
        from radflow.rewards.metrics.captions import Meteor  # brings numpy

        return Meteor.load()

    def cider(self) -> Metric:
        from radflow.rewards.metrics.captions import Cider

        return Cider.load()

    def consistency_llm(self) -> Metric:
        from radflow.rewards.judge.llm import ConsistencyLlm  # brings asyncio

        return ConsistencyLlm.from_config(self.judge)

    def radcliq(self, regression: Callable[..., float]) -> RadCliq:
        return RadCliq(regression, [self.metric(name) for name in SUB_SCORES])


@dataclass(frozen=True)
class Entry:
    """One metric of the registry."""

    name: str
    label: str  # in tables
    reads: Reads
    load: Callable[[Backends], Metric]
    # Needed besides rules: bertscore, chexbert, radgraph, meteor, cider, ratescore, temporal, judge, all (RadCliQ).
    model: str | None = None
    better: Literal["higher", "lower"] = "higher"
    together: bool = False  # whether a value depends on all reports that are measured together

    @property
    def section_label(self) -> str:
        """In tables of texts that are a single section."""
        return re.sub(" of the (Findings|Impression|report)", "", self.label)


_ENTRIES = (
    Entry("bleu1", "BLEU-1", "report", lambda _: Bleu(1)),
    Entry("bleu2", "BLEU-2", "report", lambda _: Bleu(2)),
    Entry("bleu3", "BLEU-3", "report", lambda _: Bleu(3)),
    Entry("bleu4", "BLEU-4", "report", lambda _: Bleu(4)),
    Entry("meteor", "METEOR", "report", lambda b: b.meteor, "meteor"),
    Entry("cider", "CIDEr", "report", lambda b: b.cider(), "cider", together=True),
    Entry("rouge_l", "ROUGE-L", "report", lambda _: RougeL()),
    Entry("bertscore", "BERTScore", "report", lambda b: BertScore.load(b.config.bertscore), "bertscore"),
    Entry("sembscore", "SembScore", "report", lambda b: SembScore(b.chexbert), "chexbert"),
    Entry("radgraph_f1", "RadGraph F1 of the Findings", "findings", lambda b: b.radgraph, "radgraph"),
    Entry("radgraph_f1_report", "RadGraph F1 of the report", "report", lambda b: b.radgraph, "radgraph"),
    Entry("radgraph_f1_rexrank", "RadGraph F1 (ReXrank)", "report", lambda b: b.graph_f1("rexrank"), "radgraph"),
    Entry("radgraph_f1_partial", "RadGraph F1 (partial)", "report", lambda b: b.graph_f1("partial"), "radgraph"),
    Entry("radcliq_v0", "RadCliQ-v0", "report", lambda b: b.radcliq(radcliq_v0), "all", "lower"),
    Entry("radcliq_v1", "RadCliQ-v1", "report", lambda b: b.radcliq(radcliq_v1), "all", "lower"),
    Entry("entity_f1_rules", "entity F1 of the Findings (rules)", "findings", lambda _: EntityF1Rules()),
    Entry("keyword_f1_rules", "keyword F1 of the report (rules)", "report", lambda b: b.keywords()),
    Entry("truth_rules", "truth of the findings (rules)", "described", lambda b: TruthRules(b.errors)),
    Entry(
        "contradictions_rules",
        "contradictions (rules)",
        "described",
        lambda b: ContradictionsRules(b.errors),
        None,
        "lower",
    ),
    Entry("consistency_rules", "consistency (rules)", "sections", lambda b: ConsistencyRules(b.rules)),
    Entry("consistency_llm", "consistency (LLM)", "sections", lambda b: b.consistency_llm(), "judge"),
    Entry("label_f1_rules", "label F1 of the Impression (rules)", "impression", lambda b: LabelF1(b.everything)),
    Entry("label_f1_chexbert", "label F1 of the Impression (CheXbert)", "impression", lambda b: b.labels(), "chexbert"),
    Entry("ratescore", "RaTEScore", "report", lambda b: RateScore.load(b.config.ratescore), "ratescore"),
    Entry("temporal_f1", "temporal F1", "report", lambda b: TemporalF1.load(b.config.temporal), "temporal"),
)
METRICS = {entry.name: entry for entry in _ENTRIES}


def label_of(name: str, *, one_section: bool = False, by_character: bool = False) -> str:
    """Label of a metric in a table, of single sections or of references that are compared by character."""
    label = METRICS[name].section_label if one_section else METRICS[name].label
    return f"{label} by character" if by_character and name in BY_CHARACTER else label


def remember_last(metric: Metric) -> Metric:
    """The metric with a memory of its last answer: reward and table often ask for the same reports one after the other.

    The whole call and not single texts: a model's last digits depend on what shares its batches, and a reward must not
    depend on what was scored before.
    """

    @lru_cache(maxsize=1)
    def last(first: tuple[str, ...], second: tuple[str, ...]) -> list[float | None]:
        return list(metric(list(first), list(second)))

    return lambda first, second: last(tuple(first), tuple(second))


def load_plugin(path: str) -> Metric:
    """A user's reward function: f(candidates, references) of whole texts as written, one finite number or None each.

    None means that the value could not be computed, not that it is bad. The module in `module:function` must be
    importable, in the reward's worker processes too; ValueError if it or its function is not there.
    """
    module, _, attribute = path.partition(":")
    function = getattr(_import_plugin(module, path), attribute, None)
    if not callable(function):
        raise ValueError(f"reward.plugin {path}: expected a function {attribute} in {module}, got {function!r}")
    return function


def _import_plugin(module: str, path: str) -> ModuleType:
    """The module; a ValueError in one line says where in which file it failed."""
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module is a user's program: it fails as one, or ends itself
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"reward.plugin {path}: {error}; put its folder on PYTHONPATH") from error
        if isinstance(error, SyntaxError):
            where = f"{error.filename or module}:{error.lineno or 1}"  # neither, of a file with NUL
        else:
            frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith("<")]
            where = f"{frames[-1].filename}:{frames[-1].lineno}"
        raise ValueError(
            f"reward.plugin {path}: {where}: {in_one_line(error)}; correct it: `python -c 'import {module}'` "
            "must succeed"
        ) from error


def load_metrics(names: Sequence[str], backends: Backends) -> Metrics:
    """The named metrics, and the plug-in of the config after them; ValueError if a name is unknown or taken, or a model
    is not there."""
    path, plugin = backends.config.plugin, backends.config.plugin_name
    names = [name for name in dict.fromkeys(names) if name != plugin or name in METRICS]
    if unknown := [name for name in names if name not in METRICS]:
        known = ", ".join(METRICS)
        raise ValueError(f"expected metrics among {known} and the function of reward.plugin, got {unknown[0]!r}")
    metrics: dict[str, tuple[Reads, Metric]] = {name: (METRICS[name].reads, backends.metric(name)) for name in names}
    if path is not None and plugin is not None:
        if plugin in METRICS or plugin in RESERVED:
            raise ValueError(f"reward.plugin {path}: the name {plugin} is taken; rename the function")
        metrics[plugin] = "text", remember_last(load_plugin(path))
    together = [name for name in names if METRICS[name].together]
    return Metrics(backends.parse, metrics, together=together)


def build_reward(
    config: RewardConfig,
    parse: Parser,
    *,
    judge: JudgeConfig | None = None,
    explore: Sequence[str] = (),
    also: Sequence[str] = (),
    backends: Backends | None = None,
) -> HierarchicalReward:
    """The reward with its models.

    Args:
        judge: the language model that is asked, if the config asks one.
        explore: metrics that exploration ranks studies by.
        also: further metrics, for tables.
        backends: of the same config, parser and judge, if some are loaded already.

    Raises:
        ValueError: a model is not there; an unknown metric; exploration by a metric of which less is better, or
            that depends on other reports.
    """
    known = [METRICS[name] for name in explore if name in METRICS]
    if unfit := [entry.name for entry in known if entry.better == "lower" or entry.together]:
        wanted = "that do not depend on other reports and of which more is better"
        raise ValueError(f"expected metrics to explore by {wanted}, got {unfit[0]}")
    backends = backends or Backends(config, parse, judge)
    metrics = load_metrics([*part_metrics(config), *explore, *also], backends)
    return HierarchicalReward(config, metrics=metrics, errors=backends.errors)
