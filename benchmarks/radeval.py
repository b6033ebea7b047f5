"""Scores of 590 real reports against their neighbours, by RadEval 2.2.1 and here: values, time and memory.

    python benchmarks/radeval.py --rounds 3 --threads 1      # writes results/radeval.csv

What RadEval computes without weights is BLEU and ROUGE. It splits at white space and keeps case; here the full stop is
a token and case does not count, so the BLEU of reports as written differs. In lower case with full stops apart, as
published prediction files of IU X-ray hold them, both have the same tokens, and the values must be equal: this is
asserted, to the 4 digits that RadEval gives, and per report for ROUGE-L.

Every measurement is a process of its own, in turns. Seconds are of the processor, so that others on the machine do not
count; libraries are loaded before, and their seconds are a column of their own. RadEval computes ROUGE-1 and 2 with
ROUGE-L; both compute BLEU-1 to 4 together. RadEval is installed without its dependencies: BLEU and ROUGE need
torch, nltk, rouge-score, rich and six, and torchvision, which it asks for, is imported nowhere. `import radeval` asks
the network for NLTK's sentence model, which BLEU and ROUGE do not use.
"""

import json
import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness import arguments, machine, peak_memory, start_watching_memory, write

COUNT = 590
SHARED = Path(os.environ.get("RADFLOW_SHARED", Path(__file__).parents[2] / "shared"))
AS_WRITTEN, APART = "as written", "lower case, full stops apart"
SAME = "same"
BLEU = ("bleu_1", "bleu_2", "bleu_3", "bleu")


@dataclass(frozen=True)
class Compared:
    """A metric of both."""

    metric: str
    text: str
    definition: str  # SAME, or what differs
    rows: tuple[str, ...]  # here
    keys: tuple[str, ...]  # of RadEval, in the order of `rows`


COMPARED = (
    Compared("corpus BLEU-1 to 4", APART, SAME, tuple(f"corpus_bleu{n}" for n in (1, 2, 3, 4)), BLEU),
    Compared(
        "corpus BLEU-1 to 4",
        AS_WRITTEN,
        "RadEval keeps case, and full stops on words",
        tuple(f"corpus_bleu{n}" for n in (1, 2, 3, 4)),
        BLEU,
    ),
    Compared(
        "BLEU-2", AS_WRITTEN, "mean over reports (ReXrank); RadEval's is over the corpus", ("bleu2",), ("bleu_2",)
    ),
    Compared("ROUGE-L", AS_WRITTEN, SAME, ("rouge_l",), ("rougeL",)),
)


@dataclass(frozen=True)
class Run:
    """One process."""

    loading: float  # seconds of the processor
    seconds: float
    above_mb: float  # peak above libraries and inputs
    all_mb: float  # peak of the process
    values: tuple[float, ...]
    reports: tuple[float, ...]  # one value per report, of metrics that have it


def pairs(form: str) -> tuple[list[str], list[str]]:
    """Predictions and references: each study gets the report of the next one."""
    lines = (SHARED / "data/iu_xray/manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "train" and row["findings"] and row["impression"]]
    texts = list(dict.fromkeys(f"Findings: {row['findings']} Impression: {row['impression']}" for row in rows))[:COUNT]
    if form == APART:
        texts = [" ".join(text.lower().replace(".", " . ").split()) for text in texts]
    return texts[1:] + texts[:1], texts


def by_radflow(compared: Compared) -> Run:
    began = time.process_time()
    from radflow.evaluation.measuring import MODELS, MeasureConfig, Measures
    from radflow.evaluation.rules import Rules
    from radflow.evaluation.weights import Weights

    measures = Measures(MeasureConfig(), Weights(Path("absent")), Rules(), given=[n for n in MODELS if MODELS[n]])
    rows = [next(row for row in measures.rows if row.name == name) for name in compared.rows]
    names = {row.cells for row in rows}
    measures.cells(["a. b"], ["b. a"], title=compared.metric, names=names)
    loaded = time.process_time() - began
    predictions, references = pairs(compared.text)
    before, began = start_watching_memory(), time.process_time()
    cells = measures.cells(predictions, references, title=compared.metric, names=names)
    values = tuple(row.value(cells) for row in rows)
    seconds, peak = time.process_time() - began, peak_memory()
    return Run(loaded, seconds, peak - before, peak, values, tuple(cells.get("rouge_l", ())))


def by_radeval(compared: Compared) -> Run:
    began = time.process_time()
    from radeval import RadEval

    name = "rouge" if compared.metric == "ROUGE-L" else "bleu"
    evaluator = RadEval(metrics=[name], show_progress=False, detailed=True)
    evaluator(refs=["a. b"], hyps=["b. a"])
    loaded = time.process_time() - began
    predictions, references = pairs(compared.text)
    before, began = start_watching_memory(), time.process_time()
    found = evaluator(refs=references, hyps=predictions)
    seconds, peak = time.process_time() - began, peak_memory()
    values = tuple(found[key] for key in compared.keys)
    one_by_one = RadEval(metrics=[name], show_progress=False, per_sample=True)(refs=references, hyps=predictions)
    return Run(loaded, seconds, peak - before, peak, values, tuple(one_by_one.get("rougeL", ())))


SIDES = {"here": by_radflow, "RadEval": by_radeval}


def row(compared: Compared, runs: dict[str, list[Run]]) -> list[str]:
    """The line of the table; AssertionError if values differ where the definition is the same."""
    ours, theirs = (np.array(measured[0].values) for measured in runs.values())
    if compared.definition == SAME:
        assert np.abs(ours - theirs).max() < 0.5e-4 + 1e-9, (compared, ours, theirs)
        first, second = (np.array(measured[0].reports) for measured in runs.values())
        assert len(first) == len(second) and np.abs(first - second).max(initial=0) < 1e-9, compared
    values = [", ".join(f"{value:.4f}" for value in side) for side in (ours, theirs)]
    figures = [
        *(f"{statistics.median(run.seconds for run in measured):.2f}" for measured in runs.values()),
        *(f"{statistics.median(run.loading for run in measured):.1f}" for measured in runs.values()),
        *(f"{max(run.above_mb for run in measured):.0f}" for measured in runs.values()),
        *(f"{max(run.all_mb for run in measured):.0f}" for measured in runs.values()),
    ]
    return [compared.metric, compared.text, compared.definition, *values, *figures]


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    measured: dict[Compared, dict[str, list[Run]]] = {compared: {side: [] for side in SIDES} for compared in COMPARED}
    for number in range(options.rounds):
        for compared, runs in measured.items():
            for side, work in SIDES.items():
                print(f"round {number + 1} of {options.rounds}: {compared.metric}, {compared.text}, {side}", flush=True)
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    runs[side].append(pool.apply(work, (compared,)))
    columns = ["metric", "text", "definition"]
    for unit in ("", " (s)", ": loading (s)", ": peak above inputs (MB)", ": peak in all (MB)"):
        columns += [f"{side}{unit}" for side in SIDES]
    rows = [row(compared, runs) for compared, runs in measured.items()]
    setting = f"{COUNT} IU X-ray reports, each scored against that of the next study; RadEval 2.2.1"
    content = {"setting": setting, "rounds": options.rounds, "machine": machine(1)}
    write("radeval", {**content, "columns": columns, "rows": rows})


if __name__ == "__main__":
    main()
