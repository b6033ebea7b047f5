"""Checkpoints of a training stage: written by all ranks in the background, atomically, and verified before use.

A checkpoint is a folder `step_00000020` of safetensors files, one per rank, in the layout of
torch.distributed.checkpoint (any number of ranks can read it), and `checkpoint.json`: step, counters, identity of the
run, and length and SHA-256 of every file.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from capo.journal import write_json
from capo.ranks import Ranks

FACTS = "checkpoint.json"
# At each save and load of a single process.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written."""


class Checkpoints:
    """The checkpoints of one stage.

    Args:
        identity: hashes of the config and of the selected studies; a checkpoint of another identity is refused.
        keep: number of complete checkpoints to keep.
    """

    def __init__(self, folder: Path, ranks: Ranks, *, identity: Mapping[str, str], keep: int = 2) -> None:
        self.folder, self.ranks, self.identity, self.keep = folder, ranks, dict(identity), keep
        # Another group than that of training: the background thread communicates at any time.
        timeout = timedelta(seconds=ranks.timeout_s)
        self.group = dist.new_group(backend="gloo", timeout=timeout) if ranks.size > 1 else None
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.pending: Future[None] | None = None
        self.newest: int | None = None  # step of the one read or written last

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
        """Copy the state to host memory and return; the files are written in the background.

        `tensors` are DTensors, or plain tensors that are equal on every rank; `facts` are everything else, as JSON.
        CheckpointError if the checkpoint before this one could not be written.
        """
        self.finish()
        if step == self.newest:
            return
        self.newest = step
        staged = BlockingAsyncStager(cache_staged_state_dict=False).stage(dict(tensors))
        self.pending = self.thread.submit(self._write, step, staged, dict(facts))

    def finish(self) -> None:
        """Wait until the last `save` is on disk; CheckpointError if it failed, which changes no earlier checkpoint."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def load(self, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Fill `tensors` in place from the newest usable checkpoint and return its facts; None without checkpoints.

        Skips with a warning what is damaged, incomplete or of another run; ValueError if that leaves no checkpoint.
        """
        refused = []
        for path in self._complete():
            reasons = [r for r in self.ranks.all_gather(self._objection(path, _shapes(tensors))) if r]
            if not reasons:
                load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(path)), no_dist=self.group is None)
                facts: dict[str, Any] = json.loads((path / FACTS).read_text(encoding="utf-8"))
                self.newest = facts["step"]
                return facts
            refused.append(f"{path}: {reasons[0]}")
            if self.ranks.is_main:
                warnings.warn(f"checkpoint {refused[-1]}; passed over", stacklevel=2)
        if refused:
            raise ValueError(
                f"no checkpoint can be used: {'; '.join(refused)}. Restore one, or remove {self.folder} to start this "
                "stage over"
            )
        return None

    def _write(self, step: int, tensors: dict[str, Tensor], facts: dict[str, object]) -> None:
        final = self.folder / f"step_{step:08d}"
        temporary = final.with_suffix(".tmp")
        if self.ranks.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True, exist_ok=True)
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        try:
            save(tensors, storage_writer=writer, process_group=self.group, no_dist=self.group is None)
            if self.ranks.is_main:
                self._seal(temporary, final, {"step": step, **facts, "tensors": _shapes(tensors)})
        except (Exception, CheckpointException) as error:  # CheckpointException is no Exception
            raise CheckpointError(
                f"checkpoint {final} could not be written: {_cause(error)}; the ones before it are untouched. "
                "Make room or repair the disk and start the same command again"
            ) from error

    def _seal(self, temporary: Path, final: Path, facts: dict[str, object]) -> None:
        files = {p.name: [p.stat().st_size, _digest(p)] for p in sorted(temporary.glob("*.safetensors"))}
        write_json(temporary / FACTS, {**facts, "identity": self.identity, "files": files})
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        # A kill during a write leaves a temporary folder.
        for old in [*self._complete()[self.keep :], *self.folder.glob("*.tmp")]:
            shutil.rmtree(old, ignore_errors=True)

    def _complete(self) -> list[Path]:
        """Newest first."""
        return sorted((p for p in self.folder.glob("step_*") if p.suffix != ".tmp"), reverse=True)

    def _objection(self, path: Path, shapes: Mapping[str, list[int]]) -> str:
        """Why a checkpoint cannot be used; "" if it can. Each rank verifies its share of the files."""
        try:
            facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
            differing = [k for k, v in self.identity.items() if facts["identity"].get(k) != v]
            if differing:
                return f"belongs to a run of another {differing[0]}"
            others = [n for n in {**shapes, **facts["tensors"]} if shapes.get(n) != facts["tensors"].get(n)]
            if others:
                return f"holds other parameters than are trained here, for example {others[0]}"
            for name, (size, digest) in list(facts["files"].items())[self.ranks.rank :: self.ranks.size]:
                found = (path / name).stat().st_size
                if found != size:
                    return f"{name} has {found} bytes, expected {size}"
                if _digest(path / name) != digest:
                    return f"{name} is damaged: its SHA-256 is not the one recorded"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"cannot be read ({error})"
        return ""


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cause(error: BaseException) -> str:
    """The innermost error, on one line."""
    failures = getattr(error, "failures", None)  # of DCP, by rank
    if failures:
        rank, (inner, _) = next(iter(failures.items()))
        return f"rank {rank}: {_cause(inner)}"
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".splitlines()[0]
