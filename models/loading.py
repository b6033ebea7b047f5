"""Where a checkpoint is, what it says it is, and whether its files are whole: all before a weight is read."""

import json
import re
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig

KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TEXTS = ("*.json", "*.jinja", "*.txt")  # everything that is published beside the weights, and that a model needs
OLDEST_TRANSFORMERS = (5, 23)  # as in setup.cfg; older ones turn the name of a control token in a text into the token
_HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\S+))?")


def check_transformers() -> None:
    """Refuse a transformers that is too old.

    Raises:
        ValueError: what is installed, and how to get another.
    """
    installed = version("transformers")
    if tuple(int(part) for part in installed.split(".")[:2]) < OLDEST_TRANSFORMERS:
        oldest = ".".join(map(str, OLDEST_TRANSFORMERS))
        raise ValueError(
            f"expected transformers {oldest} or newer, got {installed}: older ones take the name of a "
            f"control token in an indication for the token; pip install 'transformers>={oldest}'"
        )


def locate(path_or_id: Path | str, *, weights: bool = True) -> Path:
    """Directory of a checkpoint: the one that is named, or that of a hub id in the local cache, fetched if need be.

    Args:
        path_or_id: a directory, or owner/name or owner/name@revision as on the hub.
        weights: fetch them too; without, configuration and tokenizer only.

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
            f"network, fetch it where there is one (hf download {name['repo']}) and give the directory"
        ) from error


def architecture(directory: Path) -> PretrainedConfig:
    """The config of a checkpoint, in the flat layout of the first families or the nested one of today.

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
    if kind == "qwen3_vl_moe":
        raise ValueError(
            f"{directory}: expected a dense Qwen-VL model, got {kind}, a mixture of experts; "
            "take a dense size, such as Qwen3-VL 2B, 4B, 8B or 32B"
        )
    if kind not in KINDS:
        raise ValueError(f"{directory}: expected a model of type {' or '.join(KINDS)}, got {kind}")
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
    """Refuse weights that are missing, in a format that can run code, or cut short; only their headers are read.

    Raises:
        ValueError: names the files and what to do.
    """
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
    if not (directory / WEIGHTS).is_file() and not index.is_file():
        raise ValueError(f"{directory}: {_without_weights(directory)}")
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
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
            f"{expected} {pickles[0]} only. Reading a pickle can run code, so it is refused; where you trust its "
            "origin, load it once with transformers and write it again with save_pretrained"
        )
    if shards := sorted(path.name for path in directory.glob("model-*.safetensors")):
        return f"{expected} {len(shards)} shards without an index; copy the index too"
    return f"{expected} neither; copy the whole checkpoint"


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file.

    Raises:
        ValueError: names the file that holds something else.
    """
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a JSON object, got a file that cannot be read ({error})") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(loaded).__name__}")
    return loaded
