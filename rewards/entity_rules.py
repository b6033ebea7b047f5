"""Entities and relations of a report by rules, and the F1 of two sets of them: a local proxy for RadGraph.

It reports under its own name and is not the RadGraph score.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from rewards import chexpert_terms, other_terms
from rewards.negation import sentences
from rewards.report_text import examination
from rewards.terms import Term, read

# Structures, and the findings of carotid ultrasound.
STRUCTURES = (
    Term("Heart", ("heart", "cardiac silhouette", "cardiac size", "cardiac contours?")),
    Term("Mediastinum", (r"(?:cardio)?mediastin\w+", r"hil(?:um|a|ar)\b")),
    Term("Lungs", (r"lungs?\b", "airspaces?")),
    Term("Pulmonary vessels", (r"(?:pulmonary )?vascula\w+", "vessels")),
    Term("Aorta", (r"aort\w+",)),
    Term("Bones", ("osseous", r"bon(?:e|es|y)\b", "spine", "thoracic", r"ribs?\b", "skelet")),
    Term("Diaphragm", (r"(?:hemi)?diaphragm\w*", "costophrenic")),
    Term("Plaque", (r"plaques?\b",), unless=("pleural plaque",)),
    Term("Stenosis", ("stenosis", "narrowing")),
    Term("Intima-media thickness", ("intima-media",)),
    Term("Flow", (r"flow\b", r"velocit\w+")),
)
OBSERVATIONS = (chexpert_terms.TERMS, other_terms.TERMS, STRUCTURES)

PLACES = {
    "left": "left", "right": "right", "both": r"bilateral\w*|both|bi(?:basilar|apical)",
    "upper": "upper|(?:bi)?apical|apex|apices",
    "middle": r"mid\w*|lingula\w*", "lower": "lower|(?:bi)?basilar|bases?|basal",
    "perihilar": "perihilar|central", "retrocardiac": "retrocardiac", "peripheral": r"peripheral\w*|lateral",
}  # fmt: skip
QUALITIES = {
    "small": r"small|mild\w*|minimal\w*|trace|tiny|slight\w*", "moderate": r"moderate\w*",
    "large": r"large|severe\w*|marked\w*|massive", "normal": r"normal\w*|clear|unremarkable|within normal limits",
    "increased": r"increas\w+|enlarge\w+|worsen\w+", "decreased": r"decreas\w+|improv\w+",
    "unchanged": "unchanged|stable|again", "new": "new|interval development", "acute": "acute",
    "chronic": "chronic|old|healed",
    "focal": r"focal\w*", "diffuse": r"diffuse\w*", "patchy": "patchy|streaky|linear", "calcified": r"calcifi\w+",
    "multiple": r"multiple|multifocal|scattered|numerous", "soft": "soft", "hard": "hard", "mixed": "mixed",
}  # fmt: skip
_RELATIONS = tuple(
    (relation, name, re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE))
    for relation, table in (("located_at", PLACES), ("modify", QUALITIES))
    for name, pattern in table.items()
)
_POLARITY = {1: "present", 0: "absent", -1: "uncertain"}
_CUT = re.compile(r",|\band\b|\bor\b|\bwith\b", re.IGNORECASE)

Entity = tuple[str, ...]


@lru_cache(maxsize=65536)
def entities(text: str) -> frozenset[Entity]:
    """Entities and their relations.

    An entity is (observation, polarity), the polarity present, absent or uncertain. A relation is (observation,
    polarity, "located_at", place) or (observation, polarity, "modify", quality) for each place and quality in the piece
    of a sentence, between commas, "and", "or" and "with", that holds the mention.
    """
    return frozenset(entity for sentence in sentences(examination(text)) for entity in _sentence_entities(sentence))


def sides(text: str) -> dict[str, set[str]]:
    """Observation -> left, right or both of them, of every one that is not absent and has its side stated."""
    found: dict[str, set[str]] = {}
    for name, value, *relation in entities(text):
        if value != "absent" and relation and relation[0] == "located_at" and relation[1] in ("left", "right", "both"):
            found.setdefault(name, set()).update(("left", "right") if relation[1] == "both" else relation[1:])
    return found


class EntityF1Rules:
    """F1 of the entities and relations of candidate and reference, per report, in [0, 1].

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


@lru_cache(maxsize=65536)
def _sentence_entities(sentence: str) -> frozenset[Entity]:
    found: set[Entity] = set()
    for said in (one for terms in OBSERVATIONS for one in read(terms, sentence)):
        entity = (said.name, _POLARITY[said.value])
        piece = _piece(sentence, said.start, said.end)
        found |= {entity, *((*entity, relation, name) for relation, name, p in _RELATIONS if p.search(piece))}
    return frozenset(found)


def _piece(sentence: str, start: int, end: int) -> str:
    cuts = [0, *(match.start() for match in _CUT.finditer(sentence)), len(sentence)]
    return sentence[max(c for c in cuts if c <= start) : min(c for c in cuts if c >= end)]
