"""What a text says and its reference does not: measurements, advice, another word for a side or a grade."""

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache

from radflow.rewards.memory import remember
from radflow.rewards.rules.findings import GRADES, measurements
from radflow.rewards.rules.negation import sentences
from radflow.rewards.rules.patterns import read_patterns
from radflow.rewards.unspaced import CHARACTER

TOLERANCE = 0.1  # of a measurement: rounding is no error
_LETTERS = re.compile(r"[a-z]{3,}")
_WORD = re.compile(rf"(?<!\.)[a-z0-9.]*[a-z0-9]|{CHARACTER}")
_SIDE = re.compile(r"\b(?:(left|levo)|right|dextro)[a-z]*", re.IGNORECASE)


@dataclass(frozen=True)
class Change:
    """A sentence with other words for side or grade than that of the reference."""

    sentence: str
    side: bool
    steps: int
    """Largest difference of a grade."""


@dataclass(frozen=True)
class _Masked:
    """A sentence without its words for side and grade, and these, in their order."""

    words: str
    sides: tuple[str, ...]
    grades: tuple[int, ...]

    def compare(self, other: "_Masked") -> tuple[bool, int]:
        """Whether a side is another one, and by how much a grade is; a word left out or added is not compared."""
        other_side = len(self.sides) == len(other.sides) and self.sides != other.sides
        steps = [abs(a - b) for a, b in zip(self.grades, other.grades, strict=False)]
        return other_side, max(steps) if steps and len(self.grades) == len(other.grades) else 0


def new_measurements(text: str, reference: str) -> list[str]:
    """Measurements of a text that its reference does not have."""
    true: dict[str, list[float]] = {}
    for value, unit in sorted(set(measurements(reference))):
        true.setdefault(unit, []).append(value)
    return [f"{value:g} {unit}" for value, unit in measurements(text) if not _is_near(value, true.get(unit, ()))]


def _is_near(value: float, true: Sequence[float]) -> bool:
    """Whether the next smaller or the next larger of these sorted values is within TOLERANCE; no other is nearer."""
    above = bisect_left(true, value)
    return any(abs(value - v) <= TOLERANCE * v for v in true[max(0, above - 1) : above + 1])


def new_advice(text: str, reference: str) -> list[str]:
    """Sentences that advise what no advice of the reference speaks of."""
    given = [sentence for sentence in sentences(text) if _advises(sentence)]
    known = {_letters(sentence) for sentence in sentences(reference) if _advises(sentence)} if given else set()
    if not known:
        return given
    holding: dict[str, int] = {}  # word -> a bit for each known advice that has it
    for number, words in enumerate(known):
        for word in words:
            holding[word] = holding.get(word, 0) | 1 << number
    return [one for one in given if not _share_half(_letters(one), holding, len(known))]


def _share_half(words: Set[str], holding: Mapping[str, int], num_known: int) -> bool:
    """Whether half of the words or more are in one of the known advices; all of these are counted at once.

    Counters in binary, integer d with the d-th digit of each. They start so that the last word needed overflows.
    """
    needed = (len(words) + 1) // 2
    start = (1 << needed.bit_length()) - needed
    digits = [((1 << num_known) - 1) * (start >> d & 1) for d in range(needed.bit_length())]
    for carry in filter(None, map(holding.get, words)):
        for d, digit in enumerate(digits):
            digits[d], carry = digit ^ carry, digit & carry
        if carry:
            return True
    return not needed


def changed_sentences(text: str, reference: str) -> Iterator[Change]:
    """Sentences that are those of the reference but for words of side or grade, if the text says the latter nowhere."""
    written = {masked: sentence for sentence in sentences(text) if (masked := _mask(sentence)).sides or masked.grades}
    expected: dict[str, set[_Masked]] = {}  # by their words
    for masked in map(_mask, sentences(reference)):
        expected.setdefault(masked.words, set()).add(masked)
    nowhere = {words: same for words, same in expected.items() if not any(other in written for other in same)}
    for masked, sentence in written.items():
        if same := nowhere.get(masked.words):
            side, steps = min(masked.compare(other) for other in same)
            yield Change(sentence, side, steps)


@remember
def _mask(sentence: str) -> _Masked:
    sides = tuple("left" if match[1] else "right" for match in _SIDE.finditer(sentence))
    grades = tuple(GRADES.index(str(match.lastgroup)) for match in _grades().finditer(sentence))
    words = _WORD.findall(_grades().sub(" ", _SIDE.sub(" ", sentence)).lower())
    return _Masked(" ".join(words), sides, grades)


@cache
def _grades() -> re.Pattern[str]:
    file = read_patterns("findings")
    named = "|".join(
        f"(?P<{name}>{file.compile(words, name).pattern})" for name, words in file.content["grades"].items()
    )
    return re.compile(rf"\b(?:{named})\b", re.IGNORECASE)


def _advises(sentence: str) -> bool:
    cues, harmless = _advice()
    return cues.search(sentence) is not None and harmless.search(sentence) is None


def _letters(sentence: str) -> frozenset[str]:
    return frozenset(_LETTERS.findall(sentence.lower()))


@cache
def _advice() -> tuple[re.Pattern[str], re.Pattern[str]]:
    file = read_patterns("advice")
    return file.compile(file.content["cues"], "cues"), file.compile(file.content["harmless"], "harmless")
