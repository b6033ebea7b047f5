"""A wording of a thing that reports speak of, and what a sentence says about it."""

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

from rewards.negation import mentions


@dataclass(frozen=True)
class Term:
    """Wordings of one thing."""

    name: str
    """A label, or the name of a finding outside the labels."""
    wordings: tuple[str, ...]
    """Regular expressions from the beginning of a word, not case sensitive."""
    value: int = 1
    """What the wording says where nothing denies it: 1 the thing, -1 perhaps the thing, 0 its absence."""
    unless: tuple[str, ...] = ()
    """No mention where one of these stands in or around it, from 30 characters before to 25 after."""

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(rf"\b(?:{'|'.join(self.wordings)})", re.IGNORECASE)

    @cached_property
    def exception(self) -> re.Pattern[str]:
        return re.compile("|".join(self.unless), re.IGNORECASE)

    def mentions(self, sentence: str) -> list[tuple[re.Match[str], int]]:
        """Every statement about this examination with its value: 1 present, 0 denied, -1 uncertain."""
        found = []
        for match, polarity in mentions(self.pattern, sentence):
            nearby = sentence[max(0, match.start() - 30) : match.end() + 25]
            # a denied statement that all is normal ("heart size is not normal") says nothing definite
            silent = polarity is None or (self.value == 0 and polarity == 0)
            if not silent and not (self.unless and self.exception.search(nearby)):
                found.append((match, self.value if polarity == 1 or self.value == 0 else polarity))
        return found


@dataclass(frozen=True)
class Statement:
    """What a sentence says of one thing, and where."""

    name: str
    value: int
    """1 present, 0 denied, -1 uncertain."""
    start: int
    end: int


# Sentences recur in reports far more than reports do, and several parts of a reward read the same ones.
@lru_cache(maxsize=1 << 17)
def read(terms: tuple[Term, ...], sentence: str) -> tuple[Statement, ...]:
    """Every statement of a sentence about the things of a table."""
    return tuple(
        Statement(term.name, value, match.start(), match.end())
        for term in terms
        for match, value in term.mentions(sentence)
    )
