# ruff: noqa: RUF001
"""What a text says of each finding: present, denied or uncertain, its side, grade, sizes and time course."""

import re
from bisect import bisect_right
from collections.abc import Iterable
from functools import cache, lru_cache

from radflow.rewards.memory import remember
from radflow.rewards.rules.negation import cut_points, piece_bounds, sentences
from radflow.rewards.rules.patterns import read_patterns
from radflow.rewards.rules.terms import TermFile, read_statements
from radflow.rewards.types import Finding

GRADES = ("minimal", "mild", "moderate", "severe")
_FILES: tuple[TermFile, ...] = ("chexpert", "other_findings")
# What explains a finding qualifies it: "opacity consistent with a scar" is one piece.
_CUT = re.compile(r",|\band\b|\bor\b|\bwithout\b|(?<!consistent )(?<!compatible )\bwith\b", re.IGNORECASE)
_JOINS = re.compile(r"and\b|or\b", re.IGNORECASE)
# A piece that speaks of something unnamed qualifies nothing: "cardiomegaly, no acute abnormality, normal contours".
_APART = re.compile(
    r"[\s,]*(?:and |but |with |or )?(?:(?:no|without|otherwise)\b(?! (?:\w+ ){0,3}chang)"
    r"|(?:\w+ ){0,4}(?:contours?|silhouettes?|structures?|vasculature|vascularity)\b)",
    re.IGNORECASE,
)
_NUMBER = r"(?<!\d)(\d++(?:\.\d+)?)"
_TIMES = r"(?:x|×|\*|by)\s*"
_MEASUREMENT = re.compile(
    rf"{_NUMBER}[\s-]*(?:{_TIMES}{_NUMBER}[\s-]*)?(?:{_TIMES}{_NUMBER}[\s-]*)?"
    # a letter of Chinese may follow: "12mm的斑块"
    r"((?:cm/s(?:ec)?|mm|cm|millimet(?:er|re)s?|centimet(?:er|re)s?)(?![a-z0-9])|毫米|厘米(?:/秒)?|[%％])",
    re.IGNORECASE,
)


def read_findings(text: str) -> list[Finding]:
    """Every mention of a finding of a chest radiograph: the 14 labels, and what is abnormal beyond them."""
    return [finding for sentence in sentences(text) for finding in _sentence_findings(sentence)]


@remember
def _sentence_findings(sentence: str) -> tuple[Finding, ...]:
    said = [one for file in _FILES for one in read_statements(file, sentence)]
    if not said:
        return ()
    cuts = _cuts_between(sentence, [one.start for one in said])
    bounds = [piece_bounds(cuts, one.start, one.end) for one in said]
    pieces = {(start, end): sentence[start:end].lower() for start, end in set(bounds)}  # one text for all its mentions
    found = []
    for one, where in zip(said, bounds, strict=True):
        piece, words = pieces[where], sentence[one.start : one.end].lower()
        found.append(Finding(one.name, one.value, *_qualities(piece), words, piece, sentence))
    return tuple(found)


def _cuts_between(sentence: str, starts: list[int]) -> list[int]:
    """Where a sentence is cut so that every piece mentions something.

    A piece without a mention belongs to the one before it ("nodule, stable since 2010"), and to the one after it if
    "and" or "or" joins them ("small right and moderate left effusions").
    """
    cuts = cut_points(_CUT, sentence)
    holding = {bisect_right(cuts, start) - 1 for start in starts}
    first = min(holding)
    owners: list[int] = []
    for number in range(len(cuts) - 1):
        if number in holding or (number > first and _APART.match(sentence, cuts[number], cuts[number + 1])):
            owners.append(number)
        elif number + 1 in holding and _JOINS.match(sentence, cuts[number + 1]):
            owners.append(number + 1)
        else:
            owners.append(owners[-1] if owners else first)
    return [0, *(cuts[n] for n in range(1, len(owners)) if owners[n] != owners[n - 1]), len(sentence)]


@lru_cache(maxsize=256)  # several mentions share a piece, and a thousand do in a text that repeats itself
def _qualities(piece: str) -> tuple[frozenset[str], frozenset[int], frozenset[float], frozenset[str]]:
    tables = _tables()
    sides = frozenset(
        s for name in _named(tables["sides"], piece) for s in (("left", "right") if name == "both" else (name,))
    )
    grades = frozenset(GRADES.index(name) for name in _named(tables["grades"], piece))
    return (
        sides,
        grades,
        frozenset(value for value, unit in measurements(piece) if unit == "mm"),
        frozenset(_named(tables["courses"], piece)),
    )


def measurements(text: str) -> list[tuple[float, str]]:
    """Value and unit of every measurement in a text: lengths in mm, velocities in cm/s, shares in %."""
    found = []
    for match in _MEASUREMENT.finditer(text):
        written = match[4].lower()
        unit = "cm/s" if "/" in written else "%" if written in "%％" else "mm"
        scale = 10 if unit == "mm" and written[0] in "c厘" else 1
        found += [(scale * float(number), unit) for number in match.groups()[:3] if number]
    return found


def _named(table: Iterable[tuple[str, re.Pattern[str]]], piece: str) -> list[str]:
    return [name for name, pattern in table if pattern.search(piece)]


@cache
def _tables() -> dict[str, tuple[tuple[str, re.Pattern[str]], ...]]:
    file = read_patterns("findings")
    return {
        table: tuple((name, file.compile(words, f"{table}.{name}", r"\b(?:{})\b")) for name, words in rows.items())
        for table, rows in file.content.items()
    }
