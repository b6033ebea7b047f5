"""A reference report as its edits read it: what each sentence states, by the labeler of the reward."""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from radflow.data.sections import render_report
from radflow.evaluation.rewording import as_sentence, listing, read_words
from radflow.rewards.rules.negation import sentences
from radflow.rewards.types import Labeler

_LIST = re.compile(r",\s+(?:and\s+)?|\s+and\s+")


@dataclass(frozen=True)
class Piece:
    """A part of a list, or a whole sentence, and what it states."""

    text: str
    names: frozenset[str]
    """What the labeler finds abnormal in it."""
    sides: frozenset[str]

    @property
    def denial(self) -> str:
        """A sentence that denies what the piece states."""
        side = f"{min(self.sides)} " if len(self.sides) == 1 else ""
        return as_sentence(f"no {side}{listing(plain_names(sorted(self.names)), 'or')}")

    def same(self, other: "Piece") -> bool:
        """Whether both state one finding: a name in common, and no side against it."""
        return bool(self.names & other.names) and bool(not self.sides or not other.sides or self.sides & other.sides)


@dataclass(frozen=True)
class Sentence:
    """A sentence and the pieces that state something; none if it states nothing abnormal."""

    text: str
    pieces: tuple[Piece, ...]
    silent: bool = False
    """It states nothing, neither something abnormal nor that something is normal: advice, or what a dropped finding
    leaves."""


@dataclass(frozen=True)
class Source:
    """A reference report as the edits read it."""

    text: str
    findings: tuple[Sentence, ...]
    impression: tuple[Sentence, ...]
    chosen: Piece | None
    """The finding that the edits of a single one are about; None if nothing abnormal is stated."""
    other: str | None
    """The report of another study."""
    words: Mapping[str, Any]
    """Of the modality: a normal report."""
    made_up: tuple[str, ...]
    """Sentences about findings that the report does not state; where that is possible, does not name."""
    labels: tuple[str, ...]

    @property
    def sections(self) -> tuple[tuple[Sentence, ...], tuple[Sentence, ...]]:
        return self.findings, self.impression


def read_source(
    findings: str, impression: str, labeler: Labeler, *, modality: str, generator: random.Random, other: str | None
) -> Source:
    """Read what a report states; the generator chooses one of its findings, of the Findings if they state any.

    Args:
        modality: chest or carotid.
        other: a report of another study, if there is one.
    """
    described, concluded = _read_section(findings, labeler), _read_section(impression, labeler)
    seen, named = ([piece for sentence in part for piece in sentence.pieces] for part in (described, concluded))
    stated = [*seen, *named]
    chosen = _with_conclusions(generator.choice(seen or named), seen, named, labeler.covers) if stated else None
    text, words = render_report(findings, impression), read_words()[modality]
    return Source(
        text=text,
        findings=described,
        impression=concluded,
        chosen=chosen,
        other=other,
        words=words,
        made_up=_unknown(words["made_up"], text, frozenset().union(*(piece.names for piece in stated)), labeler),
        labels=tuple(label for label in labeler.labels if label != labeler.normal),
    )


def plain_names(names: Iterable[str]) -> list[str]:
    """What a radiologist would call the findings that a labeler names."""
    table = read_words()["names"]
    return list(dict.fromkeys(table.get(name, name.replace("_", " ").lower()) for name in names))


def _with_conclusions(
    chosen: Piece, seen: Iterable[Piece], named: Iterable[Piece], covers: Mapping[str, set[str]]
) -> Piece:
    """The finding with the names that the Impression alone gives it: opacity in the Findings, pneumonia below."""
    known = {name for piece in seen for name in piece.names}
    own = {name for piece in named for name in piece.names} - known
    stand = frozenset(name for name in own if covers.get(name, set()) & chosen.names)
    return replace(chosen, names=chosen.names | stand)


def _unknown(made_up: Sequence[str], text: str, stated: frozenset[str], labeler: Labeler) -> tuple[str, ...]:
    new = tuple(one for one in made_up if not _abnormal(one, labeler) & stated)
    named = set(re.findall(r"\w+", text.lower()))
    # The last word before any "with" names the finding; a report that denies it would contradict itself.
    silent = tuple(one for one in new if re.findall(r"\w+", one.lower().partition(" with ")[0])[-1] not in named)
    return silent or new


def _read_section(text: str, labeler: Labeler) -> tuple[Sentence, ...]:
    return tuple(_read_sentence(one, labeler) for one in sentences(text) if re.search(r"\w", one))


def _read_sentence(text: str, labeler: Labeler) -> Sentence:
    names = _abnormal(text, labeler)
    if not names:
        return Sentence(text, (), silent=not labeler([text])[0])
    stated: list[tuple[str, frozenset[str]]] = []
    waiting = ""
    for part in _parts(text):
        found = _abnormal(part, labeler)
        waiting += part
        if found:
            stated.append((waiting, found))
            waiting = ""
    if len(stated) < 2 or frozenset().union(*(found for _, found in stated)) != names:
        stated = [(text, names)]  # what is denied or hedged from afar cannot be cut off
    elif waiting:  # "..., unchanged" at the end
        stated[-1] = stated[-1][0] + waiting, stated[-1][1]
    pieces = [_piece(part, found) for part, found in stated]
    return Sentence(text, tuple(pieces))


def _parts(text: str) -> list[str]:
    """A sentence cut at the commas and "and" of its lists, these with what follows."""
    cuts = [0, *(match.start() for match in _LIST.finditer(text)), len(text)]
    return [text[start:end] for start, end in pairwise(cuts)]


def _piece(text: str, names: frozenset[str]) -> Piece:
    cleaned = _LIST.sub("", text, count=1) if _LIST.match(text) else text
    sides = {match.lower() for match in re.findall(r"\b(?:left|right)\b", text, re.IGNORECASE)}
    if re.search(r"\b(?:bilateral\w*|both|bibas\w+|biapical)\b", text, re.IGNORECASE):
        sides |= {"left", "right"}
    return Piece(cleaned.strip().rstrip(" ."), names, frozenset(sides))


def _abnormal(text: str, labeler: Labeler) -> frozenset[str]:
    return frozenset(labeler.abnormalities(text) - labeler.ignorable)
