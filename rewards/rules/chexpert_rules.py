"""The 14 CheXpert labels by rules: mention, negation, uncertainty, sentence by sentence.

A fast local stand-in for CheXbert. Its name is its own: it is not the CheXbert score.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache

from radflow.rewards.memory import remember
from radflow.rewards.rules.findings import read_findings
from radflow.rewards.rules.negation import sentences
from radflow.rewards.rules.patterns import read_patterns
from radflow.rewards.rules.terms import read_statements
from radflow.rewards.types import Finding, Parser

_HEART = ("Enlarged Cardiomediastinum", "Cardiomegaly")
_LUNG = ("Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis")
_PLEURA = ("Pneumothorax", "Pleural Effusion", "Pleural Other")
LABELS: tuple[str, ...] = (*_HEART, *_LUNG, *_PLEURA, "Fracture", "Support Devices", "No Finding")


def label_report(text: str) -> dict[str, int | None]:
    """Labels of a text that describes an examination: 1 positive, 0 denied, -1 uncertain, None not mentioned.

    Over several mentions positive wins over uncertain, and uncertain over denied. No Finding is 1 if nothing abnormal
    but Support Devices is asserted, inside or outside the labels, and the text says something normal. A text that says
    neither has no label.
    """
    labels: dict[str, int | None] = dict.fromkeys(LABELS)
    for sentence in sentences(text):
        for said in read_statements("chexpert", sentence):
            if labels[said.name] is None or said.value == 1 or (said.value == -1 and labels[said.name] == 0):
                labels[said.name] = said.value
    abnormal = any(labels[label] in (1, -1) for label in LABELS[:-2]) or _others(text)
    normal = 0 in labels.values() or _normality().search(text) is not None
    labels["No Finding"] = 1 if normal and not abnormal else None
    return labels


class ChexpertRules:
    """Positive labels of each report or section; uncertain counts as positive (the rule of "rrg" CheXbert scores).

    Args:
        parse: section parser; history, comparison, technique and the like are not read.
    """

    labels = LABELS
    normal = "No Finding"
    ignorable = frozenset({"Support Devices", "No Finding"})  # their presence makes no report abnormal

    def __init__(self, parse: Parser) -> None:
        self.parse = parse
        table = read_patterns("chexpert").content["covers"]
        self.implies: Mapping[str, set[str]] = {}  # acuity.py says what may be left out
        self.covers: Mapping[str, set[str]] = {label: set(others) for label, others in table.items()}

    def __call__(self, texts: Sequence[str]) -> list[set[str]]:
        return [self._labels(text, 1, -1) for text in texts]

    def values(self, text: str) -> dict[str, int | None]:
        """`label_report` of what the report says of the examination."""
        return dict(_values(self.parse(text).described))

    def certain(self, text: str) -> set[str]:
        """Labels asserted without hedging."""
        return self._labels(text, 1)

    def abnormalities(self, text: str) -> set[str]:
        """Abnormal labels asserted or hedged, and abnormal findings that belong to none of the 14."""
        return (self._labels(text, 1, -1) - {self.normal}) | _others(self.parse(text).described)

    def _labels(self, text: str, *values: int) -> set[str]:
        return {label for label, value in _values(self.parse(text).described) if value in values}

    def findings(self, text: str) -> list[Finding]:
        """Every mention of a label, and of what is abnormal beyond the labels."""
        return read_findings(self.parse(text).described)


@remember
def _values(text: str) -> tuple[tuple[str, int | None], ...]:
    return tuple(label_report(text).items())


def _others(text: str) -> set[str]:
    found = (said for sentence in sentences(text) for said in read_statements("other_findings", sentence))
    return {said.name for said in found if said.value in (1, -1)}


@cache
def _normality() -> re.Pattern[str]:
    file = read_patterns("chexpert")
    return file.compile(file.content["normality"], "normality", r"\b(?:{})\b")
