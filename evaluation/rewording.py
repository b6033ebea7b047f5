"""Other words for what a sentence says, from tables of plain words (exploits.toml): none of them is a reward's rule."""

import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

_WORDS = Path(__file__).with_name("exploits.toml")
_BOTH_SIDES = re.compile(r"\b(?:left (?:and|or) (?:the )?right|right (?:and|or) (?:the )?left)\b", re.IGNORECASE)
_UNITS = r"(?:mm|cm|millimeters?|centimeters?|percent|%)"
_SIZE = r"\d{1,4}(?:\.\d{1,3})?"
MEASURED = re.compile(rf"(?<![\d.]){_SIZE}(?= ?(?:[x\u00d7] ?{_SIZE} ?){{0,2}}{_UNITS}(?!\w))", re.IGNORECASE)
_VERBS = r"is|are|was|were|has|have|had|remains?|appears?|shows?|may|can|could|should|suggests?|represents?"
_NO_NOUN = rf"{_VERBS}|there|which|that|however|but|clear|normal|unremarkable|intact|unchanged|stable"
_WORD = rf"(?!(?:{_NO_NOUN})\b)[^\s.]+"
_NOUNS = rf"(?P<nouns>{_WORD}(?: {_WORD})*)"
_NO_GRADE = r"(?!\s+(?:bowel|airways?|body|bore|amplitude|with|by)\b)"


def reworded(text: str, generator: random.Random) -> str:
    """The sentence with the same meaning: synonyms, and another frame if it has one of the known ones."""
    return _framed(_replace(text, _synonyms()), generator)


def swapped(text: str) -> str:
    """Left for right and right for left; twice gives the text again."""
    if _BOTH_SIDES.search(text):
        return text
    return _replace(text, _sides())


def graded(text: str, table: str) -> str:
    """Each grade by its counterpart in a table: one_step or two_steps."""
    return _replace(text, _grades(table))


def other_number(text: str, generator: random.Random) -> str:
    """Half of it or less, or twice as much or more, with as many decimals; never the same."""
    decimals = len(text.partition(".")[2])
    other = f"{float(text) * generator.choice((0.4, 0.5, 2.0, 2.5, 3.0)):.{decimals}f}"
    return other if float(other) != float(text) and float(other) > 0 else f"{float(text) * 3 + 1:.{decimals}f}"


def as_sentence(text: str) -> str:
    """With a capital and one full stop."""
    return text[0].upper() + text[1:].rstrip(".") + "."


def lower(text: str) -> str:
    """Without its capital, unless it begins with an abbreviation."""
    return text if text[1:2].isupper() else text[0].lower() + text[1:]


def listing(parts: Sequence[str], last: str = "and") -> str:
    """a; a and b; a, b and c."""
    return parts[0] if len(parts) == 1 else ", ".join(map(lower, parts[:-1])) + f" {last} " + lower(parts[-1])


_FRAMES: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (re.compile(rf"There (?:is|are) no {_NOUNS}\.", re.IGNORECASE), ("No {nouns} {be} seen.", "No {nouns}.")),
    (re.compile(rf"There (?:is|are) {_NOUNS}\.", re.IGNORECASE), ("{nouns} {be} seen.", "{nouns} {be} noted.")),
    (re.compile(rf"No {_NOUNS}(?: (?:is|are) seen)?\.", re.IGNORECASE), ("There {be} no {nouns}.",)),
    (
        re.compile(rf"{_NOUNS} (?:is|are) (?:seen|noted|present|identified|visualized)\.", re.IGNORECASE),
        ("There {be} {nouns}.",),
    ),
    (
        re.compile(rf"(?=(?:mild|small|moderate|severe|large|marked|minimal|left|right)\b){_NOUNS}\.", re.IGNORECASE),
        ("There {be} {nouns}.", "{nouns} {be} seen.", "{nouns} {be} noted."),
    ),
)
_PREPOSITION = re.compile(r" (?:of|in|with|without|at|on|to|from|within|along|for)\b")
_PLURAL = re.compile(r"\w{3,}(?<![siu])s\b")


def _framed(text: str, generator: random.Random) -> str:
    """The sentence in another frame, if it has one of the known ones."""
    for pattern, frames in _FRAMES:
        if match := pattern.fullmatch(text):
            nouns = lower(match["nouns"])
            be = "are" if _PLURAL.search(_PREPOSITION.split(nouns)[0]) else "is"
            made = generator.choice(frames).format(nouns=nouns, be=be)
            return made[0].upper() + made[1:]
    return text


def _replace(text: str, table: tuple[re.Pattern[str], Mapping[str, str]]) -> str:
    """Each match by its counterpart, with its capital and its article."""
    pattern, counterparts = table

    def other(match: re.Match[str]) -> str:
        word = counterparts[match["word"].lower()]
        if match["word"][0].isupper() and not match["word"].isupper():
            word = word[0].upper() + word[1:]
        elif match["word"].isupper() and len(match["word"]) > 1 and len(word) == len(match["word"]):
            word = word.upper()
        article = match["article"] or ""
        if article:
            vowel = "n" if word[0].lower() in "aeiou" else ""
            article = f"{article[0]}{vowel} "
        return article + word

    return pattern.sub(other, text)


def _table(pairs: Mapping[str, str], after: str = "") -> tuple[re.Pattern[str], Mapping[str, str]]:
    """Pattern of whole words, longest first, with an article before them, and what replaces each."""
    known = {word.lower(): other for word, other in pairs.items()}
    words = "|".join(map(re.escape, sorted(known, key=len, reverse=True)))
    return re.compile(rf"(?P<article>\ban? )?(?<!\w)(?P<word>{words}){after}(?!\w)", re.IGNORECASE), known


@cache
def _synonyms() -> tuple[re.Pattern[str], Mapping[str, str]]:
    pairs = [*read_words()["synonyms"], *read_words()["rewordings"]]
    # The first row of a word counts: others only lead back to it.
    back = {b: a for a, b in reversed(read_words()["synonyms"])}
    return _table(back | dict(reversed(pairs)))


@cache
def _sides() -> tuple[re.Pattern[str], Mapping[str, str]]:
    pairs = read_words()["sides"]
    return _table(dict(pairs) | {b: a for a, b in pairs})


@cache
def _grades(table: str) -> tuple[re.Pattern[str], Mapping[str, str]]:
    return _table(read_words()[table], _NO_GRADE)


@cache
def read_words() -> Mapping[str, Any]:
    """exploits.toml."""
    return tomllib.loads(_WORDS.read_text(encoding="utf-8"))
