"""Checkpoints written whole or not at all, and the newest readable one found again."""

import os
import pickle
import warnings
from pathlib import Path

import torch


def save_checkpoint(folder: Path, step: int, state: dict[str, object], *, keep: int = 2) -> None:
    """Write `folder/step_{step}.pt` under a temporary name, rename it, and remove all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{step:08d}.pt"
    temporary = target.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save({"step": step, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)
    # A kill while writing leaves a temporary file behind; nothing else does.
    for old in [*_checkpoints(folder)[keep:], *folder.glob("*.tmp")]:
        old.unlink()


def load_checkpoint(folder: Path) -> dict[str, object] | None:
    """The newest checkpoint that can be read, or None. A damaged one is named in a warning and passed over."""
    for path in _checkpoints(folder):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            warnings.warn(f"checkpoint {path} cannot be read and is passed over: {error}", stacklevel=2)
    return None


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.pt"), reverse=True)
