"""Entities and relations of a report by rules, and the F1 of two sets of them: a local proxy for RadGraph.

Its name is its own: it is not the RadGraph score.
"""

import re
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from functools import cache, lru_cache

from radflow.rewards.rules.negation import cut_points, piece_bounds, sentences
from radflow.rewards.rules.patterns import read_patterns
from radflow.rewards.rules.report_text import examination
from radflow.rewards.rules.terms import TermFile, read_statements

OBSERVATIONS: tuple[TermFile, ...] = ("chexpert", "other_findings", "entities")
_POLARITY = {1: "present", 0: "absent", -1: "uncertain"}
_CUT = re.compile(r",|\band\b|\bor\b|\bwith\b", re.IGNORECASE)

Entity = tuple[str, ...]


@lru_cache(maxsize=65536)
def entities(text: str) -> frozenset[Entity]:
    """Entities and their relations.

    An entity is (observation, polarity), the polarity present, absent or uncertain. A relation is (observation,
    polarity, "located_at", location) or (observation, polarity, "modify", quality), for each location and quality in
    the piece of a sentence, between commas, "and", "or" and "with", that holds the mention.
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
        return [agreement_f1(c, r, entities) for c, r in zip(candidates, references, strict=True)]


def agreement_f1(candidate: str, reference: str, extract: Callable[[str], AbstractSet[object]]) -> float:
    """F1 of what is extracted from two texts; if that is nothing, 1 for the same text and 0 for others."""
    first, second = extract(candidate), extract(reference)
    if not first and not second:
        return float(candidate.strip() == reference.strip())
    return 2 * len(first & second) / (len(first) + len(second))


@lru_cache(maxsize=65536)
def _sentence_entities(sentence: str) -> frozenset[Entity]:
    found: set[Entity] = set()
    cuts = cut_points(_CUT, sentence)
    for said in (one for file in OBSERVATIONS for one in read_statements(file, sentence)):
        entity = (said.name, _POLARITY[said.value])
        start, end = piece_bounds(cuts, said.start, said.end)
        piece = sentence[start:end]
        found |= {entity, *((*entity, relation, name) for relation, name, p in _relations() if p.search(piece))}
    return frozenset(found)


@cache
def _relations() -> tuple[tuple[str, str, re.Pattern[str]], ...]:
    """Kind, name and pattern of each relation."""
    file = read_patterns("entities")
    return tuple(
        (relation, name, file.compile(wordings, f"{table}.{name}", r"\b(?:{})\b"))
        for relation, table in (("located_at", "locations"), ("modify", "qualities"))
        for name, wordings in file.content[table].items()
    )
