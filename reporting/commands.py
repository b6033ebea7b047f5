"""The commands of train.py that only look at runs."""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from reporting.build import write_report
from reporting.compare import compare_runs
from reporting.watch import watch


def report_command(argv: Sequence[str]) -> None:
    """`train.py report RUN`: build report.html again from the files of the run."""
    parser = argparse.ArgumentParser(prog="train.py report", description="Build report.html of a run from its files.")
    parser.add_argument("run", type=Path, help="folder of the run")
    args = parser.parse_args(argv)
    print(_or_exit(lambda: write_report(args.run)))


def compare_command(argv: Sequence[str]) -> None:
    """`train.py compare RUN_A RUN_B ...`: the runs' curves over one another, and what differs in their configs."""
    parser = argparse.ArgumentParser(prog="train.py compare", description="Lay the curves of runs over one another.")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of the runs")
    parser.add_argument("--out", type=Path, default=Path("compare.html"), help="the page (default: compare.html)")
    args = parser.parse_args(argv)
    print(_or_exit(lambda: compare_runs(args.runs, args.out)))
    print(args.out)


def watch_command(argv: Sequence[str]) -> None:
    """`train.py watch RUN`: what a running job does, from its files; ends with the run."""
    parser = argparse.ArgumentParser(prog="train.py watch", description="Follow a run by its files; Ctrl-C leaves.")
    parser.add_argument("run", type=Path, help="folder of the run, on this machine or a shared file system")
    parser.add_argument("--once", action="store_true", help="say how far the run is, and exit")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="between looks (default: 2)")
    args = parser.parse_args(argv)
    with suppress(KeyboardInterrupt):
        _or_exit(lambda: watch(args.run, once=args.once, every_s=args.every, say=lambda line: print(line, flush=True)))


def _or_exit(do: Callable[[], object]) -> object:
    try:
        return do()
    except ValueError as error:
        sys.exit(f"error: {error}")
