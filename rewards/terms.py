"""A wording of a thing that reports speak of, and what a sentence says about it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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


def read(terms: Sequence[Term], sentence: str) -> list[tuple[str, int]]:
    """(name, value) of every mention in a sentence."""
    return [(term.name, value) for term in terms for _, value in term.mentions(sentence)]
