"""What a report says of each finding, where it says it, and how that stands to another report; by rules."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rewards import chexpert_terms, other_terms
from rewards.negation import sentences
from rewards.report_text import examination
from rewards.terms import read

PRESENT, DENIED, UNCERTAIN = 1, 0, -1
Standing = Literal["agrees", "contradicts", "alone", "plain"]


@dataclass(frozen=True)
class Mention:
    """One statement of a report, by its place in the report's text with single spaces."""

    name: str
    value: int  # 1 present, 0 denied, -1 uncertain
    start: int
    end: int


@dataclass(frozen=True)
class Span:
    """A piece of a report as it is shown."""

    text: str
    standing: Standing
    title: str  # what is stated, for a tooltip; empty for plain text


def mentions(text: str) -> tuple[str, list[Mention]]:
    """The text with single spaces, and its statements in order; none overlap.

    Sections about something else than this examination are shown, and read for nothing.
    """
    shown, cursor, found = " ".join(text.split()), 0, []
    for sentence in sentences(examination(text)):
        begin = shown.find(sentence, cursor)
        if begin < 0:  # cut where the text has a line end in the middle of a word or sentence
            continue
        cursor = begin + len(sentence)
        said = [one for terms in (chexpert_terms.TERMS, other_terms.TERMS) for one in read(terms, sentence)]
        end = 0
        # the longest wording of those that begin at one place
        for one in sorted(said, key=lambda one: (one.start, -one.end)):
            if one.start >= end:
                found.append(Mention(one.name, one.value, begin + one.start, begin + one.end))
                end = one.end
    return shown, found


def verdicts(text: str) -> dict[str, int]:
    """Finding -> what the report says of it altogether: positive wins over uncertain, uncertain over denied."""
    found: dict[str, int] = {}
    for mention in mentions(text)[1]:
        before = found.get(mention.name)
        if before is None or mention.value == PRESENT or (mention.value == UNCERTAIN and before == DENIED):
            found[mention.name] = mention.value
    return found


def spans(text: str, other: Mapping[str, int]) -> list[Span]:
    """The whole text in pieces, each with how it stands to the verdicts of another report.

    A finding agrees where the other report says the same, uncertain counting as present; contradicts where one asserts
    what the other denies; and stands alone where the other does not speak of it.
    """
    shown, found = mentions(text)
    pieces, cursor = [], 0
    for mention in found:
        if mention.start > cursor:
            pieces.append(Span(shown[cursor : mention.start], "plain", ""))
        said = {PRESENT: "present", DENIED: "denied", UNCERTAIN: "uncertain"}
        title = f"{mention.name}: {said[mention.value]}"
        if mention.name in other:
            title += f" (the other report: {said[other[mention.name]]})"
        pieces.append(Span(shown[mention.start : mention.end], standing(mention, other), title))
        cursor = mention.end
    if cursor < len(shown):
        pieces.append(Span(shown[cursor:], "plain", ""))
    return pieces


def standing(mention: Mention, other: Mapping[str, int]) -> Standing:
    """How one statement stands to the other report; a denial that the other does not speak of is no finding."""
    if mention.name not in other:
        return "plain" if mention.value == DENIED else "alone"
    return "agrees" if (mention.value == DENIED) == (other[mention.name] == DENIED) else "contradicts"
