"""Metrics that fail: a value that one could not give is missing for that report, and the others are asked for again."""

import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from radflow.rewards.config import RewardConfig
from radflow.rewards.types import Fault, Metric

Question = tuple[str, ...]  # name of a metric, then the two texts if it is asked about these alone
LONGEST = 300  # characters of what went wrong


class RewardError(RuntimeError):
    """The reward, or too much of it, cannot be computed."""


@dataclass(frozen=True)
class Caution:
    """What is known of metrics that hung or ended their process when they were asked about the same reports before."""

    alone: frozenset[str] = frozenset()  # asked about one report at a time, to find the one at fault
    refused: Mapping[Question, str] = field(default_factory=dict)  # not asked again -> why
    given_up: Mapping[str, str] = field(default_factory=dict)  # metric -> why it is asked nothing more

    def after(self, asked: Question, why: str, *, patience: int) -> "Caution":
        """With one more failure; a metric is given up after `patience` single questions that it could not answer."""
        name, *texts = asked
        refused = {**self.refused, asked: why} if texts else self.refused
        if sum(one[0] == name for one in refused) >= patience or (not texts and name in self.alone):
            return Caution(self.alone, refused, {**self.given_up, name: why})
        return Caution(self.alone | {name}, refused, self.given_up)


Announce = Callable[[Question | None], None]  # told of every question before it is asked, of None after the last
_ATTEMPT: ContextVar[tuple[Caution, Announce]] = ContextVar("attempt", default=(Caution(), lambda _: None))


@contextmanager
def attempt(caution: Caution, announce: Announce) -> Iterator[None]:
    """Metrics that are asked inside heed `caution`, and what they are asked is announced."""
    token = _ATTEMPT.set((caution, announce))
    try:
        yield
    finally:
        _ATTEMPT.reset(token)


def all_asked() -> None:
    """Say that no metric is being asked any more."""
    _ATTEMPT.get()[1](None)


def ask(
    name: str, metric: Metric, first: Sequence[str], second: Sequence[str], *, together: bool = False
) -> tuple[list[float | None], dict[int, str]]:
    """Values of a metric, and index -> why of those that it failed to give, which are None.

    Reports for which a metric fails are asked about again, each alone, so that only those at fault lack a value.

    Args:
        together: its values depend on all reports, so that it is asked about all or none.
    """
    caution, announce = _ATTEMPT.get()
    failed = dict.fromkeys(range(len(first)), caution.given_up.get(name, ""))
    values: list[float | None] = [None] * len(first)
    if name in caution.given_up:
        return values, failed
    if together or name not in caution.alone:
        announce((name,))
        values, failed = _answer(metric, first, second)
        if together or len(first) == 1:
            return values, failed
    for i in list(failed):
        question = name, first[i], second[i]
        if question in caution.refused:
            failed[i] = caution.refused[question]
            continue
        announce(question)
        (values[i],), why = _answer(metric, [first[i]], [second[i]])
        failed[i] = why.get(0, "")
    return values, {i: why for i, why in failed.items() if why}


def _answer(metric: Metric, first: Sequence[str], second: Sequence[str]) -> tuple[list[float | None], dict[int, str]]:
    """The numbers that a metric answers, and why others are none."""
    values: list[float | None] = [None] * len(first)
    failed = {}
    try:
        found = list(metric(first, second))
        if len(found) != len(first):
            raise ValueError(f"expected one value per report, {len(first)}, got {len(found)}")
    except (Exception, SystemExit) as error:  # whatever a plug-in may raise
        return values, dict.fromkeys(range(len(first)), describe_error(error))
    for i, value in enumerate(found):
        try:
            values[i] = None if value is None else _finite(value)
        except (TypeError, ValueError, OverflowError):
            failed[i] = _shorten(f"expected a finite number or None, got {type(value).__name__} {value!r}")
    return values, failed


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(value)
    return float(value)


def describe_error(error: BaseException) -> str:
    """An exception in one line, with the line of the metric's code that raised it."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if one.filename != __file__ and one.line]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    try:
        text = str(error)
    except Exception:  # its own __str__ may fail
        text = "no message"
    return _shorten(f"{type(error).__name__}: {text}") + where


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."


def describe_faults(faults: Iterable[tuple[str, Fault]], config: RewardConfig, *, num_reports: int) -> list[str]:
    """One line per metric that failed: for how many reports of which studies, and why the first time.

    Args:
        faults: study id and what failed for one of its reports.
        config: says what the plug-in is, and for what share of the reports a metric may fail.
        num_reports: reports that were scored.

    Raises:
        RewardError: a metric failed for more.
    """
    by_part: dict[str, list[tuple[str, Fault]]] = {}
    for study_id, fault in faults:
        by_part.setdefault(fault.part, []).append((study_id, fault))
    lines = []
    for part, found in by_part.items():
        studies = list(dict.fromkeys(study_id for study_id, _ in found))
        more = f" and {len(studies) - 5} more" if len(studies) > 5 else ""
        name = f"plug-in {config.plugin}" if part == config.plugin_name else part
        count = f"{name} failed for {len(found)} of {num_reports} reports"
        first = f"first for study {studies[0]}: {found[0][1].why}"
        if len(found) > config.max_failed * num_reports:
            limit = f"more than the share of {config.max_failed:g} that may fail (reward.max_failed); mend it"
            raise RewardError(f"{count}, {limit}; {first}")
        lines.append(f"{count} and is missing there (studies {', '.join(studies[:5])}{more}); {first}")
    return lines
