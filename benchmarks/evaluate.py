"""Time and memory of scoring without weights: 590 real reports against shuffled ones, and 10,000.

    python benchmarks/evaluate.py      # writes results/evaluate.csv

The 10,000 are made of real ones: the first half of one report's sentences and the second half of another's, so that
all differ. Their sentences recur more often than in a corpus of that size, and the rules cache sentences; growth is
therefore also shown for metrics without a cache (BLEU-2, ROUGE-L).
"""

import json
import multiprocessing
import os
import statistics
import time
from pathlib import Path

import numpy as np
from harness import arguments, machine, peak_memory, start_watching_memory, write

from radflow.evaluation.measuring import MODELS, MeasureConfig, Measures
from radflow.evaluation.rules import Rules
from radflow.evaluation.table_metrics import Cells
from radflow.evaluation.weights import Weights
from radflow.rewards.rules.negation import sentences

NAMES = [name for name, model in MODELS.items() if model is None]

SIZES = (590, 10_000)
SHARED = Path(os.environ.get("RADFLOW_SHARED", Path(__file__).parents[2] / "shared"))
WHOLE = "all of these together"
BOOTSTRAPS = {"10,000 resamples of a mean": "bleu2", "10,000 resamples of macro F1 (14)": "rules_macro_f1_14"}


def reports(count: int) -> list[str]:
    """Different reports, the first 590 as they are."""
    lines = (SHARED / "data/iu_xray/manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "train" and row["findings"] and row["impression"]]
    real = list(dict.fromkeys(f"Findings: {row['findings']} Impression: {row['impression']}" for row in rows))
    made = real[: SIZES[0]]
    halves = [
        (s[: len(s) // 2], s[len(s) // 2 :], row["impression"]) for row in rows if (s := sentences(row["findings"]))
    ]
    generator, seen = np.random.default_rng(0), set(made)
    while len(made) < count:
        first, second = generator.integers(0, len(halves), 2)
        findings = " ".join([*halves[first][0], *halves[second][1]])
        report = f"Findings: {findings} Impression: {halves[second][2]}"
        if report not in seen:
            seen.add(report)
            made.append(report)
    return made[:count]


def measure(what: str, count: int) -> tuple[float, float]:
    """(seconds, MB above the inputs) in this process."""
    texts = reports(count)
    shuffled = texts[1:] + texts[:1]
    names = NAMES if what == WHOLE else [what]
    models = [name for name in MODELS if name not in NAMES]
    measures = Measures(MeasureConfig(), Weights(Path("absent")), Rules(), given=models)
    if what in BOOTSTRAPS:
        metric = next(row for row in measures.rows if row.name == BOOTSTRAPS[what])
        cells: Cells = measures.cells(shuffled, texts, title=what, names=[metric.cells])
    else:  # libraries and tables are loaded once per process, whatever the number of reports
        pair = ["Findings: a. Impression: b."], ["Findings: b. Impression: a."]
        measures.cells(*pair, title=what, names=names)
    before, began = start_watching_memory(), time.perf_counter()
    if what in BOOTSTRAPS:
        metric.interval(cells, num_resamples=10_000, seed=0)
    else:
        measures.cells(shuffled, texts, title=what, names=names)
    return time.perf_counter() - began, peak_memory() - before


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    subjects = [*NAMES, WHOLE, *BOOTSTRAPS]
    measured = {(what, count): [] for what in subjects for count in SIZES}
    for number in range(options.rounds):
        for what, count in measured:
            print(f"round {number + 1} of {options.rounds}: {what}, {count}", flush=True)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                measured[what, count].append(pool.apply(measure, (what, count)))
    rows = []
    for what in subjects:
        seconds = [statistics.median(s for s, _ in measured[what, count]) for count in SIZES]
        memory = [max(mb for _, mb in measured[what, count]) for count in SIZES]
        growth = seconds[1] / seconds[0] / (SIZES[1] / SIZES[0])
        rows.append([what, *(f"{s:.2f}" for s in seconds), f"{growth:.2f}", *(f"{mb:.0f}" for mb in memory)])
    columns = [
        "metric",
        *(f"{count:,} reports (s)" for count in SIZES),
        "growth (1: linear)",
        *(f"{count:,} reports: peak above inputs (MB)" for count in SIZES),
    ]
    setting = "IU X-ray reports against shuffled ones, protocol rexrank, one process"
    content = {"setting": setting, "rounds": options.rounds, "machine": machine(1)}
    write("evaluate", {**content, "columns": columns, "rows": rows})


if __name__ == "__main__":
    main()
