"""Published RadGraph archives: config.json, weights.th and vocabulary/, in a directory, a .tar.gz or on the hub.

Sizes, label names and names of tensors come from these files, never from constants.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args

from radflow.rewards.hub import find_commit
from radflow.rewards.metrics.encoder import in_one_line, is_state, load_weights
from radflow.rewards.radgraph.text import RadGraphModel

if TYPE_CHECKING:
    from torch import Tensor

ENCODER = "_embedder.token_embedder_bert._matched_embedder.transformer_model."
# Heads of other tasks, which every published archive carries.
UNUSED = ("_coref.", "_events.")
RELATION_PARTS = ("_mention_pruners", "_relation_feedforwards", "_relation_scorers")
# What a .tar.gz may unfold to: so many bytes, and so many times its own size. Weights shrink by a tenth.
LARGEST_SMALL, MOST_UNPACKED = 16 * 2**20, 20
MOST = 1_000_000  # of any number in config.json
HOW_TO_GET_IT = (
    "the archives radgraph.tar.gz, radgraph-xl.tar.gz and modern-radgraph-xl.tar.gz are in the repository "
    "StanfordAIMI/RRG_scorers of the Hugging Face hub (download one, or give the repository's name as path), and "
    "RadGraph v1 is on PhysioNet for credentialed users; see docs/radgraph.md"
)


@dataclass(frozen=True)
class Architecture:
    """What config.json and vocabulary/ say about the network."""

    dataset: str  # the part of the label namespaces before "__"
    other_datasets: tuple[str, ...]  # further ones, whose heads are not used
    tokenizer: str  # hub id or directory
    encoder: str  # hub id or directory; only its config is used
    max_length: int | None  # word pieces of a segment, special ones included; None: a report is one segment
    max_span_width: int  # words
    feature_size: int  # of the embedding of a span's width
    hidden_sizes: tuple[int, ...]  # outputs of the hidden layers of every feed-forward network
    spans_per_word: float  # how many candidate spans are kept for relations
    ner_labels: tuple[str, ...]  # the null label first
    relation_labels: tuple[str, ...]  # without a null label


@dataclass(frozen=True)
class RadGraphArchive:
    """One archive, read and checked."""

    source: Path
    architecture: Architecture
    weights: Mapping[str, Tensor]
    digest: str  # SHA-256 of all files


def read_archive(path: Path | None, model: RadGraphModel) -> RadGraphArchive:
    """Read an archive.

    Args:
        path: directory of an archive, or of several, each in a folder named after its model; a .tar.gz; or the name
            `owner/repository` of the hub, or `owner/repository@revision`, if there is no such directory.

    Raises:
        ValueError: nothing there, a file or key missing, or label names that contradict `model`.
    """
    source = find_archive(path, model)
    files = _read_files(source)
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {len(files[name])}\n".encode())
        digest.update(files[name])
    weights = load_weights(files["weights.th"], f"{source}/weights.th")
    if not is_state(weights):
        raise ValueError(f"{source}/weights.th: expected a plain state dict of tensors, got another; {HOW_TO_GET_IT}")
    # A buffer of older transformers.
    weights = {key: value for key, value in weights.items() if not key.endswith("embeddings.position_ids")}
    return RadGraphArchive(source, _read_architecture(files, model, source), weights, digest.hexdigest())


def find_archive(path: Path | None, model: RadGraphModel) -> Path:
    """The directory or .tar.gz that `path` stands for."""
    if path is None:
        raise ValueError(f"expected the path of a RadGraph archive, got none; {HOW_TO_GET_IT}")
    for candidate in (path / model, path):
        if (candidate / "config.json").is_file():
            return candidate
    for candidate in (path, path / f"{model}.tar.gz"):
        if candidate.is_file():
            return candidate
    if path.exists():
        raise ValueError(
            f"{path}: expected config.json, weights.th and vocabulary/ here or in {model}/, or {model}.tar.gz, "
            f"got none of them; {HOW_TO_GET_IT}"
        )
    if path.is_absolute() or len(path.parts) != 2:
        raise ValueError(f"{path}: expected a RadGraph archive, got no such file or directory; {HOW_TO_GET_IT}")
    return _download(path.as_posix(), model)


def _download(name: str, model: RadGraphModel) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repository, revision = find_commit(name)
    try:
        return Path(hf_hub_download(repository, f"{model}.tar.gz", revision=revision))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"{name}: expected a directory, or a repository of the hub with {model}.tar.gz, got: {error}; "
            f"{HOW_TO_GET_IT}"
        ) from error


def _read_files(source: Path) -> dict[str, bytes]:
    """config.json, weights.th and the files of vocabulary/, by name."""
    try:
        files = dict(_members(source))
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        raise ValueError(
            f"{source}: expected a RadGraph archive, cannot read it: {in_one_line(error)}; fetch it again"
        ) from error
    for name in ("config.json", "weights.th", "vocabulary/non_padded_namespaces.txt"):
        if name not in files:
            raise ValueError(f"{source}: expected {name}, got only {sorted(files)}; {HOW_TO_GET_IT}")
    return files


def _members(source: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files that are read; links, devices and other names of a .tar.gz are passed over."""
    if source.is_dir():
        for path in (source / "config.json", source / "weights.th", *source.glob("vocabulary/*.txt")):
            if path.is_file():
                yield path.relative_to(source).as_posix(), path.read_bytes()
        return
    with source.open("rb") as packed:
        zipped = packed.read(2) == b"\x1f\x8b"
    limit = LARGEST_SMALL + MOST_UNPACKED * source.stat().st_size
    with (
        gzip.open(source) if zipped else source.open("rb") as unpacked,
        # A stream: nothing is read twice, and what is passed over counts too.
        tarfile.open(fileobj=io.BufferedReader(_Limited(unpacked, limit)), mode="r|") as archive,
    ):
        for member in archive:
            name = member.name.removeprefix("./")
            wanted = member.isfile() and re.fullmatch(r"config\.json|weights\.th|vocabulary/[^/]+\.txt", name)
            if wanted and (file := archive.extractfile(member)):
                yield name, file.read()


class _Limited(io.RawIOBase):
    """Bytes of a stream up to a limit: a small file may unfold to more than a machine holds. ValueError beyond it."""

    def __init__(self, stream: gzip.GzipFile | io.BufferedReader, limit: int) -> None:
        self.stream, self.limit, self.left = stream, limit, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.stream.read(min(len(buffer), self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise ValueError(f"it unfolds to more than {self.limit:,} bytes, which no weights of its size do")
        buffer[: len(content)] = content
        return len(content)


def _read_architecture(files: Mapping[str, bytes], model: RadGraphModel, source: Path) -> Architecture:
    config = _parse(files["config.json"], source)

    def read(dotted: str, *kinds: type) -> Any:
        value = config
        for key in dotted.split("."):
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"{source}/config.json: expected the key {dotted}, got none")
            value = value[key]
        number = type(value) in (int, float)
        if type(value) not in kinds or (number and not 0 <= value <= MOST):
            names = " or ".join("none" if kind is NoneType else kind.__name__ for kind in kinds)
            raise ValueError(f"{source}/config.json: expected {names} as {dotted}, got {value!r:.100}")
        return value

    def read_same(first: str, second: str, *kinds: type) -> Any:
        found = read(first, *kinds), read(second, *kinds)
        if found[0] != found[1]:
            name = first.rpartition(".")[2]
            raise ValueError(f"{source}/config.json: expected one {name} in {first} and {second}, got {found}")
        return found[0]

    dataset, others = _find_dataset(files, model, source)
    indexer, embedder = "dataset_reader.token_indexers.bert", "model.embedder.token_embedders.bert"
    for task in ("ner", "relation"):
        if not read(f"model.loss_weights.{task}", int, float) > 0:
            raise ValueError(f"{source}/config.json: expected a model trained for {task}, got loss weight 0")
    if read("model.modules.coref", dict).get("coref_prop", 0):  # an optional key, 0 when left out
        raise ValueError(f"{source}/config.json: expected no propagation of coreference (coref_prop), got some")
    sizes = read("model.feedforward_params.hidden_dims", int, list)
    sizes = sizes if isinstance(sizes, list) else [sizes] * read("model.feedforward_params.num_layers", int)
    if not sizes or not all(type(size) is int and 1 <= size <= MOST for size in sizes):
        raise ValueError(f"{source}/config.json: expected sizes of layers as hidden_dims, got {sizes!r:.100}")
    return Architecture(
        dataset=dataset,
        other_datasets=others,
        tokenizer=read(f"{indexer}.model_name", str),
        encoder=read(f"{embedder}.model_name", str),
        max_length=read_same(f"{indexer}.max_length", f"{embedder}.max_length", int, NoneType),
        max_span_width=read_same("dataset_reader.max_span_width", "model.max_span_width", int),
        feature_size=read("model.feature_size", int),
        hidden_sizes=tuple(sizes),
        spans_per_word=read("model.modules.relation.spans_per_word", int, float),
        ner_labels=_read_labels(files, f"{dataset}__ner_labels", null=True, source=source),
        relation_labels=_read_labels(files, f"{dataset}__relation_labels", null=False, source=source),
    )


def _parse(content: bytes, source: Path) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}/config.json: expected JSON, got {in_one_line(error)}; fetch it again") from error


def _find_dataset(files: Mapping[str, bytes], model: RadGraphModel, source: Path) -> tuple[str, tuple[str, ...]]:
    """Name of the label set to use, and of the others."""
    end = "__ner_labels.txt"
    names = sorted(name.removeprefix("vocabulary/").removesuffix(end) for name in files if name.endswith(end))
    if model in names:
        return model, tuple(name for name in names if name != model)
    if len(names) != 1 or names[0] in get_args(RadGraphModel):
        expected = f"labels of {model!r} in vocabulary/"
        raise ValueError(f"{source}: expected {expected}, got those of {names}; set model to the archive's")
    return names[0], ()


def _read_labels(files: Mapping[str, bytes], namespace: str, *, null: bool, source: Path) -> tuple[str, ...]:
    """Lines of vocabulary/NAMESPACE.txt; the index of a label is that of its line, from 0."""
    name = f"vocabulary/{namespace}.txt"
    if name not in files:
        raise ValueError(f"{source}: expected {name}, got only {sorted(files)}")
    patterns = _decode(files, "vocabulary/non_padded_namespaces.txt", source).split()
    if not any(namespace == p or (p.startswith("*") and namespace.endswith(p[1:])) for p in patterns):
        raise ValueError(f"{source}: expected {namespace} among the namespaces without padding, got {patterns}")
    lines = _decode(files, name, source).removesuffix("\n").split("\n")
    if null != (lines[0] == "") or "" in lines[1:]:
        expected = "an empty first line, the null label," if null else "no empty line"
        raise ValueError(f"{source}/{name}: expected {expected} and a label per line, got {lines}")
    return tuple(lines)


def _decode(files: Mapping[str, bytes], name: str, source: Path) -> str:
    try:
        return files[name].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}/{name}: expected UTF-8, got {error}; fetch it again") from error


def head_shapes(architecture: Architecture, hidden_size: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors after the encoder that annotation uses; hidden_size is the encoder's."""
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
    shapes: dict[str, tuple[int, ...]] = {}
    for number, size in enumerate(sizes):
        shapes |= _layer(f"{prefix}_linear_layers.{number}.", width, size)
        width = size
    return shapes


def _layer(prefix: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}weight": (outputs, inputs), f"{prefix}bias": (outputs,)}


def check_weights(archive: RadGraphArchive, expected: Mapping[str, tuple[int, ...]]) -> None:
    """ValueError unless the archive has every expected tensor in its shape, and no unknown one."""
    found = {key: tuple(value.shape) for key, value in archive.weights.items()}
    unused = [*UNUSED]
    for other in archive.architecture.other_datasets:
        unused += [f"_ner._ner_scorers.{other}__", *(f"_relation.{part}.{other}__" for part in RELATION_PARTS)]
    missing = sorted(expected.keys() - found.keys())
    unknown = sorted(key for key in found.keys() - expected.keys() if not key.startswith(tuple(unused)))
    wrong = [key for key, shape in found.items() if key in expected and shape != expected[key]]
    shapes = [f"{key} of shape {found[key]} instead of {expected[key]}" for key in wrong]
    problems = {"lacks": missing, "has unknown": unknown, "has": shapes}
    if text := "; ".join(f"{what} {_some(names)}" for what, names in problems.items() if names):
        expected_text = "expected the tensors that its config.json and vocabulary/ describe"
        raise ValueError(f"{archive.source}: weights.th {text}; {expected_text}")


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
