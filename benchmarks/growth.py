"""Cost of a step as one of studies, reports, prompt length and report length is doubled."""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path

from checkpoint import build
from harness import arguments, compare
from rl_step import Work, ours

BASE = Work()
SETTINGS = {
    "2 studies x 4 reports x 96 tokens, 256 image tokens": BASE,
    "4 studies": replace(BASE, studies=4),
    "8 reports": replace(BASE, group=8),
    "192 tokens": replace(BASE, tokens=192),
    "576 image tokens": replace(BASE, pixels=672),
    "1,024 image tokens": replace(BASE, pixels=896),
}

if __name__ == "__main__":
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        build(path)
        compare(
            "growth",
            {name: functools.partial(ours, path, work, recompute=False) for name, work in SETTINGS.items()},
            setting="one step, LoRA rank 8, as in rl_step.py but for the number named",
            rounds=options.rounds,
            threads=options.threads,
        )
