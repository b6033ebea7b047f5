"""RadGraph F1: agreement of the entities and relations that the RadGraph model finds in candidate and reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

from radflow.rewards.radgraph.cache import GraphCache
from radflow.rewards.radgraph.text import Graph, Level, RadGraphConfig


class RadGraphF1:
    """F1 of the graphs of candidate and reference, per report, in [0, 1]; 0 if either graph is empty.

    References are annotated once and kept, identical texts are annotated once per call, and texts of white space only
    have an empty graph without being annotated.

    Args:
        annotate: texts to graphs (`entities` of the radgraph package), one per text.
        level: which F1.
        cache: of the graphs of references; by default in memory.
    """

    name = "radgraph_f1"

    def __init__(
        self, annotate: Callable[[Sequence[str]], list[Graph]], *, level: Level, cache: GraphCache | None = None
    ) -> None:
        self.annotate, self.score = annotate, LEVELS[level]
        self.cache = cache or GraphCache(None, model="")

    @classmethod
    def load(cls, config: RadGraphConfig) -> RadGraphF1:
        """With the published model; ValueError if its archive is absent or not as published."""
        from radflow.rewards.radgraph.annotate import RadGraphAnnotator

        annotator = RadGraphAnnotator.load(config)
        return cls(annotator, level=config.level, cache=GraphCache(config.cache, model=annotator.fingerprint))

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        pairs = list(zip(candidates, references, strict=True))
        known = self.cache.read({text for text in references if text.strip()})
        waiting = [text for text in dict.fromkeys([*references, *candidates]) if text.strip() and text not in known]
        # One call for candidates and references: those of similar length share batches.
        new = dict(zip(waiting, self.annotate(waiting), strict=True)) if waiting else {}
        asked = set(references)
        self.cache.write({text: graph for text, graph in new.items() if text in asked})
        graphs = known | new
        return [self.score(graphs.get(c, {}), graphs.get(r, {})) for c, r in pairs]  # {}: no words


def simple(hypothesis: Graph, reference: Graph) -> float:
    """F1 of the sets of (tokens, label); case counts."""
    return f1(_entities(hypothesis), _entities(reference))


def partial(hypothesis: Graph, reference: Graph) -> float:
    """F1 of the sets of (tokens, label, has any relation); case counts."""
    return f1(*({(e["tokens"], e["label"], bool(e["relations"])) for e in g.values()} for g in (hypothesis, reference)))


def complete(hypothesis: Graph, reference: Graph) -> float:
    """F1 of the sets of (tokens, label, type, target tokens) per relation, and (tokens, label) of entities without.

    Case counts for entities without relations and is ignored for those with, as in radgraph 0.1.18.
    """
    return f1(_relations_or_entities(hypothesis), _relations_or_entities(reference))


def rexrank(hypothesis: Graph, reference: Graph) -> float:
    """Mean of entity F1 and relation F1, as in ReXrank; case counts.

    Entities are (tokens, label); relations are (source entity, target entity, type). F1 of two empty sets is 0, so that
    a report without relations gets 0.5 against itself.
    """
    entities = f1(_entities(hypothesis), _entities(reference))
    return (entities + f1(_relations(hypothesis), _relations(reference))) / 2


LEVELS = {level.__name__: level for level in (simple, partial, complete, rexrank)}


def f1(hypothesis: AbstractSet, reference: AbstractSet) -> float:
    """2 |A and B| / (|A| + |B|); 0 for two empty sets."""
    both = len(hypothesis) + len(reference)
    return 2 * len(hypothesis & reference) / both if both else 0.0


def _entities(graph: Graph) -> set[tuple[str, str]]:
    return {(entity["tokens"], entity["label"]) for entity in graph.values()}


def _relations(graph: Graph) -> set[tuple]:
    name = {number: (entity["tokens"], entity["label"]) for number, entity in graph.items()}
    return {
        (name[number], name[target], kind) for number, entity in graph.items() for kind, target in entity["relations"]
    }


def _relations_or_entities(graph: Graph) -> set[tuple]:
    found: set[tuple] = {(e["tokens"], e["label"]) for e in graph.values() if not e["relations"]}
    for entity in graph.values():
        for kind, target in entity["relations"]:
            found.add((entity["tokens"].lower(), entity["label"], kind, graph[target]["tokens"].lower()))
    return found
