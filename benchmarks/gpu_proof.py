"""Everything that only a GPU can show, in one command and nine minutes.

    make gpu                                   on a machine with an NVIDIA card
    make gpu ARGS=--small                      every section on a CPU, at tiny sizes: the program itself is tested
    make gpu ARGS='--section flex,graphs'      some sections
    make gpu ARGS='--show FILE'                a result file as a table

Each section runs in a process of its own: one that crashes, runs out of memory or hangs does not stop the others. After
each a line of JSON is appended to the result file, so that nothing is lost if the machine is taken away. docs/gpu.md
says what every figure means. The exit status is 1 if any section failed.

After a failure look at
    flex               what TORCH_LOGS=recompiles names: every size must be dynamic, and none 1
    logps in float32   TF32, then the vision tower, then flex
    graphs             recordings that point to replaced buffers (capo.static_decode)
    fsdp, two_ranks    the output in the result file, TORCH_DISTRIBUTED_DEBUG=DETAIL
    killed, no time    make gpu ARGS='--section NAME'
"""

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The project's folders first, this one and the helpers of the tests last: programs here have the names of packages.
LAST = [str(ROOT / name) for name in ("benchmarks", "tests")]
sys.path[:] = [str(ROOT), *[path for path in sys.path if path not in LAST], *LAST]
# For what the sections start. Without a network the name of the machine has no address.
os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(p for p in sys.path if p))
for name, value in (
    ("TOKENIZERS_PARALLELISM", "false"),
    ("HF_HUB_OFFLINE", "1"),
    ("GLOO_SOCKET_IFNAME", "lo"),
    ("NCCL_SOCKET_IFNAME", "lo"),
):
    os.environ.setdefault(name, value)
if "--small" in sys.argv:
    os.environ["OMP_NUM_THREADS"] = "1"  # two sections run at one time
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch  # noqa: E402
from gpu import table  # noqa: E402
from gpu.report import Report  # noqa: E402
from gpu.runner import Runner, Section, Setting, preload, work_in_process  # noqa: E402
from gpu.sections import SECTIONS  # noqa: E402

CARD_FACTS = ("card", "memory", "power limit", "driver", "clock limit")
QUERY = "name,memory.total,power.limit,driver_version,clocks.max.sm"


def arguments(names: Sequence[str], description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="deadline of all sections (default: %(default)s)")
    parser.add_argument("--section", default=",".join(names), help="some of %(default)s, with commas (default: all)")
    parser.add_argument("--small", action="store_true", help="tiny sizes on the CPU; nothing is measured")
    parser.add_argument("--out", type=Path, help="folder of the result file (default: benchmarks/results/gpu)")
    parser.add_argument("--commit", help="of the sources, where git is not there to ask")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print a result file as a table, and do nothing else")
    internal = parser.add_argument_group("what the program calls itself with")
    internal.add_argument("--into", type=Path, metavar="FILE", help="run the section here; its figures go to FILE")
    asked = parser.parse_args()
    if unknown := [name for name in asked.section.split(",") if name not in names]:
        parser.error(f"expected sections among {','.join(names)}, got {unknown[0]!r}")
    return asked


def main(
    sections: Sequence[Section] = SECTIONS, *, description: str = __doc__, kind: str = "proof", small_jobs: int = 2
) -> int:
    """Run the sections that the command line asks for; the exit status.

    Args:
        kind: first word of the result file's name.
        small_jobs: sections that run at one time under --small; 1 where they build on one another.
    """
    asked = arguments([section.name for section in sections], description)
    if asked.show is not None:
        print(table.markdown(*table.read(asked.show)))
        return 0
    chosen = [section for section in sections if section.name in asked.section.split(",")]
    if asked.into is not None:
        return work_in_process(chosen[0], Setting(asked.small, asked.into.parent), Report(asked.into))
    facts = {**_card(small=asked.small), **_versions(asked.commit)}
    out = _result_file(asked, kind, facts)
    plan = ", ".join(f"{section.name} {section.seconds:.0f}" for section in chosen)
    needed = sum(section.seconds for section in chosen)
    print(f"{len(chosen)} sections, {asked.minutes * 60:.0f} s; planned on a card: {plan}; {needed:.0f} s in all")
    small = ["--small"] * asked.small
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(
            Setting(asked.small, Path(folder)),
            out=out,
            deadline_s=asked.minutes * 60,
            jobs=small_jobs if asked.small else 1,
            share=0.0 if asked.small else 1.0,
            restart=lambda name, into: [sys.executable, sys.argv[0], "--section", name, "--into", str(into), *small],
        )
        preload(chosen)
        lines = runner.run(chosen)
    print(f"\n{table.markdown(facts, lines)}\n\nwritten to {out}")
    failed = [str(line["section"]) for line in lines if line["status"] in ("failed", "not run")]
    print(f"failed: {', '.join(failed)}" if failed else "all sections passed")
    return int(bool(failed))


def _card(*, small: bool) -> dict[str, str | None]:
    """Of the first card, by nvidia-smi: the sections' processes are copies of this one, so CUDA must not start here."""
    if small:
        return {**dict.fromkeys(CARD_FACTS), "card": "CPU (small)"}
    try:
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: expected an NVIDIA card, and nvidia-smi says: {error}; on a CPU run: make gpu ARGS=--small")
    return dict(zip(CARD_FACTS, (field.strip() for field in out.splitlines()[0].split(",")), strict=True))


def _versions(commit: str | None) -> dict[str, str | None]:
    names = ("triton", "transformers", "tokenizers", "numpy")
    return {
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        **{name: _version(name) for name in names},
        "python": sys.version.split()[0],
        "commit": commit or _git_commit(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """With a mark where files differ from it; None without git or outside a checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return None
    return found.stdout.strip() or None


def _result_file(asked: argparse.Namespace, kind: str, facts: Mapping[str, object]) -> Path:
    """A new file; its first line says what ran and where."""
    folder = asked.out or (ROOT / "runs" / "gpu_proof" if asked.small else ROOT / "benchmarks" / "results" / "gpu")
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", f"{kind} {facts['card']}".lower()).strip("-")
    path = folder / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    table.write_facts(path, facts)
    return path


if __name__ == "__main__":
    sys.exit(main())
