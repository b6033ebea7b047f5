"""Checkpoints of a training stage: written by all ranks in the background, atomically, and verified before use.

A checkpoint is a folder `step_00000020` of safetensors files, one per rank, in the layout of
torch.distributed.checkpoint (any number of ranks can read it), and `checkpoint.json`: step, counters, identity of the
run, and length and SHA-256 of every file.
"""

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
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

from capo.journal import Digests, Files, find_damage, read_stamped, sha256_of, sync_folder, write_stamped
from capo.ranks import Ranks

FACTS = "checkpoint.json"
Check = Callable[[Mapping[str, Any]], str]
# At each save and load of a single process.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written."""


class Checkpoints:
    """The checkpoints of one stage.

    Args:
        identity: hashes of the config and of what the stage is built on; a checkpoint of another identity is refused.
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

    def load(self, tensors: Mapping[str, Tensor], *, check: Check = lambda _: "") -> dict[str, Any] | None:
        """Fill `tensors` in place from the newest usable checkpoint and return its facts; None without checkpoints.

        Skips with a warning what is damaged, incomplete or of another run; ValueError if that leaves no checkpoint.

        Args:
            check: facts -> why a checkpoint cannot be used; "" if it can.
        """
        refused = []
        for path in self._complete():
            reasons = [r for r in self.ranks.all_gather(self._objection(path, _shapes(tensors), check)) if r]
            if not reasons:
                load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(path)), no_dist=self.group is None)
                facts = read_stamped(path / FACTS)
                self.newest = facts["step"]
                return facts
            refused.append(f"{path}: {reasons[0]}")
            if self.ranks.is_main:
                warnings.warn(f"checkpoint {refused[-1]}; passed over", stacklevel=2)
        if refused:
            raise ValueError(
                f"no checkpoint can be used: {'; '.join(refused)}. Restore what is missing, or remove {self.folder} "
                "to start this stage over"
            )
        return None

    def _write(self, step: int, tensors: dict[str, Tensor], facts: dict[str, object]) -> None:
        final = self.folder / f"step_{step:08d}"
        temporary = final.with_suffix(".tmp")
        try:
            if self.ranks.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True, exist_ok=True)
            writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
            save(tensors, storage_writer=writer, process_group=self.group, no_dist=self.group is None)
            if self.ranks.is_main:
                self._seal(temporary, final, {"step": step, **facts, "tensors": _shapes(tensors)})
        except (Exception, CheckpointException) as error:  # CheckpointException is no Exception
            shutil.rmtree(temporary, ignore_errors=True)  # on a full disk it would take the room of the next try
            raise CheckpointError(
                f"checkpoint {final} could not be written: {_cause(error)}; the ones before it are untouched. "
                "Make room or repair the disk and start the same command again"
            ) from error

    def _seal(self, temporary: Path, final: Path, facts: dict[str, object]) -> None:
        files = {p.name: (p.stat().st_size, sha256_of(p)) for p in sorted(temporary.glob("*.safetensors"))}
        write_stamped(temporary / FACTS, {**facts, "identity": self.identity, "files": files})
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        sync_folder(self.folder)
        # A kill during a write leaves a temporary folder.
        for old in [*self._complete()[self.keep :], *self.folder.glob("*.tmp")]:
            shutil.rmtree(old, ignore_errors=True)

    def _complete(self) -> list[Path]:
        """Newest first."""
        return sorted((p for p in self.folder.glob("step_*") if p.suffix != ".tmp"), reverse=True)

    def _objection(self, path: Path, shapes: Mapping[str, list[int]], check: Check) -> str:
        """Why a checkpoint cannot be used; "" if it can. Each rank verifies its share of the files."""
        try:
            facts = read_stamped(path / FACTS)
            # An older version wrote no hash of some of them.
            differing = [k for k, v in self.identity.items() if facts["identity"].get(k, v) != v]
            if differing:
                return f"belongs to a run of another {differing[0]}"
            if reason := check(facts):
                return reason
            others = [n for n in {**shapes, **facts["tensors"]} if shapes.get(n) != facts["tensors"].get(n)]
            if others:
                return f"holds other parameters than are trained here, for example {others[0]}"
            if damage := find_damage(path, _share(facts["files"], self.ranks)):
                return " ".join(damage)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"cannot be read ({error})"
        return ""


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _share(files: Files, ranks: Ranks) -> Files:
    """Those of this rank."""
    return dict(list(files.items())[ranks.rank :: ranks.size])


def _cause(error: BaseException) -> str:
    """The innermost error, on one line."""
    failures = getattr(error, "failures", None)  # of DCP, by rank
    if failures:
        rank, (inner, _) = next(iter(failures.items()))
        return f"rank {rank}: {_cause(inner)}"
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".splitlines()[0]


def check_product(product: Path, ranks: Ranks, *, advice: str) -> None:
    """Refuse a file, or the files of a folder, that are not as their digests say; each rank reads its share of them.

    What has no digests passes: a published checkpoint, or one of an older version.
    """
    if recorded := Digests.read(product):
        for damage in ranks.all_gather(find_damage(recorded.base, _share(recorded.files, ranks))):
            if damage:
                raise ValueError(f"{recorded.base / damage[0]} {damage[1]}; {advice}")
