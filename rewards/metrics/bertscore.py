"""BERTScore as ReXrank computes it: distilroberta-base, layer 5, no idf, rescaled; or with any BERT-like encoder.

The bert-score package (0.3.13) is not used: under transformers 5 its RoBERTa inputs silently lose the space before the
first word (up to 0.09 of F before rescaling), it fails on empty texts, encodes references anew for each candidate, and
brings pandas and matplotlib. tests/test_peers_bertscore.py compares the two.

Source: BERTScore, arXiv:1904.09675, equations 1 to 3; rajpurkarlab/CXR-Report-Metric (USE_IDF = False).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from radflow.rewards.memory import MB, Kept
from radflow.rewards.metrics.encoder import TextEncoder, first_layers, load_encoder, load_tokenizer, positions_of

if TYPE_CHECKING:
    from torch import Tensor

# (encoder, layer) -> F of unrelated sentences, the published English baseline.
BASELINES = {("distilroberta-base", 5): 0.8473319}
_SPACES = re.compile(" +")


@dataclass(frozen=True)
class BertScoreConfig:
    """Which encoder, and how its F is rescaled. The defaults are ReXrank's."""

    path: str = "distilroberta-base"
    """Directory of an encoder with its tokenizer, or its name on the hub."""
    num_layers: int = 5
    """The hidden states after this layer are compared."""
    baseline: float | None = None
    """F of unrelated texts, rescaled to 0: (F - baseline) / (1 - baseline). Unset: the published one if `path` ends in
    the name of an encoder whose baseline is known here (distilroberta-base, layer 5), else no rescaling."""
    token_budget: int = 2048
    """Tokens per batch, padding included; a GPU wants more."""
    cache_mb: int = 256
    """Megabytes of reference embeddings to keep; about 0.15 per report of 50 tokens."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto` for a GPU if there is one."""

    def __post_init__(self) -> None:
        if self.num_layers < 1 or self.token_budget < 1 or self.cache_mb < 0:
            raise ValueError(
                "expected bertscore num_layers and token_budget of at least 1 and cache_mb not negative, got "
                f"{self.num_layers}, {self.token_budget} and {self.cache_mb}"
            )
        if self.baseline is not None and not -math.inf < self.baseline < 1:
            raise ValueError(f"expected a finite bertscore baseline below 1, got {self.baseline}")

    @property
    def rescaling(self) -> float | None:
        """The baseline in force; None for raw F."""
        name = self.path.rstrip("/").rpartition("/")[2].partition("@")[0]
        return BASELINES.get((name, self.num_layers)) if self.baseline is None else self.baseline


class BertScore:
    """F of greedily matched token embeddings, per report; at most 1, and a raw F of 0 if one side is empty.

    Embeddings of references are kept. References and candidates are encoded apart, so that the last digits of a reward
    do not depend on which references came before.
    """

    def __init__(self, encoder: TextEncoder, *, baseline: float | None, cache_mb: int) -> None:
        self.encoder, self.baseline = encoder, baseline
        self.kept = Kept["tuple[Tensor, Tensor]"](cache_mb * MB)

    @classmethod
    def load(cls, config: BertScoreConfig) -> "BertScore":
        """With the encoder at `config.path`; ValueError if it is not there, or not BERT-like."""
        path, budget = config.path, config.token_budget
        model = first_layers(load_encoder(path), config.num_layers, path)
        tokenizer = load_tokenizer(path, model.config)
        # model_max_length is a huge number if the tokenizer's files do not give one
        longest = min(512, tokenizer.model_max_length, positions_of(model.config))
        encoder = TextEncoder(model, tokenizer, max_tokens=longest, token_budget=budget, device=config.device)
        return cls(encoder, baseline=config.rescaling, cache_mb=config.cache_mb)

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        hypotheses, targets = [_clean(c) for c in candidates], [_clean(r) for r in references]
        known = self.kept(sorted(set(targets)), self._embed)
        own = sorted(set(hypotheses))
        written = dict(zip(own, self._embed(own), strict=True))
        pairs = zip(hypotheses, targets, strict=True)
        return [self._rescaled(f_measure(*written[h], *known[t])) for h, t in pairs]

    def _rescaled(self, value: float) -> float:
        return value if self.baseline is None else (value - self.baseline) / (1 - self.baseline)

    def _embed(self, texts: Sequence[str]) -> list["tuple[Tensor, Tensor]"]:
        """(embeddings [T, H], weights [T]) of each text: 1 per token, 0 for the special ones around a text."""
        import torch

        ids, found = self.encoder.ids(texts), {}
        around = (self.encoder.tokenizer.cls_token_id, self.encoder.tokenizer.sep_token_id)
        for indices, states in self.encoder.batches(ids):
            for row, i in enumerate(indices):
                weights = torch.tensor([0.0 if token in around else 1.0 for token in ids[i]])
                found[i] = states[row, : len(ids[i])].clone(), weights  # a copy: a view would keep the whole batch
        return [found[i] for i in range(len(texts))]


def f_measure(
    hypothesis: "Tensor", hypothesis_weights: "Tensor", reference: "Tensor", reference_weights: "Tensor"
) -> float:
    """F of two texts: each token is matched with the most similar one of the other side.

        P = sum_i u_i max_j cos(h_i, r_j) / sum_i u_i,   R likewise over r_j,   F = 2 P R / (P + R)

    Tokens of weight 0 are matched with, and count in no mean. 0 if a side has no weight.

    Args:
        hypothesis: [N, H] embeddings; `hypothesis_weights` [N].
        reference: [M, H] embeddings; `reference_weights` [M].
    """
    rows, columns = (side / side.norm(dim=-1, keepdim=True) for side in (hypothesis, reference))
    cosine = rows @ columns.T
    precision = float((cosine.amax(1) * hypothesis_weights).sum() / hypothesis_weights.sum())
    recall = float((cosine.amax(0) * reference_weights).sum() / reference_weights.sum())
    total = precision + recall
    return 0.0 if total == 0 or math.isnan(total) else 2 * precision * recall / total


def _clean(text: str) -> str:
    return _SPACES.sub(" ", text).strip()
