"""Which findings of carotid phantoms the small vision tower sees, and which of them the reports name, before and after
CAPO.

    PYTHONPATH=. python benchmarks/tower_carotid.py        after benchmarks/tables.py --table outcome --dataset carotid

For each label of the true state: the share of the studies that have it for which the reports say so, and for which the
tower's warm-up heads do, with a threshold that lets as many studies without it pass as SFT's reports do.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
from harness import write
from study import runs
from study.arms import usual_seeds
from tables import packaged_encoder, seeds
from tower import auc, probabilities

from radflow.data.phantoms import state_labels
from radflow.pipeline.run import Run

ARMS = {"reports of SFT": "sft", "reports of CAPO": "edited"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = usual_seeds("outcome", "carotid")
    parser.add_argument("--seeds", type=seeds, default=usual, help="with commas (default: those of the table)")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"), help="of tables.py (default: %(default)s)")
    parser.add_argument("--encoder", type=Path, help="the one that tables.py was given, if any")
    asked = parser.parse_args()
    encoder, found = asked.encoder or packaged_encoder(), []
    for seed in asked.seeds:
        folder = asked.out / "carotid" / f"seed{seed}"
        found.append(measure(runs.base_of("carotid", seed, folder, encoder), folder))
    columns = [*next(iter(found[0].values()))]
    rows = [
        [label, *(f"{statistics.fmean(seed[label][column] for seed in found):.3f}" for column in columns)]
        for label in found[0]
    ]
    setting = f"carotid phantoms, seeds {', '.join(map(str, asked.seeds))}: mean over seeds"
    write("tower_carotid", {"setting": setting, "columns": ["label", *columns], "rows": rows})


def measure(run: Run, folder: Path) -> dict[str, dict[str, float]]:
    """Label -> quantity -> value."""
    labeler, chances, found = run.labeler, probabilities(run), {}
    said = {name: labeler([str(row["report"]) for row in runs.read_result(folder, arm)]) for name, arm in ARMS.items()}
    states = [state_labels(study.state) for study in run.corpus.test]
    for label in (name for name in states[0] if name != labeler.normal):
        true = np.array([bool(state[label]) for state in states])
        named = {name: np.array([label in labels for labels in reports]) for name, reports in said.items()}
        false_alarms = int((named["reports of SFT"] & ~true).sum())
        scores = chances[:, labeler.labels.index(label)]
        found[label] = {
            "AUC of the heads": auc(scores, true),
            "heads": recall(scores, true, false_alarms),
            **{name: float(one[true].mean()) for name, one in named.items()},
        }
    return found


def recall(scores: np.ndarray, true: np.ndarray, false_alarms: int) -> float:
    """Share of the true studies above the lowest threshold that at most `false_alarms` others are above."""
    others = np.sort(scores[~true])[::-1]
    threshold = others[false_alarms] if false_alarms < len(others) else -np.inf
    return float((scores[true] > threshold).mean())


if __name__ == "__main__":
    main()
