"""BERTScore as ReXrank computes it: distilroberta-base, layer 5, no idf, rescaled; or with any BERT-like encoder.

The bert-score package (0.3.13) is not used. Under transformers 5 its RoBERTa inputs silently lose the space before the
first word (up to 0.09 of F before rescaling), it fails on empty texts and on tokenizers without model_max_length, and
none of that can be set from outside; it also encodes every reference anew for each candidate, and brings pandas and
matplotlib. What is left of it, greedy matching, is a dozen lines. tests/test_peers_bertscore.py compares the two.

Source: BERTScore, arXiv:1904.09675, equations 1 to 3; rajpurkarlab/CXR-Report-Metric (USE_IDF = False).
"""

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from rewards.encoder import TextEncoder

# (encoder, layer) -> F of unrelated sentences, the published English baseline.
BASELINES = {("distilroberta-base", 5): 0.8473319}
_SPACES = re.compile(" +")


@dataclass(frozen=True)
class BertScoreConfig:
    """Which encoder, and how its F is rescaled. The defaults are ReXrank's."""

    path: str = "distilroberta-base"
    """Directory of an encoder with its tokenizer, or its name on the hub."""
    num_layers: int = 5
    """The hidden states behind this layer are compared."""
    baseline: float | None = None
    """F of unrelated texts, rescaled to 0: (F - baseline) / (1 - baseline). Unset: the published one where `path` ends
    in the name of an encoder whose baseline is known here (distilroberta-base, layer 5), no rescaling elsewhere."""
    token_budget: int = 2048
    """Tokens a batch, padding included; a GPU wants more."""
    cache_mb: int = 256
    """Megabytes of reference embeddings to keep; about 0.15 a report of 50 tokens."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto` for a GPU where there is one."""

    def __post_init__(self) -> None:
        if self.num_layers < 1 or self.token_budget < 1 or self.cache_mb < 0:
            raise ValueError(
                "expected bertscore num_layers and token_budget of at least 1 and cache_mb not negative, got "
                f"{self.num_layers}, {self.token_budget} and {self.cache_mb}"
            )
        if self.baseline is not None and not self.baseline < 1:
            raise ValueError(f"expected a bertscore baseline below 1, got {self.baseline}")

    @property
    def rescaling(self) -> float | None:
        """The baseline in force; None for raw F."""
        name = self.path.rstrip("/").rpartition("/")[2]
        return BASELINES.get((name, self.num_layers)) if self.baseline is None else self.baseline


class BertScore:
    """F of greedily matched token embeddings, per report; at most 1, and a raw F of 0 where one side is empty.

    Embeddings of references are kept. References and candidates are encoded apart, so that a reward does not depend in
    its last digits on which references were met before.
    """

    name = "bertscore"

    def __init__(self, encoder: "TextEncoder", *, baseline: float | None, cache_mb: int) -> None:
        self.encoder, self.baseline, self.cache = encoder, baseline, _Kept(cache_mb * 2**20)

    @classmethod
    def load(cls, config: BertScoreConfig) -> "BertScore":
        """With the encoder at `config.path`.

        Raises:
            ValueError: it is not there, or not BERT-like.
        """
        from rewards.encoder import TextEncoder, first_layers, load_encoder, load_tokenizer, positions_of

        model = load_encoder(config.path)
        tokenizer = load_tokenizer(config.path, model.config.model_type)
        encoder = TextEncoder(
            first_layers(model, config.num_layers, config.path),
            tokenizer,
            # model_max_length is a huge number where the tokenizer's files do not give one
            max_tokens=min(512, tokenizer.model_max_length, positions_of(model.config)),
            token_budget=config.token_budget,
            device=config.device,
        )
        return cls(encoder, baseline=config.rescaling, cache_mb=config.cache_mb)

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        hypotheses, targets = map(_clean, candidates), map(_clean, references)
        pairs = list(zip(hypotheses, targets, strict=True))
        known = self._embedded({target for _, target in pairs}, keep=True)
        written = self._embedded({hypothesis for hypothesis, _ in pairs}, keep=False)
        return [self._rescaled(f_measure(*written[h], *known[t])) for h, t in pairs]

    def _rescaled(self, value: float) -> float:
        return value if self.baseline is None else (value - self.baseline) / (1 - self.baseline)

    def _embedded(self, texts: set[str], *, keep: bool) -> dict[str, "tuple[Tensor, Tensor]"]:
        """text -> (embeddings [T, H], weights [T]): 1 a token, 0 for the special ones around a text."""
        import torch

        found = {text: self.cache.get(text) for text in texts} if keep else dict.fromkeys(texts)
        waiting = sorted(text for text, value in found.items() if value is None)
        ids = self.encoder.ids(waiting)
        around = (self.encoder.tokenizer.cls_token_id, self.encoder.tokenizer.sep_token_id)
        for places, states in self.encoder.batches(ids):
            for row, place in enumerate(places):
                weights = torch.tensor([0.0 if token in around else 1.0 for token in ids[place]])
                # a copy, so that what is kept does not hold on to the whole batch
                found[waiting[place]] = states[row, : len(ids[place])].clone(), weights
                if keep:
                    self.cache.put(waiting[place], found[waiting[place]])
        return found


def f_measure(
    hypothesis: "Tensor", hypothesis_weights: "Tensor", reference: "Tensor", reference_weights: "Tensor"
) -> float:
    """F of `greedy_match`; 0 where it is not a number (a side without any weight)."""
    value = greedy_match(hypothesis, hypothesis_weights, reference, reference_weights)[2]
    return 0.0 if math.isnan(value) else value


def greedy_match(
    hypothesis: "Tensor", hypothesis_weights: "Tensor", reference: "Tensor", reference_weights: "Tensor"
) -> tuple[float, float, float]:
    """Precision, recall and F of two texts: each token is matched with the most similar one of the other side.

        P = sum_i u_i max_j cos(h_i, r_j) / sum_i u_i,   R likewise over r_j,   F = 2 P R / (P + R)

    Tokens of weight 0 are matched with, and count in no mean. NaN where a side has no weight.

    Args:
        hypothesis: [N, H] embeddings; `hypothesis_weights` [N].
        reference: [M, H] embeddings; `reference_weights` [M].
    """
    rows, columns = (side / side.norm(dim=-1, keepdim=True) for side in (hypothesis, reference))
    cosine = rows @ columns.T
    precision = float((cosine.amax(1) * hypothesis_weights).sum() / hypothesis_weights.sum())
    recall = float((cosine.amax(0) * reference_weights).sum() / reference_weights.sum())
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else math.nan


def idf_weights(documents: Sequence[Sequence[int]]) -> Mapping[int, float]:
    """ln((N + 1) / (df + 1)) of each token id of N documents; an id of none of them has ln(N + 1).

    For whoever reproduces a scorer that weighs tokens (RadEval does); no reward here does: over few references all
    weights are near 0, and a report's score would depend on its neighbours.
    """
    counts = Counter(token for document in documents for token in set(document))
    table = {token: math.log((len(documents) + 1) / (count + 1)) for token, count in counts.items()}
    return _Idf(math.log(len(documents) + 1), table)


class _Idf(dict):
    def __init__(self, unseen: float, table: Mapping[int, float]) -> None:
        super().__init__(table)
        self.unseen = unseen

    def __missing__(self, _: int) -> float:
        return self.unseen


class _Kept:
    """The embeddings used last, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.size, self.values = limit, 0, OrderedDict()

    def get(self, text: str) -> "tuple[Tensor, Tensor] | None":
        if text in self.values:
            self.values.move_to_end(text)
        return self.values.get(text)

    def put(self, text: str, value: "tuple[Tensor, Tensor]") -> None:
        self.values[text] = value
        self.size += _bytes(value)
        while self.size > self.limit:
            self.size -= _bytes(self.values.popitem(last=False)[1])


def _bytes(value: "tuple[Tensor, Tensor]") -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in value)


def _clean(text: str) -> str:
    return _SPACES.sub(" ", text).strip()
