"""How serious a finding is, by its name, grade, time course and words: what "no acute abnormality" may leave out."""

import re
from bisect import bisect_right
from collections.abc import Sequence, Set
from functools import cache, lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any

from radflow.rewards.memory import remember
from radflow.rewards.rules.findings import GRADES
from radflow.rewards.rules.patterns import read_patterns
from radflow.rewards.types import Finding

_SHADOWS = ("Lung Opacity", "Lung Lesion")


def is_minor(finding: Finding) -> bool:
    """It is old, chronic or harmless by nature, or of a small grade: "no acute abnormality" may be said next to it."""
    new, old = "recent" in finding.courses, "old" in finding.courses
    if names_it("words.emergency", finding) or names_it("words.serious", finding):
        return old and not new
    if finding.name in names("incidental"):
        return True
    if new:
        return False
    grade = max(finding.grades, default=None)
    if old or is_chronic(finding):
        return not _acute_by_nature(finding) or grade is None or grade <= GRADES.index("mild")
    if grade is not None and grade <= _limit(finding):
        return True
    slight = searches("words.slight", finding.piece) and not searches("words.collapse", finding.piece)
    small = grade is None or grade <= GRADES.index("mild")
    ungraded = grade is None and finding.name in names("ungraded")
    return ungraded or (small and slight and not _acute_by_nature(finding))


def find_serious(findings: Sequence[Finding]) -> set[Finding]:
    """What a text asserts or suspects that is not minor.

    An opacity with harmless causes only, named in its sentence, is minor; and a mention without grade and time course
    repeats the certain one that has them.
    """
    present = [one for one in findings if one.value != 0]
    told = {one.name for one in present if one.value == 1 and (one.grades or one.courses)}
    kept = [one for one in present if one.grades or one.courses or one.name not in told]
    serious = set()
    for _, sentence in groupby(kept, key=lambda one: one.sentence):
        said = {*sentence}
        named = {one.name for one in said}
        serious |= {one for one in said if not is_minor(one) and not _explained(one, named)}
    return serious


def _explained(finding: Finding, named: Set[str]) -> bool:
    """The findings named in its sentence are harmless causes of this one."""
    causes = named - {finding.name, *_SHADOWS}
    if finding.name not in _SHADOWS or "recent" in finding.courses or not causes:
        return False
    if searches("words.explains", finding.sentence):
        return causes <= names("harmless_cause") | names("lookalike")
    return finding.name == "Lung Opacity" and causes <= names("harmless_cause")


def is_chronic(finding: Finding) -> bool:
    """Its words say that it is harmless by nature."""
    return searches("words.chronic", finding.piece)


def is_acute(finding: Finding) -> bool:
    """It is not minor, and no Impression may leave it out."""
    return not is_minor(finding) and (_acute_by_nature(finding) or names_it("words.emergency", finding))


def _acute_by_nature(finding: Finding) -> bool:
    return finding.name in names("acute") and not _is_congestion(finding)


def _is_congestion(finding: Finding) -> bool:
    return finding.name == "Edema" and searches("words.congestion", finding.mention)


# A thousand findings share a sentence, or a piece of it, in a text that never ends one.
@remember
def searches(entry: str, text: str) -> bool:
    """Whether a pattern of consistency.toml, "table.name", is in a text."""
    return _pattern(entry).search(text) is not None


def names_it(entry: str, finding: Finding) -> bool:
    """Whether a pattern is found where the finding is mentioned, and not elsewhere in its piece."""
    start = finding.piece.find(finding.mention)
    found = _spans(entry, finding.piece)
    number = bisect_right(found, start, key=itemgetter(1))  # the first that does not end before the mention
    return number < len(found) and found[number][0] < start + len(finding.mention)


@lru_cache(maxsize=256)
def _spans(entry: str, text: str) -> tuple[tuple[int, int], ...]:
    return tuple(match.span() for match in _pattern(entry).finditer(text))


def names(kind: str) -> frozenset[str]:
    return _names()[kind]


def _limit(finding: Finding) -> int:
    """Index of the largest grade at which a finding is minor; -1 for none."""
    limits = _content()["minor_up_to"]
    grade = "mild" if _is_congestion(finding) else limits.get(finding.name, "mild")
    return -1 if grade == "never" else GRADES.index(grade)


@cache
def _names() -> dict[str, frozenset[str]]:
    return {kind: frozenset(listed) for kind, listed in _content()["names"].items()}


@cache
def _pattern(entry: str) -> re.Pattern[str]:
    table, name = entry.split(".")
    return read_patterns("consistency").compile(_content()[table][name], entry, r"\b(?:{})\b")


def _content() -> dict[str, Any]:
    return read_patterns("consistency").content
