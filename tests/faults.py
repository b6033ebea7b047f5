"""The campaign of faults: runs are killed, starved of disk, damaged and let down, and must end as quiet ones do.

    python tests/faults.py                                    everything, in half an hour on two cores (make faults)
    python tests/faults.py --only torchrun,disk --share 0.2    some parts, and a fifth of the cases of each test
    python tests/faults.py --only torchrun --case 'rl INT'    the cases whose name contains a text
    python tests/faults.py --short                            a small sample of what needs no torchrun, in a minute

Prints a table of tests and exits with 1 if anything did not survive, with the command that shows each failure again.
Disks are mounted in a namespace of their own.
"""

import argparse
import csv
import multiprocessing
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fault_disk import can_mount, enter_mount_namespace, full_disks

if __name__ == "__main__":
    enter_mount_namespace()

from fault_files import HALF, damaged_files, record_unfinished, record_whole
from fault_kills import launched_kills, random_kills
from fault_processes import NotSurvived, Tally, find_tracebacks, last_line, load_late_imports, prepare_to_fork
from fault_rewards import WITH_PLUGIN, install_plugin, judge_faults, record_judged, reward_faults
from fault_runs import Case, Quiet, chance_of
from small_run import ROOT
from tqdm import tqdm

RANDOM_KILLS, THREADED_KILLS = 56, 28
SHORT, SHORT_SHARE = ("kills", "disk", "files"), 0.02
PROGRAMS = {
    "fuzzed inputs": ("fuzz_files.py", "--count", "5000"),
    "failing calls": ("inject_failures.py", "--every", "20"),
    "same bits on two threads": ("same_bits.py",),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a case; `why` is empty if it survived."""

    part: str
    case: str
    test: str
    why: str
    seconds: float
    tally: Tally


@dataclass
class Campaign:
    """Parts of the campaign, one after the other, the cases of each `jobs` at a time.

    Args:
        base: an empty folder.
    """

    base: Path
    options: argparse.Namespace

    def __post_init__(self) -> None:
        self.recorded: dict[str, Future[Quiet]] = {}

    def run(self) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for name in self.options.only:
            # Forks of this process, each of which forks its runs: imports are done once.
            context = multiprocessing.get_context("fork")
            with ProcessPoolExecutor(self.options.jobs, context, initializer=prepare_to_fork) as pool:
                cases = self.choose(PARTS[name](self, pool))
                with beside_busy_process() if name == "threads" else nullcontext():
                    jobs = [pool.submit(try_case, name, case, self.base, self.options.seed) for case in cases]
                    for job in tqdm(as_completed(jobs), name, total=len(jobs), unit="case", disable=None):
                        if job.result().why:
                            tqdm.write(explain(job.result(), self.options.seed))
                outcomes += [job.result() for job in jobs]
        return outcomes

    def choose(self, cases: Iterable[Case]) -> list[Case]:
        """Those whose name contains `case`; of each test the asked share, drawn by the seed, at least one."""
        tests: dict[str, list[Case]] = {}
        for case in cases:
            if self.options.case in case.name:
                tests.setdefault(case.test, []).append(case)
        chosen = []
        for test, its in tests.items():
            count = max(1, round(self.options.share * len(its)))
            chosen += chance_of(self.options.seed, test).sample(its, count) if count < len(its) else its
        return chosen

    def quiet(self, pool: ProcessPoolExecutor, name: str, *options: str, **how: int) -> "Future[Quiet]":
        """An undisturbed run, recorded once."""
        if name not in self.recorded:
            record = partial(Quiet.record, self.base / f"quiet_{name}", *options, **how)
            self.recorded[name] = pool.submit(record)
        return self.recorded[name]


def kills(campaign: Campaign, pool: ProcessPoolExecutor) -> Iterator[Case]:
    yield from random_kills(campaign.quiet(pool, "one").result(), RANDOM_KILLS, where="python")


def torchrun(campaign: Campaign, pool: ProcessPoolExecutor) -> Iterator[Case]:
    yield from launched_kills(campaign.quiet(pool, "one").result())


def two_ranks(campaign: Campaign, pool: ProcessPoolExecutor) -> Iterator[Case]:
    yield from launched_kills(campaign.quiet(pool, "two", ranks=2).result())


def threads(campaign: Campaign, pool: ProcessPoolExecutor) -> Iterator[Case]:
    quiet = campaign.quiet(pool, "threads", threads=2).result()
    yield from random_kills(quiet, THREADED_KILLS, where="two threads next to a busy process")


def disk(campaign: Campaign, pool: ProcessPoolExecutor) -> Iterator[Case]:
    if can_mount(campaign.base / "mount"):
        yield from full_disks(campaign.quiet(pool, "one").result())
    else:
        print("disk: skipped, as this user may not mount a file system, not in a namespace of its own either")


def files(campaign: Campaign, pool: ProcessPoolExecutor) -> Iterator[Case]:
    quiet = campaign.quiet(pool, "one").result()
    for job in [pool.submit(record_whole, quiet), *(pool.submit(record_unfinished, quiet, stage) for stage in HALF)]:
        job.result()
    yield from damaged_files(quiet)


def rewards(campaign: Campaign, pool: ProcessPoolExecutor) -> Iterator[Case]:
    yield from reward_faults(campaign.quiet(pool, "plugin", *WITH_PLUGIN).result())


def judge(campaign: Campaign, pool: ProcessPoolExecutor) -> Iterator[Case]:
    yield from judge_faults(pool.submit(record_judged, campaign.base / "quiet_judged").result())


def programs(campaign: Campaign, pool: ProcessPoolExecutor) -> Iterator[Case]:
    for name, words in PROGRAMS.items():
        yield Case(name, name, partial(run_program, words, campaign.options.seed))


PARTS: Mapping[str, Callable[[Campaign, ProcessPoolExecutor], Iterator[Case]]] = {
    one.__name__: one for one in (kills, torchrun, two_ranks, threads, disk, files, rewards, judge, programs)
}


def try_case(part: str, case: Case, base: Path, seed: int) -> Outcome:
    """Do a case in a folder of its own."""
    folder = Path(tempfile.mkdtemp(dir=base))
    began, why, tally = time.monotonic(), "", Tally()
    try:
        tally = case.work(folder, chance_of(seed, case.name))
    except NotSurvived as failure:
        why, tally = str(failure), failure.tally
    except Exception as error:  # of the campaign itself, which goes on
        why, tally = repr(error)[:500], Tally(failed=1)
    shutil.rmtree(folder)
    return Outcome(part, case.name, case.test, why, time.monotonic() - began, tally)


def run_program(words: Sequence[str], seed: int, folder: Path, chance: random.Random) -> Tally:
    """Another program of faults, which prints a table with the column tried, and survived or failed."""
    seeded = [] if len(words) == 1 else ["--seed", str(seed)]
    program = [sys.executable, str(ROOT / "tests" / words[0]), *words[1:], *seeded]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, check=False)
    rows = list(read_counts(done.stdout))
    tried = sum(row["tried"] for row in rows) or 1
    failed = sum(row.get("failed", row["tried"] - row.get("survived", row["tried"])) for row in rows)
    if done.returncode:
        failed, tracebacks = max(failed, 1), len(find_tracebacks(done.stderr))
        raise NotSurvived(last_line(done.stderr or done.stdout), Tally(tried, failed, tracebacks))
    return Tally(tried, failed)


def read_counts(output: str) -> Iterator[dict[str, int]]:
    """Rows of a printed table, without that of the sums: its last columns are counts."""
    names: list[str] = []
    for words in (line.replace("|", " ").split() for line in output.splitlines()):
        if "tried" in words:
            names = words[1:]
        elif names and len(words) > len(names) and words[-1].isdigit() and words[0] != "all":
            yield {name: int(word) for name, word in zip(names, words[-len(names) :], strict=True)}


@contextmanager
def beside_busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def explain(outcome: Outcome, seed: int) -> str:
    words = ["python", "tests/faults.py", "--seed", str(seed), "--only", outcome.part, "--case", outcome.case]
    return f"not survived: {outcome.case}: {outcome.why}\n    again: {shlex.join(words)}"


def tabulate(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """Rows of the table: tests, and how many of their cases were tried and survived.

    `tracebacks` are of our programs; `other_tracebacks` those of torchrun and loky, in runs that survived.
    """
    tests: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        tests.setdefault(outcome.test, []).append(outcome)
    rows = []
    for test, its in tests.items():
        tried, failed = sum(one.tally.tried for one in its), sum(one.tally.failed for one in its)
        counts = {"tried": tried, "survived": tried - failed}
        for name in ("tracebacks", "other_tracebacks"):
            counts[name] = sum(getattr(one.tally, name) for one in its)
        rows.append({"test": test, **counts, "seconds": round(sum(one.seconds for one in its))})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas (default: %(default)s)")
    parser.add_argument("--case", default="", help="cases whose name contains this text")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases of each test (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of moments, damage and shares (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (default: %(default)s)")
    parser.add_argument(
        "--short", action="store_true", help="a few cases of what needs no torchrun and no other quiet run"
    )
    parser.add_argument("--output", type=Path, help="where the table goes too (default: nowhere)")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(PARTS):
        parser.error(f"expected parts among {','.join(PARTS)}, got {unknown.pop()}")
    if options.short:
        options.only = [name for name in options.only if name in SHORT]
        options.share = SHORT_SHARE
    began = time.monotonic()
    base = Path(tempfile.mkdtemp(prefix="radflow_faults_"))  # a TemporaryDirectory would go when a fork ends
    try:
        install_plugin(base / "plugin")
        load_late_imports()
        outcomes = Campaign(base, options).run()
    finally:
        shutil.rmtree(base, ignore_errors=True)
    rows = tabulate(outcomes)
    print_table(rows)
    print(f"{time.monotonic() - began:.0f} s")
    if options.output:
        write_table(options.output, rows)
    sys.exit(any(outcome.why for outcome in outcomes))


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    for row in [{name: name for name in rows[0]}, *rows] if rows else []:
        test, *counts = map(str, row.values())
        print(f"{test:50}", *(f"{count:>16}" for count in counts))


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
