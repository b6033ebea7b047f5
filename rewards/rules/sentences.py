"""What a text says and its reference does not: measurements, advice, another word for a side or a grade."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

from radflow.rewards.rules.findings import GRADES, measurements
from radflow.rewards.rules.negation import sentences
from radflow.rewards.rules.patterns import read_patterns
from radflow.rewards.unspaced import CHARACTER

TOLERANCE = 0.1  # of a measurement: rounding is no error
_LETTERS = re.compile(r"[a-z]{3,}")
_WORD = re.compile(rf"[a-z0-9.]*[a-z0-9]|{CHARACTER}")
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
    true = measurements(reference)
    return [
        f"{value:g} {unit}"
        for value, unit in measurements(text)
        if not any(unit == u and abs(value - v) <= TOLERANCE * v for v, u in true)
    ]


def new_advice(text: str, reference: str) -> list[str]:
    """Sentences that advise what no advice of the reference speaks of."""
    given = [sentence for sentence in sentences(text) if _advises(sentence)]
    known = [_letters(sentence) for sentence in sentences(reference) if _advises(sentence)] if given else []
    return [one for one in given if not any(2 * len(_letters(one) & words) >= len(_letters(one)) for words in known)]


def changed_sentences(text: str, reference: str) -> Iterator[Change]:
    """Sentences that are those of the reference but for words of side or grade, if the text says the latter nowhere."""
    expected = [_mask(sentence) for sentence in sentences(reference)]
    written = {masked: sentence for sentence in sentences(text) if (masked := _mask(sentence)).sides or masked.grades}
    for masked, sentence in written.items():
        same = [other for other in expected if other.words == masked.words]
        if same and masked not in same and not any(other in written for other in same):
            side, steps = min(masked.compare(other) for other in same)
            yield Change(sentence, side, steps)


@lru_cache(maxsize=1 << 16)
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


def _letters(sentence: str) -> set[str]:
    return set(_LETTERS.findall(sentence.lower()))


@cache
def _advice() -> tuple[re.Pattern[str], re.Pattern[str]]:
    file = read_patterns("advice")
    return file.compile(file.content["cues"], "cues"), file.compile(file.content["harmless"], "harmless")
