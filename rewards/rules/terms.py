"""Wordings of the things that reports describe, and what a sentence says about each."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from radflow.rewards.memory import remember
from radflow.rewards.rules.elsewhere import is_elsewhere, is_of_another_organ
from radflow.rewards.rules.negation import mentions
from radflow.rewards.rules.patterns import PatternFile, read_patterns
from radflow.rewards.rules.spelling import mend, original_position

# Each is a file in lexicons/: the 14 labels, what else is abnormal.
TermFile = Literal["chexpert", "other_findings"]


@dataclass(frozen=True)
class Statement:
    """What a sentence says of one thing, and where."""

    name: str
    value: int
    """1 present, 0 denied, -1 uncertain."""
    start: int
    end: int


@dataclass(frozen=True)
class Term:
    """Wordings of one thing."""

    name: str
    """A label, or the name of a finding outside the labels."""
    wordings: re.Pattern[str]
    """Matches from the beginning of a word."""
    denies: bool
    """The wordings say that the thing is absent."""
    unless: re.Pattern[str] | None
    """No mention if this is found in or around it, from 30 characters before to 25 after."""
    anywhere: bool
    """The thing counts in organs of the abdomen too."""

    def statements(self, sentence: str) -> Iterator[Statement]:
        """What a sentence says of the thing in this examination."""
        for match, polarity in mentions(self.wordings, sentence):
            # a denied statement that all is normal ("heart size is not normal") says nothing definite
            if polarity is None or (self.denies and polarity == 0):
                continue
            nearby = sentence[max(0, match.start() - 30) : match.end() + 25]
            excluded = self.unless is not None and self.unless.search(nearby)
            if not excluded and (self.anywhere or not is_of_another_organ(sentence, *match.span())):
                yield Statement(self.name, 0 if self.denies else polarity, match.start(), match.end())


@cache
def load_terms(file: TermFile) -> tuple[Term, ...]:
    """Read the terms of a file; ValueError names the file and the entry that is wrong."""
    patterns = read_patterns(file)
    return tuple(_read_term(patterns, entry, number) for number, entry in enumerate(patterns.content["term"], start=1))


def _read_term(file: PatternFile, entry: dict[str, object], number: int) -> Term:
    name, denies, anywhere = entry.get("name"), entry.get("denies", False), entry.get("anywhere", False)
    where = f"term {number} ({name})"
    unknown = entry.keys() - {"name", "wordings", "denies", "unless", "anywhere"}
    if not isinstance(name, str) or not isinstance(denies, bool) or not isinstance(anywhere, bool) or unknown:
        expected = "name, wordings, denies (true or false), anywhere (true or false), unless"
        raise ValueError(f"{file.path}: {where}: expected {expected}, got {entry}")
    unless = file.compile(entry["unless"], f"{where}.unless") if "unless" in entry else None
    return Term(name, file.compile(entry.get("wordings"), f"{where}.wordings", r"\b(?:{})"), denies, unless, anywhere)


# Sentences recur in reports far more than reports do, and several parts of a reward read the same ones.
@remember
def read_statements(file: TermFile, sentence: str) -> tuple[Statement, ...]:
    """Every statement of a sentence about the things of a file, read in mended words; none if it is about no chest."""
    if is_elsewhere(sentence):
        return ()
    read, ends = mend(sentence)
    found = (said for term in load_terms(file) for said in term.statements(read))
    if not ends:
        return tuple(found)
    return tuple(
        replace(said, start=original_position(said.start, ends), end=original_position(said.end, ends))
        for said in found
    )
