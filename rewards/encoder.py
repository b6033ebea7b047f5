"""A text encoder of transformers behind its tokenizer, batched by token budget. Imported by what loads one only."""

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

PREFIX_SPACE = ("roberta", "longformer")  # model types whose first word is a word only behind a space
# Families that can be built without the pooler: their published checkpoints may lack it, and nothing here reads it.
_WITHOUT_POOLER = ("bert", "roberta", "xlm-roberta", "longformer")


class TextEncoder:
    """Hidden states of texts, in inference mode, each text cut at `max_tokens`.

    Args:
        model: takes input_ids and attention_mask, returns last_hidden_state.
        tokenizer: adds the special tokens around each text.
        max_tokens: most tokens a text may have, special ones included.
        token_budget: padded tokens a batch; texts of like length share one.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_tokens: int, token_budget: int, device: str) -> None:
        self.model = model.eval().requires_grad_(False).to(pick_device(device))
        self.tokenizer, self.max_tokens, self.token_budget = tokenizer, max_tokens, token_budget

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included."""
        if not texts:
            return []
        return self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]

    def batches(self, ids: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Any]]:
        """(places, hidden states [B, T, H] float32 on the CPU) of texts of like length; the padding stands behind."""
        import torch

        pad, device = self.tokenizer.pad_token_id, next(self.model.parameters()).device
        for places in in_budget([len(row) for row in ids], self.token_budget):
            longest = max(len(ids[i]) for i in places)
            rows = [[*ids[i], *[pad] * (longest - len(ids[i]))] for i in places]
            mask = [[1] * len(ids[i]) + [0] * (longest - len(ids[i])) for i in places]
            with torch.inference_mode():
                inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
                out = self.model(**{name: tensor.to(device) for name, tensor in inputs.items()})
                yield places, out.last_hidden_state.float().cpu()


def in_budget(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Places of `lengths`, shortest first, in batches whose padded size stays within `budget`; a text too long for it
    is a batch of its own."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[place] > budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def load_tokenizer(path: str, model_type: str) -> Any:
    """Tokenizer of an encoder, one that reads the first word of a text like any other.

    transformers 5 ignores `add_prefix_space` where a text is tokenised, without a word; it must be given when the
    tokenizer is loaded. What came of it is checked.

    Raises:
        ValueError: no tokenizer there, or one that treats the first word differently all the same.
    """
    from transformers import AutoTokenizer

    options = {"add_prefix_space": True} if model_type in PREFIX_SPACE else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    except (OSError, ValueError) as error:
        raise ValueError(_absent(path, error)) from error
    if not options:
        return tokenizer
    first, behind_a_space = (tokenizer(text)["input_ids"] for text in ("heart", " heart"))
    if first != behind_a_space:
        raise ValueError(
            f"{path}: expected a tokenizer that takes add_prefix_space, {type(tokenizer).__name__} does not"
        )
    return tokenizer


def first_layers(model: Any, num_layers: int, path: str) -> Any:
    """The model without the layers above `num_layers`: its last hidden state is then the output of that layer.

    Raises:
        ValueError: not a BERT-like encoder, or one with fewer layers.
    """
    layers = getattr(getattr(model, "encoder", None), "layer", None)
    if layers is None:
        raise ValueError(f"{path}: expected a BERT-like encoder (BERT, RoBERTa, XLM-R ...), got {type(model).__name__}")
    if not 1 <= num_layers <= len(layers):
        raise ValueError(f"{path}: expected num_layers from 1 to {len(layers)}, its layers, got {num_layers}")
    model.encoder.layer = layers[:num_layers]
    return model


def positions_of(config: Any) -> int:
    """Most tokens that an encoder has positions for; RoBERTa's count from behind the padding token's id."""
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "longformer") else 0
    return config.max_position_embeddings - offset


def pick_device(name: str) -> str:
    """`auto`: this rank's GPU where there is one. The ranks of a node share its reward workers out over its GPUs."""
    import torch

    if name not in ("auto", "cuda"):
        return name
    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % max(1, torch.cuda.device_count())}"


def load_encoder(path: str) -> Any:
    """The bare encoder at `path` in float32, its head left out.

    Raises:
        ValueError: nothing there, or not a model that transformers knows.
    """
    from transformers import AutoModel

    config = load_model_config(path)
    options = {"add_pooling_layer": False} if config.model_type in _WITHOUT_POOLER else {}
    # What it reports is the unused head of the pretraining, in every worker process.
    logger = logging.getLogger("transformers.modeling_utils")
    before, logger.level = logger.level, logging.ERROR
    try:
        return AutoModel.from_pretrained(path, dtype="float32", **options)
    except (OSError, ValueError) as error:
        raise ValueError(_absent(path, error)) from error
    finally:
        logger.setLevel(before)


def load_model_config(path: str) -> Any:
    """Config of the model at `path`.

    Raises:
        ValueError: nothing there, or not a model that transformers knows.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(_absent(path, error)) from error


def _absent(path: str, error: Exception) -> str:
    return (
        f"{path}: expected the directory of an encoder (config.json, weights, tokenizer files) or its name on the hub; "
        f"fetch it with `hf download {path}` where there is a network ({str(error).splitlines()[0]})"
    )
