"""Files of a checkpoint: where they are, whether they are complete; its config, tokenizer and image processor.

All of it comes before a weight is read.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TEXTS = ("*.json", "*.jinja", "*.txt")  # everything but the weights that is published and that a model needs
OLDEST_TRANSFORMERS = (5, 23)  # as in setup.cfg; older ones turn the name of a control token in a text into the token
IMAGE, VISION_START, VISION_END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
START, END = "<|im_start|>", "<|im_end|>"
_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\S+))?")


def check_transformers() -> None:
    """Refuse a transformers that is too old, with a ValueError that says how to get another."""
    installed = version("transformers")
    if tuple(int(part) for part in installed.split(".")[:2]) < OLDEST_TRANSFORMERS:
        oldest = ".".join(map(str, OLDEST_TRANSFORMERS))
        raise ValueError(
            f"expected transformers {oldest} or newer, got {installed}: older ones take the name of a "
            f"control token in an indication for the token; pip install 'transformers>={oldest}'"
        )


def locate(path_or_id: Path | str, *, weights: bool = True) -> Path:
    """Directory of a checkpoint: the given one, or that of a hub id in the local cache, downloaded if needed.

    Args:
        path_or_id: a directory, or owner/name or owner/name@revision as on the hub.
        weights: download them too, not only configuration and tokenizer.

    Raises:
        ValueError: neither a directory, nor an id that the hub or the cache knows; or transformers is too old.
    """
    check_transformers()
    directory, name = Path(path_or_id), _HUB_ID.fullmatch(str(path_or_id))
    if directory.is_dir() or name is None:
        return directory
    patterns = [*TEXTS, "*.safetensors"] if weights else [*TEXTS]
    try:
        return Path(snapshot_download(name["repo"], revision=name["revision"], allow_patterns=patterns))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ValueError(
            f"{path_or_id}: expected a checkpoint directory or the id of a model on the hub; there is no such "
            f"directory, and as an id it failed: {str(error).strip().splitlines()[0]} Check the spelling; without a "
            f"network, fetch it on a machine that has one (hf download {name['repo']}) and give the directory"
        ) from error


def architecture(directory: Path) -> Any:
    """The config of a checkpoint (transformers' own class of its family), in the old flat layout or the nested one.

    Raises:
        ValueError: none there, unreadable, or not of a dense Qwen-VL model with plain weights.
    """
    path = directory / "config.json"
    if not path.is_file():
        adapter = "; it holds an adapter alone: merge it, or give the model that it was trained on"
        hint = adapter if (directory / "adapter_config.json").is_file() else ""
        raise ValueError(f"{directory}: expected a Qwen-VL checkpoint directory with a config.json, found none{hint}")
    config = read_json(path)
    kind = config.get("model_type")
    if kind not in KINDS:
        dense = ", a mixture of experts; take a dense size, such as Qwen3-VL 2B, 4B, 8B or 32B"
        hint = dense if kind == "qwen3_vl_moe" else ""
        raise ValueError(f"{directory}: expected a model of type {' or '.join(KINDS)}, got {kind}{hint}")
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method")
        raise ValueError(
            f"{directory}: expected weights in bfloat16 or float32, got a quantised checkpoint ({method}); "
            "take the one that it was made from"
        )
    try:
        return AutoConfig.from_pretrained(directory)
    except (OSError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"{path}: expected the config of a {kind} model, got {error}; copy it again") from error


def check_weights(directory: Path) -> None:
    """Refuse weights that are missing, in a format that can run code, or cut short; only their headers are read."""
    for path in _weight_files(directory):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path}: expected a safetensors file, got one that is cut short or damaged ({error}); copy it again"
            ) from error


def _weight_files(directory: Path) -> list[Path]:
    """The single file, which transformers prefers too, or every shard that the index names."""
    index = directory / INDEX
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if not index.is_file():
        raise ValueError(f"{directory}: {_without_weights(directory)}")
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index}: expected a weight_map from weights to files, got none; copy the index again")
    shards = sorted(set(names.values()))
    if missing := [name for name in shards if not (directory / name).is_file()]:
        raise ValueError(
            f"{directory}: {len(missing)} of {len(shards)} weight files are missing: {', '.join(missing[:5])}; "
            "copy the whole checkpoint"
        )
    return [directory / name for name in shards]


def _without_weights(directory: Path) -> str:
    expected = f"expected {WEIGHTS}, or shards with {INDEX}, found"
    if pickles := sorted(path.name for path in directory.glob("pytorch_model*.bin")):
        return (
            f"{expected} {pickles[0]} only. Reading a pickle can run code, so it is refused; if you trust its origin, "
            "load it once with transformers and write it again with save_pretrained"
        )
    if shards := sorted(path.name for path in directory.glob("model-*.safetensors")):
        return f"{expected} {len(shards)} shards without an index; copy the index too"
    return f"{expected} neither; copy the whole checkpoint"


def load_tokenizer(directory: Path) -> Any:
    """Tokenizer of a checkpoint with its chat template; a ValueError says which of its files or tokens is missing."""
    if not (directory / "tokenizer_config.json").is_file():
        raise ValueError(f"{directory}: expected tokenizer files of a Qwen-VL checkpoint, found none")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for token in (IMAGE, VISION_START, VISION_END, START, END):
        if token not in tokenizer.get_vocab():
            raise ValueError(f"{directory}: expected a Qwen-VL tokenizer, its token {token} is missing")
    template = tokenizer.chat_template
    if (directory / "chat_template.json").is_file():  # goes first, as in transformers
        template = read_json(directory / "chat_template.json").get("chat_template")
    try:
        tokenizer.chat_template = _default_template(template)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}; copy the file published with the model") from error
    return tokenizer


def _default_template(template: Any) -> str:
    """The chat template itself, or the one called default of several, as a list or by name."""
    if isinstance(template, list) and all(isinstance(one, dict) for one in template):
        template = {one.get("name"): one.get("template") for one in template}
    if isinstance(template, dict):
        if "default" not in template:
            raise ValueError(f"expected a chat template called default, found {', '.join(map(str, template))}")
        template = template["default"]
    if not isinstance(template, str) or not template:
        found = type(template).__name__ if template else "none"
        files = "chat_template.jinja, chat_template.json or tokenizer_config.json"
        raise ValueError(f"expected a chat template in {files}, found {found}")
    return template


def load_image_processor(directory: Path, *, min_pixels: int | None, max_pixels: int | None) -> Any:
    """Image processor of a checkpoint; a given limit replaces the published one. ValueError if low exceeds high."""
    names = ("preprocessor_config.json", "processor_config.json")
    if not any((directory / name).is_file() for name in names):
        raise ValueError(f"{directory}: expected {' or '.join(names)}, found neither; copy the whole checkpoint")
    try:
        images = Qwen2VLImageProcessorPil.from_pretrained(directory)
    except OSError as error:  # a processor_config.json that says nothing about images
        raise ValueError(f"{directory}: expected settings of the image processor, found none: {error}") from error
    low = images.size["shortest_edge"] if min_pixels is None else min_pixels
    high = images.size["longest_edge"] if max_pixels is None else max_pixels
    if low > high:
        raise ValueError(
            f"{directory}: expected max_pixels of at least min_pixels, got {high} and {low}, of which those left out "
            "are the checkpoint's; set both"
        )
    images.size = {"shortest_edge": low, "longest_edge": high}
    return images


def tokens_of_largest_image(images: Any) -> int:
    """Image tokens of the largest image within the limits; each is merge_size^2 patches."""
    return images.size["longest_edge"] // (images.patch_size * images.merge_size) ** 2


@contextmanager
def write_folder(directory: Path) -> Iterator[Path]:
    """A folder to fill under a temporary name; it gets its own name, in place of an older one, once it is complete."""
    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    if directory.is_dir():
        shutil.rmtree(directory)
    os.replace(temporary, directory)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; a ValueError names a file that holds something else."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected a JSON object, got a file that cannot be read ({error})") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(loaded).__name__}")
    return loaded
