"""CheXbert: the 14 labels of a report by BERT, and the embedding that SembScore compares.

Source: arXiv:2004.09167; stanfordmlgroup/CheXbert. Its licence is its own: the checkpoint is the user's to get.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from radflow.rewards.memory import MB, Kept
from radflow.rewards.metrics.encoder import (
    TextEncoder,
    in_one_line,
    is_state,
    load_model_config,
    load_tokenizer,
    load_weights,
    refuse_damaged,
    try_model,
)
from radflow.rewards.rules.chexpert_rules import LABELS

if TYPE_CHECKING:
    from torch import Tensor

BLANK, POSITIVE, NEGATIVE, UNCERTAIN = range(4)
# No Finding is only ever blank or positive.
NUM_CLASSES = (*(4 for _ in LABELS[:-1]), 2)
MAX_TOKENS = 512
KEPT_BYTES = 100 * MB  # of embeddings, 3 KB each


@dataclass(frozen=True)
class ChexbertConfig:
    """Where CheXbert is, and how its classes become labels."""

    path: Path | None = None
    """The published chexbert.pth. Needed if CheXbert is used."""
    bert: str = "bert-base-uncased"
    """Directory with config and tokenizer of the BERT that it was trained from, or its name on the hub."""
    uncertain: Literal["positive", "negative"] = "positive"
    """Whether an uncertain label counts as present. `positive` is what published CheXbert F1 scores mean."""
    token_budget: int = 2048
    """Tokens per batch, padding included; a GPU wants more."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto` for a GPU if there is one."""

    def __post_init__(self) -> None:
        if self.token_budget < 1:
            raise ValueError(f"expected chexbert.token_budget of at least 1, got {self.token_budget}")


class Chexbert:
    """The model: embeddings, and the class of each label.

    Args:
        encoder: BERT.
        weight, bias: of the 14 heads, one after the other: [54, H] and [54].
    """

    def __init__(self, encoder: TextEncoder, weight: "Tensor", bias: "Tensor") -> None:
        self.encoder, self.weight, self.bias = encoder, weight, bias
        # SembScore and labels ask for the same texts, one after the other, of each side.
        self._remembered = lru_cache(maxsize=2)(self._embed)

    @classmethod
    def load(cls, config: ChexbertConfig) -> "Chexbert":
        """From the published checkpoint; ValueError if it is absent or not as published, or does not fit the BERT."""
        state = read_checkpoint(config.path)
        bert_config = load_model_config(config.bert)
        model = _bert(bert_config, state, config)
        tokenizer = load_tokenizer(config.bert, bert_config)
        longest, budget = min(MAX_TOKENS, bert_config.max_position_embeddings), config.token_budget
        encoder = TextEncoder(model, tokenizer, max_tokens=longest, token_budget=budget, device=config.device)
        return cls(encoder, *_heads(state, bert_config.hidden_size, config.path))

    def embeddings(self, texts: Sequence[str]) -> "Tensor":
        """[N, H] float32: [CLS] of the last layer; no pooler, no head. Runs of white space count as one space."""
        return self._remembered(tuple(texts))

    def _embed(self, texts: tuple[str, ...]) -> "Tensor":
        import torch

        ids = self.encoder.ids([" ".join(text.split()) for text in texts])
        found = torch.empty(len(ids), self.weight.shape[1])
        for indices, states in self.encoder.batches(ids):
            found[indices] = states[:, 0]
        return found

    def classes(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """The most likely class of each of the 14 labels, for each text."""
        import torch

        logits = torch.addmm(self.bias, self.embeddings(texts), self.weight.T)
        heads = [head.argmax(1).tolist() for head in logits.split(list(NUM_CLASSES), dim=1)]
        return list(zip(*heads, strict=True))


class ChexbertLabels:
    """The labels that CheXbert finds in each text. Those of texts seen before are kept: references come back."""

    labels = LABELS

    def __init__(self, model: Chexbert, *, uncertain: Literal["positive", "negative"]) -> None:
        self.model = model
        self.present = (POSITIVE, UNCERTAIN) if uncertain == "positive" else (POSITIVE,)
        self._kept = Kept[tuple[int, ...]](16 * MB)

    def __call__(self, texts: Sequence[str]) -> list[set[str]]:
        known = self._kept(texts, self.model.classes)
        rows = (known[text] for text in texts)
        return [{label for label, value in zip(LABELS, row, strict=True) if value in self.present} for row in rows]


class SembScore:
    """Cosine of the CheXbert embeddings of two reports, in [-1, 1].

    Embeddings of references are kept; references and candidates are encoded apart, as for BERTScore.

    Source: CXR-Report-Metric (there called CheXbert vector similarity); arXiv:2308.05046.
    """

    def __init__(self, model: Chexbert) -> None:
        self.model, self.kept = model, Kept["Tensor"](KEPT_BYTES)

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        import torch

        if not candidates:
            return []
        # Copies: a view would keep the whole batch.
        known = self.kept(references, lambda texts: [row.clone() for row in self.model.embeddings(texts)])
        own = list(dict.fromkeys(candidates))
        rows = {text: i for i, text in enumerate(own)}
        first = self.model.embeddings(own)[[rows[text] for text in candidates]]
        second = torch.stack([known[text] for text in references])
        return torch.cosine_similarity(first, second).tolist()


def positive_labels(classes: Sequence[int]) -> list[int]:
    """The "rrg" conversion: 1 for positive and uncertain, else 0. What papers call CheXbert F1 is computed from it."""
    return [int(value in (POSITIVE, UNCERTAIN)) for value in classes]


def read_checkpoint(path: Path | None) -> dict[str, "Tensor"]:
    """Weights of chexbert.pth, zip or legacy format, without `module.` and without position ids; ValueError if there is
    no such file, or it has no `model_state_dict`.

    Two thirds of the file are the state of its optimiser: mapped, they are never read. Legacy files cannot be.
    """
    if path is None or not path.is_file():
        raise ValueError(
            f"CheXbert: expected chexbert.path to name the published chexbert.pth, got {path}; "
            "stanfordmlgroup/CheXbert says where it is kept and under which licence"
        )
    loaded = load_weights(path, path)
    found = loaded.get("model_state_dict") if isinstance(loaded, dict) else None
    if not is_state(found):
        raise ValueError(f"{path}: expected a CheXbert checkpoint with model_state_dict, found none; fetch it again")
    state = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    # transformers no longer keeps the position ids with the weights
    return {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}


def _bert(bert_config: Any, state: dict[str, "Tensor"], config: ChexbertConfig) -> Any:
    from transformers import BertModel

    if bert_config.model_type != "bert":
        raise ValueError(f"chexbert.bert {config.bert}: expected a BERT, got a {bert_config.model_type}")
    with refuse_damaged(config.bert):
        model = BertModel(bert_config)
    weights = {name.removeprefix("bert."): tensor for name, tensor in state.items() if name.startswith("bert.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{config.path} does not fit the BERT of {config.bert}: {in_one_line(error)}") from error
    return try_model(model, config.bert)


def _heads(state: dict[str, "Tensor"], hidden: int, path: Path | None) -> "tuple[Tensor, Tensor]":
    import torch

    names = [f"linear_heads.{i}" for i in range(len(LABELS))]
    expected = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    present = {name for name in state if not name.startswith("bert.")}
    if present != expected:
        raise ValueError(f"{path}: expected the 14 heads of CheXbert, differing in {sorted(present ^ expected)[:4]}")
    for name, classes in zip(names, NUM_CLASSES, strict=True):
        if state[f"{name}.weight"].shape != (classes, hidden):
            got = tuple(state[f"{name}.weight"].shape)
            raise ValueError(f"{path}: expected {name} of {classes} x {hidden}, got {got}")
    weight, bias = (torch.cat([state[f"{name}.{kind}"] for name in names]) for kind in ("weight", "bias"))
    return weight.float(), bias.float()
