"""Time and memory of scoring without weights: 590 real reports against shuffled ones, and 10,000; and 3 long ones.

    python benchmarks/evaluate.py      # writes results/evaluate.csv and results/evaluate_long.csv

The 10,000 are made of real ones: the first half of one report's sentences and the second half of another's, so that
all differ. Their sentences recur more often than in a corpus of that size, and the rules cache sentences; growth is
therefore also shown for a metric without a cache (BLEU-2).

The long ones are real sentences, drawn at random, half as Findings and half as Impression; with and without full stops.
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

LONG = (10_000, 20_000, 40_000)  # words
NORMAL, AS_LONG = "normal", "as long"


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


def long_reports(words: int, *, seed: int, stops: bool) -> list[str]:
    """3 reports of so many words."""
    said = [sentence for report in reports(SIZES[0]) for sentence in sentences(report.removeprefix("Findings: "))]
    generator, made = np.random.default_rng(seed), []
    for _ in range(3):
        drawn = " ".join(said[i] for i in generator.integers(0, len(said), words)).replace("Impression: ", "")
        listed = (drawn if stops else drawn.replace(".", "")).split()[:words]
        findings, impression = " ".join(listed[: words // 2]), " ".join(listed[words // 2 :])
        made.append(f"Findings: {findings} Impression: {impression}")
    return made


def measure_long(words: int, stops: bool, references: str) -> tuple[float, float]:
    """(seconds, MB above the inputs) in this process, of all metrics together."""
    written = long_reports(words, seed=0, stops=stops)
    expected = long_reports(words, seed=1, stops=stops) if references == AS_LONG else reports(3)
    models = [name for name in MODELS if name not in NAMES]
    measures = Measures(MeasureConfig(), Weights(Path("absent")), Rules(), given=models)
    measures.cells(reports(2)[:1], reports(2)[1:], title=WHOLE, names=NAMES)
    before, began = start_watching_memory(), time.perf_counter()
    measures.cells(written, expected, title=WHOLE, names=NAMES)
    return time.perf_counter() - began, peak_memory() - before


def write_long(rounds: int) -> None:
    """The table of long reports."""
    cases = {(stops, references): [] for stops in (True, False) for references in (NORMAL, AS_LONG)}
    for number in range(rounds):
        for case, measured in cases.items():
            print(f"round {number + 1} of {rounds}: long reports, {case}", flush=True)
            for words in LONG:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    measured.append((words, *pool.apply(measure_long, (words, *case))))
    rows = []
    for (stops, references), measured in cases.items():
        seconds = [statistics.median(s for words, s, _ in measured if words == count) for count in LONG]
        memory = max(mb for *_, mb in measured)
        kind = "sentences" if stops else "no full stop"
        rows.append([kind, references, *(f"{s:.1f}" for s in seconds), f"{memory:.0f}"])
    columns = ["3 reports", "references", *(f"{words:,} words each (s)" for words in LONG), "peak above inputs (MB)"]
    setting = "all metrics without weights together, protocol rexrank, one process"
    write(
        "evaluate_long", {"setting": setting, "rounds": rounds, "machine": machine(1), "columns": columns, "rows": rows}
    )


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
    write_long(options.rounds)


if __name__ == "__main__":
    main()
