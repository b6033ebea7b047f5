"""RadGraph F1: agreement of the entities and relations that the RadGraph model finds in candidate and reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rewards.graph_cache import GraphCache
from rewards.radgraph_text import Graph, RadGraphModel

Level = Literal["simple", "partial", "complete", "rexrank"]


@dataclass(frozen=True)
class RadGraphConfig:
    """Where the model is, how it is run, and which F1 is computed."""

    path: Path | None = None
    """Directory with config.json, weights.th and vocabulary/, or of such directories named after their models; a
    published .tar.gz; or, where no such directory exists, owner/repository of the hub: StanfordAIMI/RRG_scorers."""
    model: RadGraphModel = "radgraph"
    """Which published model it is; it decides how reports are cut into words. Papers mostly mean `radgraph` (v1)."""
    encoder: Path | None = None
    """Directory with config and tokenizer of the encoder, where the one that config.json names cannot be fetched."""
    level: Level = "partial"
    """Which F1: `simple`, `partial` (what papers call RadGraph F1 or RG_ER), `complete`, or `rexrank` (the mean of
    entity and relation F1)."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto` for a GPU where there is one."""
    max_tokens: int = 512
    """Word pieces that the encoder is given at a time; 512 was best on a CPU, a GPU wants some 16,000."""
    cache: Path | None = None
    """SQLite file that keeps the graphs of references across runs and processes; none keeps them in memory."""
    bf16: bool = False
    """Encoder in bfloat16: faster on hardware made for it, but labels near a tie change."""

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise ValueError(f"expected a RadGraph level of {sorted(LEVELS)}, got {self.level!r}")
        if self.max_tokens < 1:
            raise ValueError(f"expected radgraph max_tokens of at least 1, got {self.max_tokens}")


class RadGraphF1:
    """F1 of the graphs of candidate and reference, per report, in [0, 1]; 0 where either graph is empty.

    References are annotated once and kept, identical texts are annotated once a call, and texts of white space only
    have an empty graph without being annotated.

    Args:
        annotate: texts to graphs (`entities` of the radgraph package), one a text.
        level: which F1.
        cache: where graphs of references are kept; by default in memory.
    """

    name = "radgraph_f1"

    def __init__(
        self, annotate: Callable[[Sequence[str]], list[Graph]], *, level: Level, cache: GraphCache | None = None
    ) -> None:
        self.annotate, self.score = annotate, LEVELS[level]
        self.cache = cache or GraphCache(None, model="")

    @classmethod
    def load(cls, config: RadGraphConfig) -> RadGraphF1:
        """With the published model.

        Raises:
            ValueError: the archive is absent, with the way to get it, or not as published.
        """
        from rewards.radgraph_annotate import RadGraphAnnotator

        annotator = RadGraphAnnotator.load(
            config.path,
            model=config.model,
            encoder=config.encoder,
            device=config.device,
            max_tokens=config.max_tokens,
            bf16=config.bf16,
        )
        return cls(annotator, level=config.level, cache=GraphCache(config.cache, model=annotator.fingerprint))

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        pairs = list(zip(candidates, references, strict=True))
        known = self.cache.read({text for text in references if text.strip()})
        waiting = [text for text in dict.fromkeys([*references, *candidates]) if text.strip() and text not in known]
        # One call for both: reports of like length share batches, whichever side they are on.
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
    """F1 of the sets of (tokens, label, type, target tokens), one a relation, and (tokens, label) of entities without.

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


LEVELS: dict[str, Callable[[Graph, Graph], float]] = {
    "simple": simple,
    "partial": partial,
    "complete": complete,
    "rexrank": rexrank,
}


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
