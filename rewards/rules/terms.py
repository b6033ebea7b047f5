"""Wordings of the things that reports describe, and what a sentence says about each."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

from radflow.rewards.rules.negation import mentions
from radflow.rewards.rules.patterns import PatternFile, read_patterns

# Each is a file in lexicons/: the 14 labels, what else is abnormal, structures.
TermFile = Literal["chexpert", "other_findings", "entities"]


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

    def statements(self, sentence: str) -> Iterator[Statement]:
        """What a sentence says of the thing in this examination."""
        for match, polarity in mentions(self.wordings, sentence):
            # a denied statement that all is normal ("heart size is not normal") says nothing definite
            if polarity is None or (self.denies and polarity == 0):
                continue
            nearby = sentence[max(0, match.start() - 30) : match.end() + 25]
            if self.unless is None or not self.unless.search(nearby):
                yield Statement(self.name, 0 if self.denies else polarity, match.start(), match.end())


@cache
def load_terms(file: TermFile) -> tuple[Term, ...]:
    """Read the terms of a file; ValueError names the file and the entry that is wrong."""
    patterns = read_patterns(file)
    return tuple(_read_term(patterns, entry, number) for number, entry in enumerate(patterns.content["term"], start=1))


def _read_term(file: PatternFile, entry: dict[str, object], number: int) -> Term:
    name, denies = entry.get("name"), entry.get("denies", False)
    where = f"term {number} ({name})"
    unknown = entry.keys() - {"name", "wordings", "denies", "unless"}
    if not isinstance(name, str) or not isinstance(denies, bool) or unknown:
        raise ValueError(f"{file.path}: {where}: expected name, wordings, denies (true or false), unless, got {entry}")
    unless = file.compile(entry["unless"], f"{where}.unless") if "unless" in entry else None
    return Term(name, file.compile(entry.get("wordings"), f"{where}.wordings", r"\b(?:{})"), denies, unless)


# Sentences recur in reports far more than reports do, and several parts of a reward read the same ones.
@lru_cache(maxsize=1 << 17)
def read_statements(file: TermFile, sentence: str) -> tuple[Statement, ...]:
    """Every statement of a sentence about the things of a file."""
    return tuple(said for term in load_terms(file) for said in term.statements(sentence))
