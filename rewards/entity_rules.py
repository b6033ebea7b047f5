"""Entities of a report by rules, and the F1 of two sets of them: a local proxy for RadGraph, under its own name."""

import re
from collections.abc import Sequence
from functools import lru_cache

from rewards.chexpert_rules import CLAUSE, MENTIONS, SENTENCE, polarity

# Observations beyond the 14 labels, and those of carotid ultrasound.
OBSERVATIONS = {
    **MENTIONS,
    "Heart": r"heart|cardiac silhouette|cardiac size",
    "Mediastinum": r"mediastin\w+|hil(?:um|a|ar)\b",
    "Lungs": r"lungs?\b|airspaces?",
    "Pulmonary vessels": r"(?:pulmonary )?vascula\w+|vessels",
    "Aorta": r"aort\w+",
    "Bones": r"osseous|bon(?:e|es|y)\b|spine|thoracic|ribs?\b|degenerative|osteophyt\w+|scoliosis",
    "Diaphragm": r"diaphragm\w*|costophrenic",
    "Calcification": r"calcifi\w+",
    "Emphysema": r"emphysem\w+|copd\b|hyperinflat\w+|hyperexpan\w+",
    "Hernia": r"hernia\w*",
    "Plaque": r"plaques?\b",
    "Stenosis": r"stenosis|narrowing",
    "Intima-media thickness": r"intima-media",
    "Flow": r"flow\b|velocit\w+",
}
MODIFIERS = {
    "left": r"left", "right": r"right", "both": r"bilateral\w*|both",
    "small": r"small|mild\w*|minimal\w*|trace|tiny|slight\w*", "moderate": r"moderate\w*",
    "large": r"large|severe\w*|marked\w*|massive", "upper": r"upper|apical|apex", "middle": r"mid\w*",
    "lower": r"lower|basilar|bibasilar|bases?", "normal": r"normal\w*|clear|unremarkable|within normal limits",
    "increased": r"increas\w+|enlarge\w+|worsen\w+", "decreased": r"decreas\w+|improv\w+",
    "unchanged": r"unchanged|stable",
    "soft": r"soft", "hard": r"hard|calcified", "mixed": r"mixed",
}  # fmt: skip
_OBSERVATIONS = {name: re.compile(rf"\b(?:{p})", re.IGNORECASE) for name, p in OBSERVATIONS.items()}
_MODIFIERS = {name: re.compile(rf"\b(?:{p})\b", re.IGNORECASE) for name, p in MODIFIERS.items()}

Entity = tuple[str, ...]


@lru_cache(maxsize=65536)
def entities(text: str) -> frozenset[Entity]:
    """(observation, polarity) of every mention, and (observation, polarity, modifier) for each modifier of its clause.

    Polarity is present, absent or uncertain. A modifier counts in the piece of a sentence between commas, "and" and
    "or" that holds the mention.
    """
    found: set[Entity] = set()
    for sentence in SENTENCE.split(text):
        starts = [0, *(match.start() for match in CLAUSE.finditer(sentence))]
        for name, pattern in _OBSERVATIONS.items():
            for match in pattern.finditer(sentence):
                start = max(s for s in starts if s <= match.start())
                end = min((s for s in starts if s > match.start()), default=len(sentence))
                value = polarity(sentence[start : match.start()], match.group(), sentence[match.end() : end])
                entity = (name, {1: "present", 0: "absent", -1: "uncertain"}[value])
                found.add(entity)
                piece = _piece(sentence, match.start(), match.end())
                found |= {(*entity, modifier) for modifier, p in _MODIFIERS.items() if p.search(piece)}
    return frozenset(found)


class EntityF1Rules:
    """F1 of the entity sets of candidate and reference, per report, in [0, 1].

    Two reports without any entity score 1 when they are the same text and 0 otherwise: silence is no agreement.
    """

    name = "entity_f1_rules"

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        return [self._one(c, r) for c, r in zip(candidates, references, strict=True)]

    @staticmethod
    def _one(candidate: str, reference: str) -> float:
        first, second = entities(candidate), entities(reference)
        if not first and not second:
            return float(candidate.strip() == reference.strip())
        return 2 * len(first & second) / (len(first) + len(second))


_CUT = re.compile(r",|\band\b|\bor\b")


def _piece(sentence: str, start: int, end: int) -> str:
    cuts = [0, *(match.start() for match in _CUT.finditer(sentence)), len(sentence)]
    return sentence[max(c for c in cuts if c <= start) : min(c for c in cuts if c >= end)]
