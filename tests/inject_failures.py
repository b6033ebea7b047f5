"""Let each write of a small run fail once: `python tests/inject_failures.py --every 10 --seed 1` tries one call in ten.

A quiet run counts the calls by which Python changes files of the run folder: `write` of an open file, `os.fsync`,
`os.replace`, and the writing of safetensors. For each chosen call a run is started in which this one fails (disk full
and I/O error in turn); it must end with one line that names a file and exit code 1, or warn and go on. The same command
without a failure must then end with the files of the quiet run. Prints operation x tried x survived; exit code 1 if any
did not survive.

Not reached: what C++ and Rust write inside one call (the blocks of a safetensors file, tokenizer.json), closing files,
making and removing folders. Runs on a disk that is really full cover these.
"""

import argparse
import builtins
import errno
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
import safetensors.torch
from mutants import LIBRARIES
from small_run import ROOT, SIZES, options_of
from test_train_faults import assert_same

from radflow import train
from radflow.pipeline.run import PRODUCTS, identify

OPERATIONS = ("write", "fsync", "replace", "safetensors")
LIMIT_S = 300
TINY = options_of(
    {
        **SIZES,
        "model.tiny.hidden-size": 32,
        "model.tiny.layers": 1,
        "data.num-train": 6,
        "data.num-test": 2,
        "warmup.steps": 1,
        "sft.steps": 2,
        "sft.batch-size": 2,
        "sft.checkpoint-every": 1,
        "explore.part-size": 3,
        "explore.fraction": 0.5,
        "rl.steps": 2,
        "rl.studies-per-step": 2,
        "rl.group-size": 2,
        "rollout.max-new-tokens": 6,
        "evaluate.max-new-tokens": 6,
        "evaluate.baseline-sample": 2,
        "reward.workers": 0,
    }
)


class Failures:
    """Counts the calls that change files in a folder and lets the one of number `fail_at` fail."""

    def __init__(self, folder: Path, fail_at: int | None) -> None:
        self.folder, self.fail_at, self.calls = str(folder), fail_at, []

    def install(self) -> None:
        opened, fsync, replace, serialize = io.open, os.fsync, os.replace, safetensors.torch.serialize_file

        def open_counted(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
            stream = opened(file, mode, *args, **options)
            inside = not isinstance(file, int) and self._holds(file) and set(mode) & set("wax+")
            return Counted(stream, partial(self.call, "write", file)) if inside else stream

        def fsync_counted(descriptor: int) -> None:
            self.call("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))
            fsync(descriptor)

        def replace_counted(source: Any, target: Any, **options: Any) -> None:
            self.call("replace", target, str(source), None, str(target))
            replace(source, target, **options)

        def serialize_counted(tensors: Any, file: Any, **options: Any) -> None:
            self.call("safetensors", file)
            serialize(tensors, file, **options)

        builtins.open = io.open = open_counted
        os.fsync, os.replace, os.rename = fsync_counted, replace_counted, replace_counted
        safetensors.torch.serialize_file = serialize_counted

    def call(self, operation: str, path: Any, *names: str | None) -> None:
        if not self._holds(path):
            return
        self.calls.append(operation)
        if len(self.calls) - 1 == self.fail_at:
            number = (errno.ENOSPC, errno.EIO)[len(self.calls) % 2]
            if operation == "safetensors":
                Path(path).touch()  # as little as a full disk takes
                message = f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})"
                raise safetensors.SafetensorError(message)
            raise OSError(number, os.strerror(number), *names)

    def _holds(self, path: Any) -> bool:
        return os.path.abspath(os.fspath(path)).startswith(self.folder)


class Counted:
    """An open file, each `write` of which is counted first."""

    def __init__(self, stream: Any, count: Callable[[], None]) -> None:
        self._stream, self._count = stream, count

    def write(self, content: Any) -> Any:
        self._count()
        return self._stream.write(content)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __enter__(self) -> "Counted":
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run(folder: Path, fail_at: int | None = None) -> tuple[int, str, list[str]]:
    """train.py in a copy of this process: exit code, standard output and errors, and the operations that were counted.

    The copy has imported everything; a start takes seconds otherwise.
    """
    said = folder.with_suffix(".said")
    child = os.fork()
    if child == 0:
        signal.alarm(LIMIT_S)
        descriptor = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(descriptor, 1), os.dup2(descriptor, 2)
        failures, code = Failures(folder, fail_at), 1
        failures.install()
        try:
            train.main(["--run-dir", str(folder), *TINY])
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            print(end.code if isinstance(end.code, str) else "", file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os.write(descriptor, f"\n#calls {' '.join(failures.calls)}\n".encode())
        os._exit(code)
    _, status = os.waitpid(child, 0)
    text, _, calls = said.read_text().partition("\n#calls ")
    return os.waitstatus_to_exitcode(status), text, calls.split()


def attempt(scratch: Path, quiet: Path, number: int) -> str:
    """Run with one failure and again without; "" if nothing was lost, else what went wrong."""
    folder = scratch / f"run_{number}"
    code, said, calls = run(folder, number)
    if len(calls) <= number:
        return ""  # written in time only, such as the dashboard, and not at all this time
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    told = len(errors) == 1 and str(folder) in errors[0] if code else "warning: " in said
    if code not in (0, 1) or not told or "Traceback" in said:
        return f"exit code {code}, expected one line that names a file: {said[-1500:]}"
    code, said, _ = run(folder)
    if code:
        return f"the rerun ended with {code}: {said[-1500:]}"
    try:
        assert_same(folder, quiet)
        assert identify(folder, *PRODUCTS) == identify(quiet, *PRODUCTS), "products differ"
        assert not list(folder.rglob("*.tmp")), "temporary files are left"
    except (AssertionError, OSError) as error:
        return f"the rerun ended with other files: {error}"
    shutil.rmtree(folder)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="one call in so many is tried")
    parser.add_argument("--seed", type=int, default=0, help="which of them")
    parser.add_argument("--jobs", type=int, default=2, help="runs at one time")
    options = parser.parse_args()
    os.chdir(ROOT)
    for name in (*LIBRARIES, "torch.distributed.checkpoint.hf_storage"):
        import_module(name)
    with tempfile.TemporaryDirectory() as scratch:
        quiet = Path(scratch) / "quiet"
        code, said, calls = run(quiet)
        assert code == 0, said
        first = random.Random(options.seed).randrange(options.every)
        chosen, tried, survived = range(first, len(calls), options.every), Counter(), Counter()
        with get_context("fork").Pool(options.jobs) as pool:
            wrong = pool.imap(partial(attempt, Path(scratch), quiet), chosen)
            for number, what in zip(chosen, wrong, strict=True):
                tried[calls[number]] += 1
                survived[calls[number]] += not what
                if what:
                    print(f"call {number}, {calls[number]}: {what}", flush=True)
    print(f"{'operation':12} {'calls':>6} {'tried':>6} {'survived':>8}")
    for name in OPERATIONS:
        print(f"{name:12} {calls.count(name):6} {tried[name]:6} {survived[name]:8}")
    sys.exit(survived != tried)


if __name__ == "__main__":
    main()
