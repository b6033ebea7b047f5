"""What the small vision tower sees on real X-rays: how its warm-up heads rank held-out studies, and what that is worth.

    PYTHONPATH=. python benchmarks/tower.py --seeds 0,1,2        after benchmarks/tables.py --table 4 --dataset iu

Next to it a linear model on pixels, fitted in closed form. The label F1 of the Impression is an upper bound: "No
Finding", unless its probability falls below a threshold, then the likeliest finding; the threshold is the best one *for
these held-out studies*, which no policy can know.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from harness import write
from PIL import Image, ImageOps
from scipy.stats import rankdata
from study import runs
from tables import packaged_encoder, seeds

from capo.checkpoint import Checkpoints
from capo.ranks import Ranks
from capo.trainer import Trainer
from capo.warmup import LabelReader
from radflow.data.studies import Study, load_image
from radflow.pipeline.generation import build_prompt
from radflow.pipeline.policies import load_policy
from radflow.pipeline.run import Run
from radflow.pipeline.run_config import config_hash
from radflow.rewards.hierarchy import LabelF1

SHOWN = ("No Finding", "Cardiomegaly", "Lung Opacity", "Atelectasis", "Pleural Effusion", "Lung Lesion")
SIDE, COMPONENTS, PENALTY = 64, 50, 0.05  # of the linear model: pixels, directions, penalty per study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seeds, default=(0, 1, 2, 3, 4), help="with commas (default: 0,1,2,3,4)")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"), help="of tables.py (default: %(default)s)")
    asked = parser.parse_args()
    bases = [runs.base_of("iu", s, asked.out / "iu" / f"seed{s}", packaged_encoder()) for s in asked.seeds]
    found = [measure(probabilities(run), run) for run in bases]
    linear = measure(linear_probabilities(bases[0]), bases[0])
    rows = [
        [
            name,
            *(f"{seed[name]:.3f}" for seed in found),
            f"{statistics.fmean(s[name] for s in found):.3f}",
            f"{value:.3f}",
        ]
        for name, value in linear.items()
    ]
    setting = "IU X-ray, validation split: AUC of the warm-up heads, and label F1 of the Impression"
    columns = ["quantity", *(f"seed {s}" for s in asked.seeds), "mean", "linear model on pixels"]
    write("tower_iu", {"setting": setting, "columns": columns, "rows": rows})


def measure(chances: np.ndarray, run: Run) -> dict[str, float]:
    """AUC of the labels in `SHOWN`; F1 of the constant and of the best threshold; how many studies it changes.

    Args:
        chances: [N, L], of each label for each held-out study.
    """
    names, labeler = run.reward.labeler.labels, run.reward.labeler
    reports = labeler([study.report for study in run.corpus.test])
    found = {
        f"AUC {name}": auc(chances[:, names.index(name)], np.array([name in labels for labels in reports]))
        for name in SHOWN
    }
    impressions = labeler([study.impression for study in run.corpus.test])
    normal = names.index("No Finding")
    others = [i for i, name in enumerate(names) if name not in ("No Finding", "Support Devices")]
    likeliest = [names[others[index]] for index in chances[:, others].argmax(1)]
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
    """[N, L], of the warm-up's own heads, from its last checkpoint; the mean of their logits."""
    policy = load_policy(run.folder / "start", run)
    labels, grid = run.reward.labeler.labels, run.config.warmup.grid
    reader = LabelReader(policy, policy.vision, torch.full((len(labels),), 0.5), grid=grid)
    trainer = Trainer(reader, run.config.warmup.optimizer, num_steps=1)
    identity = {"config": config_hash(run.config), "studies": run.corpus.fingerprint}
    if Checkpoints(run.folder / "warmup" / "checkpoints", Ranks(), identity=identity).load(trainer.state()[0]) is None:
        raise SystemExit(f"error: expected checkpoints in {run.folder / 'warmup'}; run tables.py for this seed first")
    logits = [reader([build_prompt(run.processor, study)]).mean(0) for study in run.corpus.test]
    return torch.cat(logits).sigmoid().double().numpy()


def linear_probabilities(run: Run) -> np.ndarray:
    """[N, L]: ridge regression of the labels of the training reports on the main components of both views' pixels."""
    seen, new = pixels(run.corpus.train), pixels(run.corpus.test)
    mean = seen.mean(0)
    _, spread, directions = np.linalg.svd(seen - mean, full_matrices=False)
    whiten = directions[:COMPONENTS].T / spread[:COMPONENTS] * len(seen) ** 0.5  # components of variance 1
    seen, new = (seen - mean) @ whiten, (new - mean) @ whiten
    labeler = run.reward.labeler
    reports = labeler([study.report for study in run.corpus.train])
    labels = np.array([[float(name in found) for name in labeler.labels] for found in reports])
    weights = seen.T @ (labels - labels.mean(0)) / (len(seen) * (1 + PENALTY))  # the components are uncorrelated
    return new @ weights + labels.mean(0)


def pixels(studies: Sequence[Study]) -> np.ndarray:
    """[N, 2 x SIDE x SIDE] in [0, 1]: frontal and lateral view, grey, with equalised histograms."""
    rows = []
    for study in studies:
        images = [load_image(source, study_id=study.id, window=study.window) for source in study.images[:2]]
        small = [ImageOps.equalize(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)) for image in images]
        rows.append(np.concatenate([np.asarray(image, np.float32).ravel() / 255 for image in small]))
    return np.stack(rows)


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a study with the label is ranked above one without it; ties count half."""
    ranks, ones = rankdata(scores), int(positive.sum())
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * (len(positive) - ones)))


if __name__ == "__main__":
    main()
