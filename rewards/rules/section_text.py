# ruff: noqa: RUF001
"""A section as its sentences: where each is, what it says, and which ones of two sections correspond."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from radflow.rewards.memory import remember
from radflow.rewards.rules.negation import sentences
from radflow.rewards.types import Labeler
from radflow.rewards.unspaced import CHARACTER

SIMILAR = 0.5  # Dice overlap of the words of two sentences that say something of the same thing
_GAP = re.compile(r"\s*(?:\d{1,2}[.)]\s*)?")  # between sentences: white space, the number of a list
_ENDS = re.compile(r"[.!?;:。；！？]\Z")
_WORD = re.compile(rf"(?<!\.)[a-z0-9.]*[a-z0-9]|(?=\w){CHARACTER}")
_PART = re.compile(r",|\band\b|(?=\bwith(?:out)?\b)", re.IGNORECASE)
_SIDES = frozenset({"left", "right"})

Topic = tuple[str, str, bool]  # finding, side or empty, asserted or denied
Detail = tuple[Topic, int, frozenset[int]]  # value, grades


@dataclass(frozen=True)
class Sentence:
    """A sentence and what it says."""

    text: str
    start: int  # in its section
    end: int
    details: frozenset[Detail]
    normal: bool  # a part of it calls something normal without naming a finding
    words: frozenset[str]

    @property
    def topics(self) -> frozenset[Topic]:
        return frozenset(topic for topic, _, _ in self.details)

    @property
    def asserts(self) -> frozenset[str]:
        return frozenset(name for name, _, asserted in self.topics if asserted)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(name for name, _, _ in self.topics)


@dataclass(frozen=True)
class Section:
    text: str
    sentences: tuple[Sentence, ...]

    @property
    def topics(self) -> frozenset[Topic]:
        return all_topics(self.sentences)

    @property
    def asserted(self) -> frozenset[Topic]:
        return frozenset(topic for topic in self.topics if topic[2])

    @property
    def normal(self) -> bool:
        """Something is called normal, and nothing asserted."""
        return not self.asserted and any(sentence.normal for sentence in self.sentences)

    def without(self, index: int) -> str:
        """The section without a sentence, and without the white space or the number of a list next to it."""
        start, end = self.sentences[index].start, self.sentences[index].end
        if index + 1 < len(self.sentences):
            following = self.sentences[index + 1].start
            end = following if _GAP.fullmatch(self.text, end, following) else end
        elif index:
            before = self.sentences[index - 1].end
            start = before if _GAP.fullmatch(self.text, before, start) else start
        return (self.text[:start] + self.text[end:]).strip()

    def replaced(self, index: int, text: str) -> str:
        sentence = self.sentences[index]
        return self.text[: sentence.start] + text + self.text[sentence.end :]

    def added(self, index: int, text: str) -> str | None:
        """The section with a text before this sentence; None if the sentence before it has no end."""
        if index == 0:
            start = self.sentences[0].start if self.sentences else 0
            return f"{self.text[:start]}{text} {self.text[start:]}"
        before = self.sentences[index - 1]
        if not _ENDS.search(before.text):
            return None
        return f"{self.text[: before.end]} {text}{self.text[before.end :]}"


class SectionReader:
    """Text -> its sentences, read by a labeler; remembers what it was asked."""

    def __init__(self, labeler: Labeler) -> None:
        self.labeler = labeler
        self._remembered = remember(self._read)

    def __call__(self, text: str) -> Section:
        return self._remembered(text)

    def _read(self, text: str) -> Section:
        found, cursor = [], 0
        for sentence in sentences(text):
            words = r"\s+".join(map(re.escape, sentence.split()))
            match = re.compile(rf"{words}[。；！？]?").search(text, cursor)
            if match is not None:
                cursor = match.end()
                found.append(self._sentence(match))
        return Section(text, tuple(found))

    def _sentence(self, match: re.Match[str]) -> Sentence:
        text = " ".join(match[0].split())
        details = frozenset(
            ((finding.name, side, finding.value != 0), finding.value, finding.grades)
            for finding in self.labeler.findings(text)
            for side in finding.sides or {""}
        )
        return Sentence(text, *match.span(), details, self._calls_normal(text), frozenset(_WORD.findall(text.lower())))

    def _calls_normal(self, sentence: str) -> bool:
        parts = _PART.split(sentence)
        return any(self.labeler.normal in self.labeler([p])[0] for p in parts if not self.labeler.findings(p))


def all_topics(listed: Iterable[Sentence]) -> frozenset[Topic]:
    return frozenset[Topic]().union(*(sentence.topics for sentence in listed))


def align(first: Sequence[Sentence], second: Sequence[Sentence]) -> Mapping[int, int]:
    """Indices of sentences that correspond, in order: of all such alignments the one of the greatest likeness."""
    best: list[list[tuple[float, dict[int, int]]]] = [[(0.0, {})] * (len(second) + 1)]
    for i, one in enumerate(first):
        row: list[tuple[float, dict[int, int]]] = [(0.0, {})]
        for k, other in enumerate(second):
            likeness, pairs = _likeness(one, other), best[i][k]
            with_both = (pairs[0] + likeness, {**pairs[1], i: k}) if likeness else pairs
            row.append(max(with_both, best[i][k + 1], row[k], key=lambda found: found[0]))
        best.append(row)
    return best[-1][-1][1]


def _likeness(first: Sentence, second: Sentence) -> float:
    """3 for the same text, 2 for the same findings, up to 1 for similar words; 0 for sentences of different things."""
    if first.text.casefold() == second.text.casefold():
        return 3
    if first.topics and first.topics == second.topics and first.normal == second.normal:
        return 2
    if first.words & _SIDES != second.words & _SIDES or (first.names and second.names and first.names != second.names):
        return 0
    overlap = dice(first, second)
    return overlap if overlap >= SIMILAR else 0


def ended(text: str) -> str:
    """A sentence with a full stop, if it has no other end."""
    return text if _ENDS.search(text) else f"{text}."


def dice(first: Sentence, second: Sentence) -> float:
    return 2 * len(first.words & second.words) / max(1, len(first.words) + len(second.words))
