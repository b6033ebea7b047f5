"""Cells of the metrics that stand on models: BERTScore, CheXbert, RadGraph. What is not there is said, with the way to
get it; nothing is 0 for want of weights."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from evaluation.table_metrics import Cells, label_cells
from evaluation.weights import Weights
from rewards.chexbert import Chexbert, SembScore, positive_labels
from rewards.graph_cache import GraphCache
from rewards.radcliq import radcliq_v0, radcliq_v1
from rewards.radgraph_text import Graph

if TYPE_CHECKING:
    from torch import Tensor

# name of the weights -> the cells that stand on them
STANDS_ON = {
    "bertscore": ("bertscore",),
    "chexbert": ("sembscore", "labels_chexbert"),
    "radgraph": ("radgraph_f1_rexrank", "radgraph_f1_partial"),
}
NAMES = tuple(name for names in STANDS_ON.values() for name in names)
RADCLIQ = ("radcliq_v0", "radcliq_v1")
SUB_SCORES = ("radgraph_f1_rexrank", "bertscore", "sembscore", "bleu2")  # in the order of the regressions
KEPT = 32_768  # embeddings, 3 KB each
CHUNK = 512  # pairs whose embeddings and graphs are held at a time


class ModelCells:
    """Measures pairs of texts with the models that are there.

    A model that is absent, or that cannot be loaded, is in `missing` with the reason, and the others are used.

    Args:
        cache: SQLite file of RadGraph's graphs, by model and text; in memory without one.
        given: cells that need not be measured; a model that only they stand on is not loaded.
    """

    def __init__(self, weights: Weights, *, cache: Path | None = None, given: Collection[str] = ()) -> None:
        self.weights, self.cache = weights, cache
        self.missing: dict[str, str] = {}  # cells -> how to get what they need, or why it does not load
        self._loaded: dict[str, Any] = {}
        self._graphs: GraphCache | None = None
        for model, names in STANDS_ON.items():
            wanted = [name for name in names if name not in given]
            if wanted and (reason := self._load(model)):
                self.missing |= dict.fromkeys(wanted, reason)

    def _load(self, model: str) -> str | None:
        """Load a model; returns why that is not possible."""
        if not self.weights.present(model):
            return self.weights.how_to_get(model)
        loaders = {"bertscore": _load_bertscore, "chexbert": _load_chexbert, "radgraph": _load_radgraph}
        try:
            self._loaded[model] = loaders[model](self.weights)
        except ValueError as error:
            return f"does not load: {error}"
        return None

    @property
    def names(self) -> tuple[str, ...]:
        """Cells that can be measured."""
        return tuple(n for model in self._loaded for n in STANDS_ON[model] if n not in self.missing)

    def __call__(
        self, predictions: Sequence[str], references: Sequence[str], names: Sequence[str], *, title: str
    ) -> Cells:
        """Cells by name, one row a pair.

        Raises:
            ValueError: weights that are there are not as published.
        """
        found: dict[str, list[np.ndarray]] = {name: [] for name in names}
        starts = range(0, len(predictions) if names else 0, CHUNK)
        for start in tqdm(starts, title, unit="batch", disable=None, leave=False):
            sides = predictions[start : start + CHUNK], references[start : start + CHUNK]
            for model, own in STANDS_ON.items():
                wanted = [name for name in own if name in names]
                cells = getattr(self, f"_{model}")(*sides, wanted) if wanted else {}
                for name in wanted:
                    found[name].append(cells[name])
        return {name: np.concatenate(chunks) for name, chunks in found.items()}

    def _bertscore(self, predictions: Sequence[str], references: Sequence[str], names: Sequence[str]) -> Cells:
        return {"bertscore": np.asarray(self._loaded["bertscore"](predictions, references))}

    def _chexbert(self, predictions: Sequence[str], references: Sequence[str], names: Sequence[str]) -> Cells:
        model, cells = self._loaded["chexbert"], {}
        if "sembscore" in names:
            cells["sembscore"] = np.asarray(SembScore(model)(predictions, references))
        if "labels_chexbert" in names:
            texts = list(dict.fromkeys([*predictions, *references]))
            classes = dict(zip(texts, model.classes(texts), strict=True))
            cells["labels_chexbert"] = class_cells(
                [classes[text] for text in predictions], [classes[text] for text in references]
            )
        return cells

    def _radgraph(self, predictions: Sequence[str], references: Sequence[str], names: Sequence[str]) -> Cells:
        annotate = self._loaded["radgraph"]
        if self._graphs is None:
            self._graphs = GraphCache(self.cache, model=annotate.fingerprint)
        texts = [text for text in dict.fromkeys([*predictions, *references]) if text.strip()]
        graphs = self._graphs.read(texts)
        waiting = [text for text in texts if text not in graphs]
        new = dict(zip(waiting, annotate(waiting), strict=True)) if waiting else {}
        self._graphs.write(new)
        graphs |= new
        return graph_cells(
            [graphs.get(text, {}) for text in predictions], [graphs.get(text, {}) for text in references]
        )


def _load_bertscore(weights: Weights) -> Callable:
    from rewards.bertscore import BertScore

    return BertScore.load(weights.bertscore_config())


class KeptChexbert(Chexbert):
    """CheXbert that encodes a text once: SembScore and labels read the same embedding, and baselines bring the
    references back."""

    def __init__(self, model: Chexbert) -> None:
        super().__init__(model.encoder, model.weight, model.bias)
        self._kept: dict[str, Tensor] = {}

    def embeddings(self, texts: Sequence[str]) -> "Tensor":
        """[N, H] float32, as of `Chexbert`."""
        import torch

        waiting = [text for text in dict.fromkeys(texts) if text not in self._kept]
        if waiting:
            self._kept.update(zip(waiting, super().embeddings(waiting), strict=True))
        found = torch.stack([self._kept[text] for text in texts])
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return found


def _load_chexbert(weights: Weights) -> Chexbert:
    return KeptChexbert(Chexbert.load(weights.chexbert_config()))


def _load_radgraph(weights: Weights) -> Callable:
    from rewards.radgraph_annotate import RadGraphAnnotator

    config = weights.radgraph_config()
    return RadGraphAnnotator.load(
        config.path, model=config.model, encoder=config.encoder, device=config.device, max_tokens=config.max_tokens,
        bf16=config.bf16,
    )  # fmt: skip


def graph_cells(predictions: Sequence[Graph], references: Sequence[Graph]) -> Cells:
    """RadGraph F1 of graphs: ReXrank's, and `partial`, which most papers call RadGraph F1."""
    from rewards.radgraph import partial, rexrank

    levels = {"radgraph_f1_rexrank": rexrank, "radgraph_f1_partial": partial}
    pairs = list(zip(predictions, references, strict=True))
    return {name: np.array([level(p, r) for p, r in pairs], dtype=np.float64) for name, level in levels.items()}


def class_cells(predictions: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> np.ndarray:
    """Label cells of CheXbert's classes; an uncertain label counts as present."""
    first, second = ([positive_labels(row) for row in side] for side in (predictions, references))
    return label_cells(first, second)


def with_radcliq(cells: Mapping[str, np.ndarray]) -> Cells:
    """The cells and RadCliQ, where all of its sub-scores are there."""
    made = dict(cells)
    if all(name in cells for name in SUB_SCORES):
        inputs = dict(zip(("radgraph", "bertscore", "semb", "bleu"), (cells[name] for name in SUB_SCORES), strict=True))
        for name, regression in zip(RADCLIQ, (radcliq_v0, radcliq_v1), strict=True):
            made.setdefault(name, np.asarray(regression(**inputs)))
    return made
