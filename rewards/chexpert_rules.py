"""The 14 CheXpert labels by rules: mention, negation, uncertainty, sentence by sentence.

A fast local stand-in for CheXbert. It reports under its own name and is not the CheXbert score.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from rewards import chexpert_terms, other_terms
from rewards.chexpert_terms import LABELS
from rewards.negation import sentences
from rewards.report_text import examination
from rewards.terms import read

# A label of the Impression -> what of the Findings it may stand for or explain: CheXpert's hierarchy, and the signs by
# which a radiograph shows a disease. The signs outside the 14 labels are those of `other_terms`.
COVERS = {
    "Enlarged Cardiomediastinum": {"Cardiomegaly", "Aorta", "Hilum or lymph nodes", "Mediastinum"},
    "Cardiomegaly": {"Enlarged Cardiomediastinum", "Mediastinum"},
    "Lung Opacity": {
        "Edema", "Consolidation", "Pneumonia", "Atelectasis", "Lung Lesion", "Airways and interstitium",
        "Pleural Other",
        "Scar",
    },
    "Lung Lesion": {"Lung Opacity", "Calcification", "Hilum or lymph nodes", "Scar"},
    "Edema": {"Lung Opacity", "Airways and interstitium", "Hilum or lymph nodes", "Pleural Effusion"},
    "Consolidation": {"Lung Opacity", "Pneumonia", "Atelectasis"},
    "Pneumonia": {"Lung Opacity", "Consolidation", "Atelectasis", "Airways and interstitium"},
    "Atelectasis": {"Lung Opacity", "Consolidation", "Low volumes", "Diaphragm", "Airways and interstitium"},
    "Pleural Effusion": {"Diaphragm", "Pleural Other"},
    "Pleural Other": {"Diaphragm", "Lung Opacity", "Pleural Effusion", "Scar"},
    "Scar": {"Lung Opacity", "Airways and interstitium", "Pleural Other", "Atelectasis", "Calcification"},
    "Airways and interstitium": {"Lung Opacity", "Emphysema", "Edema", "Lung Lesion"},
    "Low volumes": {"Atelectasis", "Airways and interstitium"},
    "Hilum or lymph nodes": {
        "Mediastinum", "Lung Opacity", "Edema", "Enlarged Cardiomediastinum", "Lung Lesion", "Calcification",
    },
    "Mediastinum": {"Hilum or lymph nodes", "Enlarged Cardiomediastinum", "Cardiomegaly", "Aorta"},
    "Emphysema": {"Diaphragm", "Airways and interstitium"},
    "Diaphragm": {"Pleural Effusion", "Emphysema", "Hernia"},
    "Deformity": {"Degenerative change", "Fracture", "Bone"},
    "Fracture": {"Deformity", "Bone"},
    "Degenerative change": {"Deformity", "Bone"},
    "Bone": {"Degenerative change", "Deformity", "Fracture"},
    "Calcification": {"Lung Lesion", "Lung Opacity", "Aorta"},
    "Aorta": {"Calcification"},
}  # fmt: skip

_NORMALITY = re.compile(
    r"\b(?:normal|unremarkable|clear|negative|intact|no (?:\w+ ){0,3}(?:acute|active|evidence|significant"
    r"|abnormal\w*|disease|findings?|process)"
    r"|stable (?:\w+ )?(?:chest|exam\w*|appearance)|(?:no|without) (?:\w+ )?change|unchanged)\b",
    re.IGNORECASE,
)


def label_report(text: str) -> dict[str, int | None]:
    """Labels of a text: 1 positive, 0 denied, -1 uncertain, None not mentioned.

    Sections that do not describe the examination (indication, history, comparison, technique) are left out. Over
    several mentions positive wins over uncertain, and uncertain over denied. No Finding is 1 when nothing abnormal but
    Support Devices is asserted, not even outside the labels, and the text says something normal; text about nothing
    has no label.
    """
    labels: dict[str, int | None] = dict.fromkeys(LABELS)
    described = examination(text)
    for sentence in sentences(described):
        for said in read(chexpert_terms.TERMS, sentence):
            if labels[said.name] is None or said.value == 1 or (said.value == -1 and labels[said.name] == 0):
                labels[said.name] = said.value
    abnormal = any(labels[label] in (1, -1) for label in LABELS[:-2]) or _others(described)
    normal = 0 in labels.values() or _NORMALITY.search(described) is not None
    labels["No Finding"] = 1 if normal and not abnormal else None
    return labels


class ChexpertRules:
    """Positive labels of each text; uncertain counts as positive (the rule of "rrg" CheXbert scores)."""

    labels = LABELS
    normal = "No Finding"
    ignorable = frozenset({"Support Devices", "No Finding"})  # their presence makes no report abnormal
    covers = COVERS

    def __call__(self, texts: Sequence[str]) -> list[set[str]]:
        return [set(_positive(text)) for text in texts]

    def certain(self, text: str) -> set[str]:
        """Labels asserted without hedging."""
        return {label for label, value in _labels(text) if value == 1}

    def abnormalities(self, text: str) -> set[str]:
        """Abnormal labels asserted or hedged, and abnormal findings that belong to none of the 14."""
        return (set(_positive(text)) - {self.normal}) | _others(examination(text))


@lru_cache(maxsize=65536)
def _labels(text: str) -> tuple[tuple[str, int | None], ...]:
    return tuple(label_report(text).items())


@lru_cache(maxsize=65536)
def _positive(text: str) -> frozenset[str]:
    return frozenset(label for label, value in _labels(text) if value in (1, -1))


def _others(text: str) -> set[str]:
    return {
        said.name for sentence in sentences(text) for said in read(other_terms.TERMS, sentence) if said.value in (1, -1)
    }
