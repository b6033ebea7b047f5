"""Files of a checkpoint: where they are, whether they are complete; its config, tokenizer and image processor.

All of it comes before a weight is read.
"""

import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from radflow.models.vocabulary import control_tokens

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.json",
)
TEXTS = ("*.json", "*.jinja", "*.txt")  # everything but the weights that is published and that a model needs
MOST_SIDE = 256  # pixels of a patch, or patches that are merged; published models have 16 and 2
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
        found = Path(snapshot_download(name["repo"], revision=name["revision"], allow_patterns=patterns))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ValueError(
            f"{path_or_id}: expected a checkpoint directory or the id of a model on the hub; there is no such "
            f"directory, and as an id it failed: {str(error).strip().splitlines()[0]} Check the spelling; without a "
            f"network, fetch it on a machine that has one (hf download {name['repo']}) and give the directory"
        ) from error
    if name["revision"] is None:
        _warn_of_newest(name["repo"], found.name)
    return found


@cache
def _warn_of_newest(repository: str, commit: str) -> None:
    advice = f"to get the same files another time, name them {repository}@{commit}"
    logging.getLogger(__name__).warning(
        "%s: no revision is given, so that its newest files are taken; %s", repository, advice
    )


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
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise ValueError(
            f"{directory}: expected weights in bfloat16 or float32, got a quantised checkpoint ({method}); "
            "take the one that it was made from"
        )
    with refuse_damaged(f"the config of a {kind} model", path):
        return AutoConfig.from_pretrained(directory, trust_remote_code=False)


def check_weights(directory: Path) -> None:
    """Refuse weights that are missing, in a format that can run code, or cut short; only their headers are read."""
    for path in _weight_files(directory):
        with _refuse_damaged_tensors(path), safe_open(path, framework="pt"):
            pass


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file by name; ValueError if it is missing, cut short or damaged."""
    with _refuse_damaged_tensors(path):
        return load_file(path)


@contextmanager
def _refuse_damaged_tensors(path: Path) -> Iterator[None]:
    try:
        yield
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
    if not all(isinstance(name, str) and name.endswith(".safetensors") for name in names.values()):
        raise ValueError(
            f"{index}: expected names of safetensors files in weight_map, got others; copy the index again"
        )
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
    with refuse_damaged("a tokenizer", *(directory / name for name in TOKENIZER_FILES)):
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        control_tokens(tokenizer)
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
    with refuse_damaged("settings of the image processor", *(directory / name for name in names)):
        images = Qwen2VLImageProcessorPil.from_pretrained(directory)
        _check_image_settings(images)
        side = images.patch_size * images.merge_size
        # Other settings are found to be wrong only when an image is read.
        images(Image.new("RGB", (side, side)), size={"shortest_edge": side**2, "longest_edge": side**2})
    low = images.size["shortest_edge"] if min_pixels is None else min_pixels
    high = images.size["longest_edge"] if max_pixels is None else max_pixels
    if low > high:
        raise ValueError(
            f"{directory}: expected max_pixels of at least min_pixels, got {high} and {low}, of which those left out "
            "are the checkpoint's; set both"
        )
    images.size = {"shortest_edge": low, "longest_edge": high}
    return images


def _check_image_settings(images: Any) -> None:
    """Refuse what would fail, or give other pixels, only when the first image is read."""
    names = ("patch_size", "merge_size", "temporal_patch_size", "shortest_edge", "longest_edge")
    settings = vars(images) | {name: images.size[name] for name in names[3:]}
    wrong = [name for name in names if type(settings[name]) is not int or settings[name] < 1]
    wrong += [name for name in names[:3] if not wrong and settings[name] > MOST_SIDE]
    if not 0 < images.rescale_factor < math.inf:
        wrong.append("rescale_factor")
    for name, least in (("image_mean", -math.inf), ("image_std", 0)):
        values = settings[name]
        if len(values) != 3 or not all(least < value < math.inf for value in values):
            wrong.append(name)
    if wrong:
        raise ValueError(f"{wrong[0]} {settings[wrong[0]]!r:.100}")


def tokens_of_largest_image(images: Any) -> int:
    """Image tokens of the largest image within the limits; each is merge_size^2 patches."""
    return images.size["longest_edge"] // (images.patch_size * images.merge_size) ** 2


@contextmanager
def write_folder(directory: Path) -> Iterator[Path]:
    """A folder to fill under a temporary name; flushed to disk it gets its own name, in place of an older one.

    Raises:
        OSError: it could not be written (the file or the folder is named); an older one is untouched.
    """
    temporary, old = (directory.with_name(directory.name + ending) for ending in (".tmp", ".old.tmp"))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _flush(path)
        shutil.rmtree(old, ignore_errors=True)
        if directory.exists():
            os.replace(directory, old)  # removed first, a kill would leave half of it under its name
        os.replace(temporary, directory)
        _flush(directory.parent)
    except Exception as error:
        # safetensors and tokenizers give the system's error as text of one of their own.
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number and not isinstance(error, OSError):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(directory)) from error
        if isinstance(error, OSError):
            error.filename = error.filename or str(directory)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not directory.exists():
            os.replace(old, directory)
        shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    if os.name == "posix":  # Windows opens no folder
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def refuse_damaged(expected: str, *paths: Path) -> Iterator[None]:
    """Raise what transformers, tokenizers or jinja say of these files as a ValueError in one line that names the file.

    They raise nearly every type, plain Exception included, so only their calls belong inside.
    """
    try:
        yield
    except Exception as error:
        present = [path for path in paths if path.is_file()]
        for path in present:
            if path.suffix == ".json":
                read_json(path)  # names the one that is not even JSON
        names = f"{present[0].parent}: {', '.join(path.name for path in present)}" if present[1:] else f"{present[0]}"
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{names}: expected {expected}, got {said}; copy it again") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, without NaN or infinity; a ValueError names a file that holds something else."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected a JSON object, got a file that cannot be read ({error}); copy it again"
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(loaded).__name__}; copy it again")
    return loaded


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
