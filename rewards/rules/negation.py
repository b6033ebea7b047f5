# ruff: noqa: RUF001
"""Is what a sentence mentions present, absent, uncertain, or not a statement about this examination at all?

Words that deny or hedge ("cues") come before or after a mention. A cue reaches a mention if nothing between them ends
its reach: a list hands a denial on from item to item; a verb, "but" or "with" ends it. lexicons/negation.toml has the
cues and what ends their reach.

Idea: NegEx (Chapman et al., J Biomed Inform 34, 2001). The word lists and the scope rules are this project's own.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from operator import itemgetter

from radflow.rewards.memory import remember
from radflow.rewards.rules.elsewhere import without_other_sections
from radflow.rewards.rules.patterns import read_patterns
from radflow.rewards.rules.report_text import tidy

REACH = 300  # characters

# A line that goes on in lower case was wrapped; a line that starts with a capital or a bullet is a new statement.
_ENDS = (
    r"(?<=[.!;])\s",
    r"(?<=\w\?)\s",
    r"(?<=[a-z)]\.)(?=[A-Z])",
    r"\n\n",
    r"\n(?=[A-Z0-9*•-])",
    r"(?:(?<=\s)|(?<=^))\d{1,2}[.)]\s+(?=[A-Z])",
    r"[。；！？]",
)
_SENTENCE_END = re.compile("|".join(_ENDS))


@dataclass(frozen=True)
class Cues:
    """Patterns of lexicons/negation.toml."""

    before: re.Pattern[str]
    """Cues before a mention; the name of the group that matches is what they make of it."""
    after: Mapping[str, re.Pattern[str]]
    """What they make of a mention -> cues after it."""
    ends: Mapping[str, re.Pattern[str]]
    """What ends the reach of cues: clause, stop, list, cause."""
    earlier: re.Pattern[str]
    """What is told of another time."""


@cache
def load_cues() -> Cues:
    file = read_patterns("negation")
    before, after, ends = (
        {name: file.compile(cues, f"{table}.{name}") for name, cues in file.content[table].items()}
        for table in ("before", "after", "ends")
    )
    groups = "|".join(f"(?P<{name}>{cues.pattern})" for name, cues in before.items())
    earlier = file.compile(file.content["earlier"], "earlier", r"\b(?:{})")
    return Cues(re.compile(groups, re.IGNORECASE), after, ends, earlier)


@lru_cache(maxsize=256)  # a text that repeats itself has the same words around a mention each time
def polarity(before: str, mention: str, after: str) -> int | None:
    """Value of a mention from the words around it in its clause.

    Returns:
        1 present, 0 denied, -1 uncertain, None if the clause asks, plans or tells of another time.
    """
    cues = load_cues()
    # All of a mention but its last word counts as before it: "the heart is not enlarged" denies an enlargement.
    before += mention[: mention.rstrip().rfind(" ") + 1]
    last = {cue.lastgroup: cue for cue in cues.before.finditer(before)}  # the last of a kind reaches furthest
    found = {kind for kind, cue in last.items() if _reaches(cue, before, after, cues.ends)}
    if "other" in found or cues.after["other"].match(after):
        return None
    if "anyhow" in found or cues.after["uncertain"].match(after):
        return -1
    if "denied" in found or cues.after["denied"].match(after):
        return 0
    return -1 if "uncertain" in found else 1


def _reaches(cue: re.Match[str], before: str, after: str, ends: Mapping[str, re.Pattern[str]]) -> bool:
    """Nothing between a cue and the mention ends its reach; what hedges a cause hedges the finding named as one."""
    if cue.lastgroup == "anyhow":
        return True
    if ends["stop"].search(before, cue.end()):
        return False
    if cue.lastgroup != "denied":
        return True
    # "no A or B, C": C is a new statement, unless the list has another "or" to come
    over = ends["list"].search(before, cue.end()) and not ends["listed"].match(after)
    return not over and not ends["cause"].search(before, cue.end())


def mentions(pattern: re.Pattern[str], sentence: str) -> list[tuple[re.Match[str], int | None]]:
    """Every match of a pattern in a sentence, with its polarity within its clause."""
    found = [*pattern.finditer(sentence)]
    if not found:
        return []
    cues = load_cues()
    cuts, told = cut_points(cues.ends["clause"], sentence), _spans(cues.earlier, sentence)
    judged: list[tuple[re.Match[str], int | None]] = []
    for match in found:
        number = bisect_right(told, match.start(), key=itemgetter(0))
        if number and match.start() < told[number - 1][1]:
            judged.append((match, None))
            continue
        start, end = piece_bounds(cuts, match.start(), match.end())
        # no cue reaches further than REACH; without a bound a text that never ends a sentence takes quadratic time
        start, end = max(start, match.start() - REACH), min(end, match.end() + REACH)
        value = polarity(sentence[start : match.start()], match.group(), sentence[match.end() : end])
        judged.append((match, value))
    return judged


@lru_cache(maxsize=64)  # everything that a sentence mentions asks for the same
def _spans(pattern: re.Pattern[str], sentence: str) -> tuple[tuple[int, int], ...]:
    return tuple(match.span() for match in pattern.finditer(sentence))


@lru_cache(maxsize=64)
def cut_points(cut: re.Pattern[str], sentence: str) -> tuple[int, ...]:
    """Where a pattern cuts a sentence into pieces, its start and end included."""
    return (0, *(start for start, _ in _spans(cut, sentence)), len(sentence))


def piece_bounds(cuts: Sequence[int], start: int, end: int) -> tuple[int, int]:
    """Start and end of the piece, or the run of pieces, that holds sentence[start:end]."""
    return cuts[bisect_right(cuts, start) - 1], cuts[bisect_left(cuts, end)]


@remember  # every part of a reward asks for those of the same report
def sentences(text: str) -> tuple[str, ...]:
    """Sentences of a text, with single spaces; the numbers of a list and sections about other parts of the body belong
    to none.
    """
    pieces = _SENTENCE_END.split(without_other_sections(tidy(text)))
    return tuple(" ".join(piece.split()) for piece in pieces if piece and piece.strip())
