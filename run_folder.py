"""What surrounds the stages of a run: its config from file and command line, its folder, its lock."""

import dataclasses
import difflib
import fcntl
import importlib.metadata
import platform
import subprocess
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro
import yaml

from capo.journal import write_json, write_whole

C = TypeVar("C")
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow", "nltk", "rouge-score")


def read_config(kind: type[C], argv: Sequence[str], *, default: Path, description: str) -> C:
    """Config of a run: the YAML file named by --config, then the command line over it.

    Exits with a message that names the key when a key is unknown or a value impossible.
    """
    argv, path = list(argv), default
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 == len(argv):
            sys.exit("error: --config expects the path of a YAML file")
        path = Path(argv[at + 1])
        del argv[at : at + 2]
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        flags = _flags(loaded, kind, "", path)
    except (OSError, yaml.YAMLError, ValueError) as error:
        sys.exit(f"error: {error}")
    usage = f"{description}\n--config PATH: YAML file to start from (default {default})."
    options = {"prog": "train.py", "config": (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)}
    try:
        base = tyro.cli(kind, args=flags, description=f"Checking {path}.", **options)
        return tyro.cli(kind, args=argv, default=base, description=usage, **options)
    except ValueError as error:
        sys.exit(f"error: {error}")


def _flags(node: Mapping[str, Any], kind: type, prefix: str, path: Path) -> list[str]:
    """A nested mapping as dotted command-line options, so that file and command line are checked by one parser."""
    if not isinstance(node, Mapping):
        raise ValueError(f"{path}: expected keys under {prefix or 'the top level'}, got {node!r}")
    known = typing.get_type_hints(kind)
    flags = []
    for key, value in node.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise ValueError(f"{path}: unknown key {prefix}{key}; {hint}")
        if dataclasses.is_dataclass(known[key]):
            flags += _flags(value, known[key], f"{prefix}{key}.", path)
        elif isinstance(value, Mapping):
            for name, number in value.items():
                flags += [f"--{prefix}{key}.{name}", str(number)]
        elif isinstance(value, list):
            flags += [f"--{prefix}{key}", *map(str, value)]
        else:
            flags += [f"--{prefix}{key}", str(value)]
    return flags


@contextmanager
def open_run(folder: Path, config: Any, *, may_change: Sequence[str] = ()) -> Iterator[None]:
    """Hold a run folder for one process, and refuse to continue it under another config.

    Args:
        may_change: keys, top-level or dotted, that a resumed run may set differently.

    Raises:
        ValueError: the folder is in use, or holds a run of another config (the keys that differ are named).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"run folder {folder} is in use by another process; wait for it or choose --run-dir"
            ) from error
        _keep_config(folder / "config.yaml", plain(config), may_change)
        write_json(folder / "environment.json", environment())
        yield


def plain(config: Any) -> Any:
    """A config as nested dicts, lists and plain values."""
    if dataclasses.is_dataclass(config):
        return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): plain(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return [plain(value) for value in config]
    return str(config) if isinstance(config, Path) else config


def _keep_config(path: Path, config: dict[str, Any], may_change: Sequence[str]) -> None:
    if path.exists():
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        differing = [
            f"{key} was {old}, is {new}"
            for key, (old, new) in _differences(before, config).items()
            if key not in may_change and key.split(".")[0] not in may_change
        ]
        if differing:
            raise ValueError(
                f"{path.parent} holds a run of another config: {'; '.join(differing[:5])}. "
                "Choose another --run-dir, or remove the folder to start over"
            )
    write_whole(path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return {} if old == new else {prefix[:-1]: (old, new)}
    found = {}
    for key in [*old, *(k for k in new if k not in old)]:
        found |= _differences(old.get(key), new.get(key), f"{prefix}{key}.")
    return found


def environment() -> dict[str, Any]:
    """Versions, commit and devices, for whoever wants to reproduce the run."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": commit.stdout.strip() or None,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or [platform.machine()],
        "threads": torch.get_num_threads(),
    }
