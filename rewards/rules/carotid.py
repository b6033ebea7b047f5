"""Labels and findings of carotid ultrasound, by the lexicon carotid.json."""

from collections.abc import Mapping, Sequence
from functools import cache

from radflow.rewards.memory import remember
from radflow.rewards.rules.keywords import Lexicon, Statement, positive_keywords
from radflow.rewards.types import Finding, Parser

_PLAQUE = ("plaque_left", "plaque_right", "soft_plaque", "hard_plaque", "mixed_plaque")
_STENOSIS = ("stenosis_mild", "stenosis_moderate", "stenosis_severe")
LABELS: tuple[str, ...] = (*_PLAQUE, *_STENOSIS, "increased_imt", "increased_velocity", "normal")


class CarotidRules:
    """Positive keyword labels of each report or section; uncertain counts as positive.

    Args:
        parse: section parser; history, comparison, technique and the like are not read.
    """

    labels = LABELS
    normal = "normal"
    ignorable = frozenset({"normal"})

    def __init__(self, parse: Parser) -> None:
        self.parse = parse
        self.covers: Mapping[str, set[str]] = {one.name: {*one.covers} for one in lexicon().keywords}
        self.implies: Mapping[str, set[str]] = {one.name: {*one.implies} for one in lexicon().keywords}

    def __call__(self, texts: Sequence[str]) -> list[set[str]]:
        return [self.certain(text) for text in texts]

    def certain(self, text: str) -> set[str]:
        """Labels asserted, hedged ones included."""
        return set(_keywords(self.parse(text).described) & set(LABELS))

    def abnormalities(self, text: str) -> set[str]:
        """Every label but that of a normal examination."""
        return self.certain(text) - self.ignorable

    def findings(self, text: str) -> list[Finding]:
        """Every keyword asserted or denied, with its side, its part of the vessel and the degree of a stenosis."""
        return list(_findings(self.parse(text).described))


def statements(sentence: str) -> list[Statement]:
    """Every mention that is a finding, in the order of `CarotidRules.findings`."""
    return [one for one in lexicon().statements(sentence) if one.keyword.name not in _STENOSIS]


@cache
def lexicon() -> Lexicon:
    return Lexicon.load()


@remember
def _findings(text: str) -> tuple[Finding, ...]:
    # "mild stenosis" is a stenosis with a grade, and its own keyword only for labels
    return tuple(finding for finding in lexicon().mentions(text) if finding.name not in _STENOSIS)


@remember
def _keywords(text: str) -> frozenset[str]:
    return positive_keywords(text, lexicon())
