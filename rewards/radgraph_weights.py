"""The tensors that a RadGraph archive must hold, by name and shape, and their check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rewards.radgraph_archive import Architecture, RadGraphArchive

ENCODER = "_embedder.token_embedder_bert._matched_embedder.transformer_model."
# Heads of other tasks, which every published archive carries.
UNUSED = ("_coref.", "_events.")
RELATION_PARTS = ("_mention_pruners", "_relation_feedforwards", "_relation_scorers")


def head_shapes(architecture: Architecture, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors behind the encoder that annotation uses; hidden_size is the encoder's."""
    a, span = architecture, 2 * hidden_size + architecture.feature_size
    ner, relation = f"{a.dataset}__ner_labels", f"{a.dataset}__relation_labels"
    pruner = f"_relation._mention_pruners.{relation}._scorer."
    return {
        "_endpoint_span_extractor._span_width_embedding.weight": (a.max_span_width, a.feature_size),
        **_network(f"_ner._ner_scorers.{ner}.0._module.", span, a.hidden_sizes),
        **_layer(f"_ner._ner_scorers.{ner}.1._module.", a.hidden_sizes[-1], len(a.ner_labels) - 1),
        **_network(f"{pruner}0._module.", span, a.hidden_sizes),
        **_layer(f"{pruner}1._module.", a.hidden_sizes[-1], 1),
        **_network(f"_relation._relation_feedforwards.{relation}.", 3 * span, a.hidden_sizes),
        **_layer(f"_relation._relation_scorers.{relation}.", a.hidden_sizes[-1], len(a.relation_labels)),
    }


def _network(prefix: str, width: int, sizes: Iterable[int]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for number, size in enumerate(sizes):
        shapes |= _layer(f"{prefix}_linear_layers.{number}.", width, size)
        width = size
    return shapes


def _layer(prefix: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}weight": (outputs, inputs), f"{prefix}bias": (outputs,)}


def check_weights(archive: RadGraphArchive, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse an archive unless every expected tensor is there in its shape and nothing is unknown.

    Raises:
        ValueError: with the names of what is missing, of another shape, or unknown.
    """
    found = {key: tuple(value.shape) for key, value in archive.weights.items()}
    unused = [*UNUSED]
    for other in archive.architecture.other_datasets:
        unused += [f"_ner._ner_scorers.{other}__", *(f"_relation.{part}.{other}__" for part in RELATION_PARTS)]
    missing = sorted(expected.keys() - found.keys())
    unknown = sorted(key for key in found.keys() - expected.keys() if not key.startswith(tuple(unused)))
    shapes = [
        f"{key} of shape {shape} instead of {expected[key]}"
        for key, shape in found.items()
        if key in expected and shape != expected[key]
    ]
    problems = {"lacks": missing, "has unknown": unknown, "has": shapes}
    if any(problems.values()):
        text = "; ".join(f"{what} {_some(names)}" for what, names in problems.items() if names)
        raise ValueError(
            f"{archive.source}: weights.th {text}; expected the tensors that its config.json and vocabulary/ describe"
        )


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
