"""A text encoder of transformers with its tokenizer, batched by token budget, and a memory of what it made."""

import io
import json
import logging
import os
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from radflow.rewards.hub import at_commit

if TYPE_CHECKING:
    from torch import Tensor

PREFIX_SPACE = ("roberta", "longformer")  # model types whose first word is a word only after a space
# Families that can be built without the pooler: their published checkpoints may lack it, and nothing here reads it.
_WITHOUT_POOLER = ("bert", "roberta", "xlm-roberta", "longformer")


class TextEncoder:
    """Hidden states of texts, in inference mode, each text cut at `max_tokens`.

    Args:
        model: takes input_ids and attention_mask, returns last_hidden_state.
        tokenizer: adds the special tokens around each text.
        max_tokens: most tokens a text may have, special ones included.
        token_budget: padded tokens per batch; texts of similar length share one.
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_tokens: int, token_budget: int, device: str) -> None:
        self.model = place_encoder(model, device)
        self.tokenizer, self.max_tokens, self.token_budget = tokenizer, max_tokens, token_budget

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included."""
        if not texts:
            return []
        return self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]

    def batches(self, ids: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Any]]:
        """(indices, hidden states [B, T, H] float32 on the CPU) of texts of similar length, padded at the end."""
        import torch

        pad, device = self.tokenizer.pad_token_id, next(self.model.parameters()).device
        for indices in cut_batches([len(row) for row in ids], self.token_budget):
            longest = max(len(ids[i]) for i in indices)
            rows = [[*ids[i], *[pad] * (longest - len(ids[i]))] for i in indices]
            mask = [[1] * len(ids[i]) + [0] * (longest - len(ids[i])) for i in indices]
            with torch.inference_mode():
                inputs = {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}
                out = self.model(**{name: tensor.to(device) for name, tensor in inputs.items()})
                yield indices, out.last_hidden_state.float().cpu()


def cut_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of `lengths`, shortest first, in batches whose padded size stays within `budget`; a text too long for it
    is a batch of its own."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        # Sorted: this text is the longest of the batch that it joins.
        if batches and (len(batches[-1]) + 1) * lengths[i] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def load_tokenizer(path: str, config: Any) -> Any:
    """Tokenizer of the encoder of this config, one that reads the first word of a text like any other; ValueError if
    there is none, or one of more tokens than the encoder has.

    transformers 5 silently ignores `add_prefix_space` when a text is tokenised; it must be given when the tokenizer is
    loaded, and is checked here.
    """
    from transformers import AutoTokenizer

    needs_space = config.model_type in PREFIX_SPACE
    with refuse_damaged(path):
        tokenizer = AutoTokenizer.from_pretrained(
            **at_commit(path), **{"add_prefix_space": True} if needs_space else {}
        )
        # One without its unknown token fails only at the first word that it lacks.
        first, second, _ = tokenizer(["heart", " heart", "\N{SNOWMAN}"])["input_ids"]
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{path}: expected at most {config.vocab_size} tokens, as config.json says, got {len(tokenizer)}; "
            "copy config and tokenizer from one model"
        )
    if needs_space and first != second:
        kind = type(tokenizer).__name__
        raise ValueError(f"{path}: expected a tokenizer that takes add_prefix_space, {kind} does not")
    return tokenizer


def first_layers(model: Any, num_layers: int, path: str) -> Any:
    """The model without the layers above `num_layers`: its last hidden state is then the output of that layer.
    ValueError if it is not a BERT-like encoder, or has fewer layers."""
    layers = getattr(getattr(model, "encoder", None), "layer", None)
    if layers is None:
        raise ValueError(f"{path}: expected a BERT-like encoder (BERT, RoBERTa, XLM-R ...), got {type(model).__name__}")
    if not 1 <= num_layers <= len(layers):
        raise ValueError(f"{path}: expected num_layers from 1 to {len(layers)}, its layers, got {num_layers}")
    model.encoder.layer = layers[:num_layers]
    return model


def positions_of(config: Any) -> int:
    """Most tokens that an encoder has positions for; RoBERTa's count from after the padding token's id."""
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "longformer") else 0
    return config.max_position_embeddings - offset


def pick_device(name: str) -> str:
    """`auto`: this rank's GPU if there is one; so the reward workers of a node are spread over its GPUs."""
    import torch

    if name not in ("auto", "cuda"):
        return name
    if name == "auto" and not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % max(1, torch.cuda.device_count())}"


def place_encoder(model: Any, device: str) -> Any:
    """The model for inference on its device. On a CPU the float32 weights of its linear layers are reordered as the
    kernel reads them: a tenth faster, and up to a half for one short text."""
    import torch

    # The same kernel as in capo.sampling.pack_linear, which rewards may not import.
    device = pick_device(device)
    model = model.eval().requires_grad_(False).to(device)
    if device == "cpu" and torch.backends.mkldnn.is_available():
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear) and layer.weight.dtype == torch.float32:
                weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight)
                layer.forward = partial(_multiply, weight, layer.bias)  # type: ignore[method-assign]
                layer.register_parameter("weight", None)
    return model


def _multiply(weight: "Tensor", bias: "Tensor | None", rows: "Tensor") -> "Tensor":
    import torch

    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def load_encoder(path: str) -> Any:
    """The bare encoder at `path` in float32, its head left out; raises as `load_model_config`."""
    from transformers import AutoModel

    options = {"add_pooling_layer": False} if load_model_config(path).model_type in _WITHOUT_POOLER else {}
    # What it reports is the unused head of the pretraining, in every worker process.
    logger = logging.getLogger("transformers.modeling_utils")
    before, logger.level = logger.level, logging.ERROR
    try:
        return try_model(load_pretrained(AutoModel, path, dtype="float32", **options), path)
    finally:
        logger.setLevel(before)


def load_model_config(path: str) -> Any:
    """Config of the model at `path`; ValueError if nothing is there, or a model that transformers does not know."""
    from transformers import AutoConfig

    return load_pretrained(AutoConfig, path)


def load_pretrained(kind: Any, path: str, **options: Any) -> Any:
    """`kind.from_pretrained`; ValueError says how to get what is not there, or is damaged."""
    with refuse_damaged(path):
        return kind.from_pretrained(**at_commit(path), **options)


def try_model(model: Any, path: str) -> Any:
    """Run a model once and return it in evaluation mode: values of its config such as a dropout of NaN fail only then.
    ValueError as `load_pretrained`."""
    import torch

    with refuse_damaged(path), torch.inference_mode():
        model.eval()(input_ids=torch.zeros(1, 2, dtype=torch.long))
    return model


@contextmanager
def refuse_damaged(path: str) -> Iterator[None]:
    """Raise what transformers and tokenizers say of the encoder at `path` as a ValueError in one line.

    They raise nearly every type, plain Exception included, so only their calls belong inside.
    """
    try:
        yield
    except Exception as error:
        advice = f"fetch it with `hf download {path}` on a machine with a network"
        if Path(path).is_dir():
            damaged = [one.name for one in sorted(Path(path).glob("*.json")) if not _is_json(one)]
            advice = f"copy {' and '.join(damaged) or 'it'} again"
        raise ValueError(
            f"{path}: expected the directory of an encoder (config.json, weights, tokenizer files) or its name on the "
            f"hub; {advice} ({in_one_line(error)})"
        ) from error


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return True


def load_weights(file: Path | bytes, name: Path | str) -> Any:
    """What `torch.save` wrote, tensors and plain values only, mapped from its file if the format allows it.

    Args:
        name: of the file, for the ValueError if it cannot be read, or holds anything that could run code.
    """
    import torch

    opened = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        zipped = zipfile.is_zipfile(opened)
        if zipped and any(one.compress_type for one in zipfile.ZipFile(opened).infolist()):
            raise ValueError("it is compressed, as torch never writes it")
        if isinstance(opened, io.BytesIO):
            opened.seek(0)
        return torch.load(opened, map_location="cpu", weights_only=True, mmap=zipped and isinstance(file, Path))
    except pickle.UnpicklingError as error:  # torch's own text recommends to run the code
        raise ValueError(
            f"{name}: expected weights as torch.save writes them, cannot read them: the file is damaged, "
            "or holds other objects than tensors, which could run code; fetch it again"
        ) from error
    except Exception as error:  # torch, zipfile and pickle raise a dozen types for a damaged file
        raise ValueError(
            f"{name}: expected weights as torch.save writes them, cannot read them: {in_one_line(error)}; "
            "fetch it again"
        ) from error


def is_state(loaded: object) -> "TypeGuard[dict[str, Tensor]]":
    """Whether this is a plain state dict: names and tensors."""
    import torch

    return isinstance(loaded, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in loaded.items()
    )


def check_directories(metric: str, *paths: Path | None) -> None:
    """ValueError unless each is a directory: of any other name transformers asks the hub."""
    for path in paths:
        if path is None or not path.is_dir():
            raise ValueError(
                f"{metric}: expected the directory of a published model at {path}, found none; correct the path"
            )


def in_one_line(error: BaseException) -> str:
    """What a library raised: its kind and the start of what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
