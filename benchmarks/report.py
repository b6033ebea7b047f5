"""How long dashboard.html takes to build, and how large it is, for a short run and for one of 5,000 steps."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness import arguments, compare
from made_run import make_run

from radflow.dashboard.build import build_dashboard
from radflow.dashboard.run_files import RunFiles

TEXT = "Findings: The heart is normal in size. The lungs are clear. No effusion. Impression: No acute abnormality."
SETTINGS = {"100 steps": 100, "5,000 steps": 5000}


def build(folder: Path) -> Callable[[], float]:
    """The work: build the report of a run; its size in bytes is the checksum."""
    RunFiles.read(folder)
    return lambda: float(build_dashboard(folder).stat().st_size)


if __name__ == "__main__":
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as base:
        folders = {
            name: make_run(Path(base) / str(steps), steps=steps, studies=16, corpus=2400, text=TEXT)
            for name, steps in SETTINGS.items()
        }
        sizes = {f"megabytes, {name}": build_dashboard(folder).stat().st_size / 1e6 for name, folder in folders.items()}
        print({name: round(size, 2) for name, size in sizes.items()})
        compare(
            "report",
            {name: functools.partial(build, folder) for name, folder in folders.items()},
            setting="dashboard.html of a run with 16 studies per step and 4 reports per study",
            rounds=options.rounds,
            threads=options.threads,
            facts=sizes,
        )
