"""What the small vision tower sees on real X-rays: how its warm-up head ranks held-out studies, and what it is worth.

    PYTHONPATH=. python benchmarks/tower.py --seeds 0,1,2        after benchmarks/tables.py --table 4 --dataset iu

The label F1 of the Impression is an upper bound: "No Finding", unless the head's probability of it falls below a
threshold, then the likeliest finding; and the threshold is the best one *for these held-out studies*. A policy has to
find it without them.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from harness import write
from scipy.stats import rankdata
from study import runs
from tables import packaged_encoder, seeds

from capo.checkpoint import Checkpoints
from capo.ranks import Ranks
from capo.trainer import Trainer
from capo.warmup import LabelReader
from reports_by_policy import prompt_of
from rewards.expert import LabelF1
from stages import Run, config_hash, load_policy

SHOWN = ("No Finding", "Cardiomegaly", "Lung Opacity", "Atelectasis", "Pleural Effusion", "Lung Lesion")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seeds, default=(0, 1, 2), help="with commas (default: 0,1,2)")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"), help="of tables.py (default: %(default)s)")
    asked = parser.parse_args()
    found = [measured(runs.base_of("iu", s, asked.out / "iu" / f"seed{s}", packaged_encoder())) for s in asked.seeds]
    rows = [
        [name, *(f"{seed[name]:.3f}" for seed in found), f"{statistics.fmean(s[name] for s in found):.3f}"]
        for name in found[0]
    ]
    setting = "IU X-ray, validation split: AUC of the warm-up head, and label F1 of the Impression"
    write(
        "tower_iu",
        {"setting": setting, "columns": ["quantity", *(f"seed {s}" for s in asked.seeds), "mean"], "rows": rows},
    )


def measured(run: Run) -> dict[str, float]:
    """AUC of the labels in `SHOWN`; F1 of the constant and of the best threshold; how many studies it changes."""
    names, labeler = run.reward.expert.labeler.labels, run.reward.expert.labeler
    chances = probabilities(run)
    reports = labeler([study.report for study in run.corpus.test])
    found = {
        f"AUC {name}": auc(chances[:, names.index(name)], np.array([name in labels for labels in reports]))
        for name in SHOWN
    }
    impressions = labeler([study.impression for study in run.corpus.test])
    normal = names.index("No Finding")
    others = [i for i, name in enumerate(names) if name not in ("No Finding", "Support Devices")]
    likeliest = [names[others[place]] for place in chances[:, others].argmax(1)]
    constant = np.array([LabelF1.agreement({"No Finding"}, truth) for truth in impressions])
    finding = np.array([LabelF1.agreement({name}, truth) for name, truth in zip(likeliest, impressions, strict=True)])
    # from the least to the most normal looking study: the first k are given their finding
    order = chances[:, normal].argsort()
    gains = np.concatenate([[0.0], (finding - constant)[order].cumsum()])
    return {
        **found,
        "label F1, always No Finding": float(constant.mean()),
        "label F1, best threshold (upper bound)": float(constant.mean() + gains.max() / len(constant)),
        "share of studies that it leaves No Finding for": float(gains.argmax() / len(constant)),
    }


@torch.no_grad()
def probabilities(run: Run) -> np.ndarray:
    """[N, L], of the warm-up's own head, from its last checkpoint."""
    policy = load_policy(run.folder / "start", run)
    labels, grid = run.reward.expert.labeler.labels, run.config.warmup.grid
    reader = LabelReader(policy, policy.vision, torch.full((len(labels),), 0.5), grid=grid)
    trainer = Trainer(reader, run.config.warmup.optimizer, num_steps=1)
    identity = {"config": config_hash(run.config), "studies": run.corpus.fingerprint}
    if Checkpoints(run.folder / "warmup" / "checkpoints", Ranks(), identity=identity).load(trainer.state()[0]) is None:
        raise SystemExit(f"error: expected checkpoints in {run.folder / 'warmup'}; run tables.py for this seed first")
    logits = [reader([prompt_of(run.processor, study)]) for study in run.corpus.test]
    return torch.cat(logits).sigmoid().double().numpy()


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a study with the label is ranked above one without it; ties count half."""
    ranks, ones = rankdata(scores), int(positive.sum())
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * (len(positive) - ones)))


if __name__ == "__main__":
    main()
