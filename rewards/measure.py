"""Several metrics of the same reports, each given the sections that it reads."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rewards.base import ConsistencyJudge, Metric, Sections
from rewards.catalogue import CATALOGUE, Backends, Reads
from rewards.plugin import Plugin

Parser = Callable[[str], Sections]
# What stands beside the parts of a reward in its logs, and in the metrics of a step behind seconds_.
TAKEN = ("total", "syntax", "guard", "rollout", "reward", "update", "std")


@dataclass(frozen=True)
class Measured:
    """Values of each metric, one a report, and where the time went."""

    values: Mapping[str, list[float | None]]  # None: skipped, or missing
    missing: Mapping[str, list[bool]]  # whether a value could not be computed
    seconds: Mapping[str, float]


class Metrics:
    """Metrics by name, over the same reports.

    Parser rule: where the headers of a candidate are missing or ambiguous, its whole text is compared with the
    reference Findings, it is inconsistent (-1: no two sections to agree), and metrics of the Impression skip it. What
    the reference lacks is skipped for every candidate.

    Args:
        parse: section parser.
        metrics: name -> what it reads, and the metric.
    """

    def __init__(self, parse: Parser, metrics: Mapping[str, tuple[Reads, Metric | ConsistencyJudge]]) -> None:
        self.parse = parse
        self.metrics = {name: (reads, _LastCall(metric)) for name, (reads, metric) in metrics.items()}

    @classmethod
    def load(cls, parse: Parser, names: Sequence[str], backends: Backends, plugin: str | None = None) -> "Metrics":
        """The named metrics of the catalogue, and the plug-in.

        Raises:
            ValueError: an unknown name, a name taken, or a model that is not there.
        """
        if unknown := [name for name in names if name not in CATALOGUE]:
            raise ValueError(f"expected metrics among {', '.join(CATALOGUE)}, got {unknown[0]!r}")
        metrics = {name: (CATALOGUE[name].reads, CATALOGUE[name].load(backends)) for name in names}
        if plugin is not None:
            function = Plugin.load(plugin)
            if function.name in CATALOGUE or function.name in TAKEN:
                raise ValueError(f"reward.plugin {plugin}: the name {function.name} is taken; rename the function")
            metrics[function.name] = "text", function
        return cls(parse, metrics)

    def only(self, names: Sequence[str]) -> "Metrics":
        """Some of these metrics, in this order. They share their memory of the last call with the others."""
        part = Metrics(self.parse, {})
        part.metrics = {name: self.metrics[name] for name in names}
        return part

    def __call__(self, candidates: Sequence[str], references: Sequence[str], *, respaced: bool = False) -> Measured:
        """Every metric of every report.

        Args:
            respaced: give metrics of whole reports every run of white space as one space. Line breaks glue words
                together for BLEU (".\\nthe" is one word), so that it would pay to guess where a reference breaks lines.
        """
        read = _read(self.parse, candidates, references, respaced=respaced)
        values, missing, seconds = {}, {}, {}
        for name, (reads, metric) in self.metrics.items():
            began = time.perf_counter()
            places, first, second = read[reads]
            found = metric(first, second)
            seconds[name] = time.perf_counter() - began
            # A candidate without two sections is inconsistent, and no judge need be asked.
            column: list[float | None] = [-1.0 if reads == "sections" else None] * len(candidates)
            lacks = [False] * len(candidates)
            for place, value in zip(places, found, strict=True):
                column[place], lacks[place] = value, value is None
            values[name], missing[name] = column, lacks
        return Measured(values, missing, seconds)


class _LastCall:
    """A metric that remembers its last answer: reward and table often ask for the same reports one after the other.

    The whole call and not single texts: a model's last digits depend on what shares its batches, and a reward must not
    depend on what was scored before.
    """

    def __init__(self, metric: Metric | ConsistencyJudge) -> None:
        self.metric, self._asked, self._values = metric, None, []

    def __call__(self, first: Sequence[str], second: Sequence[str]) -> list[float | None]:
        asked = (tuple(first), tuple(second))
        if asked != self._asked:
            self._values = list(self.metric(first, second)) if first else []
            self._asked = asked  # only now: a metric that raised has no answer to remember
        return self._values


_Pairs = tuple[list[int], list[str], list[str]]  # places of the reports that have both sides, and these


def _read(
    parse: Parser, candidates: Sequence[str], references: Sequence[str], *, respaced: bool
) -> dict[Reads, _Pairs]:
    """What a metric is given, by what it reads."""
    written, expected = [parse(c) for c in candidates], [parse(r) for r in references]
    everything = list(range(len(candidates)))
    sound = [i for i in everything if written[i].status == "ok"]
    described = [i for i in everything if expected[i].findings]
    concluded = [i for i in sound if expected[i].impression]
    findings = [w.findings if w.status == "ok" else c for w, c in zip(written, candidates, strict=True)]
    spaced = _respaced if respaced else list
    return {
        "text": (everything, list(candidates), list(references)),
        "report": (everything, spaced(candidates), spaced(references)),
        "findings": (described, [findings[i] for i in described], [expected[i].findings for i in described]),
        "impression": (
            concluded, [written[i].impression for i in concluded], [expected[i].impression for i in concluded]
        ),
        "sections": (sound, [written[i].findings for i in sound], [written[i].impression for i in sound]),
    }  # fmt: skip


def _respaced(texts: Sequence[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]
