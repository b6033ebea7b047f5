"""A run folder as train.py leaves it, made of invented numbers, for tests and benchmarks of what reads run folders."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import yaml

from radflow.dashboard.archive import Archive

REFERENCE = "Findings: Small left pleural effusion. No pneumothorax. Impression: Small left pleural effusion."
PARTS = ("bleu2", "rouge_l", "entity_f1_rules", "label_f1_rules")
CONFIG = {
    "run_dir": "runs/made",
    "seed": 5,
    "stages": "warmup,sft,explore,criticality,rl,evaluate",
    "data": {
        "source": "phantoms",
        "modality": "chest",
        "num_train": 40,
        "num_test": 6,
        "image_size": 56,
        "manifest": None,
        "image_root": None,
        "keep_size": 0,
        "eval_split": "test",
    },
    "explore": {"weights": {"bleu2": 1.0}, "fraction": 0.5, "threshold": None},
    "sft": {"steps": 30},
    "warmup": {"steps": 10},
    "reward": {"expert": "chexpert_rules", "gamma": 1.0},
    "rl": {
        "steps": 30,
        "studies_per_step": 4,
        "group_size": 4,
        "inner_epochs": 2,
        "mini_batches": 1,
        "optimizer": {"lr": 2e-4},
    },
    "rollout": {"temperature": 1.0, "max_new_tokens": 128},
}


def healthy_row(step: int, random_: random.Random, **changed: object) -> dict[str, object]:
    """One step of a CAPO run that learns: the reward rises, the KL grows slowly, a few tokens are clipped."""
    share = min(1.0, step / 100)
    row = {
        "step": step,
        "reward": 1.9 + 0.7 * share + random_.gauss(0, 0.15),
        "reward_std": 0.9 + random_.gauss(0, 0.05),
        **{f"reward_{part}": 0.5 + 0.1 * share + random_.gauss(0, 0.03) for part in PARTS},
        "length": 34 + random_.gauss(0, 1.5),
        "truncated": 0.0,
        "seconds_rollout": 1.2,
        "seconds_reward": 0.01,
        "seconds_update": 2.4,
        "zero_std_groups": random_.choice([0, 0, 1]),
        "missing_rewards": 0,
        "critical_studies": 3,
        "loss": random_.gauss(0, 0.01),
        "ratio_mean": 1.0,
        "ratio_max": 1.3,
        "ratio_min": 0.7,
        "ratio_gap_max": 0.3,
        "ratio_gap_max_critical": 0.2,
        "ratio_gap_max_normal": 0.3,
        "kl_before": 0.0 if step == 0 else 0.07 * share + abs(random_.gauss(0, 0.01)),
        "kl": 0.07 * share + abs(random_.gauss(0, 0.01)),
        "kl_critical": 0.05 * share,
        "kl_normal": 0.08 * share,
        "entropy": 0.3 - 0.1 * share,
        "clip_low_critical": 0.002,
        "clip_high_critical": 0.001,
        "clip_low_normal": 0.0,
        "clip_high_normal": 0.0,
        "tokens": 1100,
        "effective_samples": 1099.0,
        "reports": 32,  # 4 studies x 4 reports x 2 passes
        "learning_reports": 30,
        "sampler_gap_mean": 4e-7,
        "sampler_gap_max": 3e-6,
        "grad_norm": 0.25,
        "learning_rate": 1e-4,
        "updates_skipped": 0,
    }
    return row | changed


def healthy_rows(count: int, seed: int = 0) -> list[dict[str, object]]:
    random_ = random.Random(seed)
    return [healthy_row(step, random_) for step in range(count)]


def study_ids(count: int) -> list[str]:
    """Ids of phantoms, so that their images can be drawn."""
    return [f"chest-train-{number:05d}-0" for number in range(count)]


def rollout_rows(step: int, ids: list[str], text: str) -> list[dict[str, object]]:
    rows = []
    for index, study_id in enumerate(ids):
        reports = [
            {
                "report": f"{text} {step} {index} {i}",
                "tokens": 20 + i,
                "truncated": i == 3,
                "total": 1.0 + i / 2,
                "parts": {**dict.fromkeys(PARTS, 0.25 * i), "label_f1_rules": None if i == 0 else 0.5},
                "advantage": [-1.2, -0.4, 0.4, 1.2][i],
            }
            for i in range(4)
        ]
        rows.append(
            {
                "id": study_id,
                "critical": index % 2 == 0,
                "eps": 0.05 if index % 2 == 0 else 0.2,
                "reference": f"Findings: {study_id}. Impression: Normal.",
                "reports": reports,
            }
        )
    return rows


def write_lines(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def change_rollouts(folder: Path, step: int, change: Callable[[list], object]) -> None:
    """Rewrite the archive with a change of the rows of one step."""
    archive = Archive(folder / "rl/rollouts")
    written = {number: member.read() for number, member in archive.members().items()}
    change(written[step])
    archive.drop_from(0)
    for number, rows in written.items():
        archive.append(number, rows)


def make_run(
    folder: Path,
    *,
    steps: int = 30,
    studies: int = 4,
    corpus: int = 40,
    text: str = "Findings: Clear. Impression: Normal.",
    config=CONFIG,
) -> Path:
    """Write the folder; returns it. The first half of the corpus is hard; each step takes the next studies of it."""
    folder.mkdir(parents=True)
    ids = study_ids(corpus)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    environment = {"python": "3.11", "packages": {"torch": "2"}, "commit": "abc", "devices": ["made-up"], "threads": 1}
    (folder / "environment.json").write_text(json.dumps(environment))
    write_lines(folder / "timing.jsonl", [{"stage": s, "seconds": 61.5} for s in ("sft", "explore", "rl", "rl")])
    losses = [{"step": i, "loss": 3 / (i + 1), "tokens": 9, "grad_norm": 1.0, "learning_rate": 1e-3} for i in range(30)]
    write_lines(folder / "sft/metrics.jsonl", losses)
    write_lines(folder / "rl/metrics.jsonl", healthy_rows(steps))
    scores = [{"id": name, "s": i / corpus, "bleu2": i / corpus, "label_f1_rules": None} for i, name in enumerate(ids)]
    write_lines(folder / "explore/scores.jsonl", scores)
    write_lines(folder / "explore/predictions/part_00000.jsonl", [{"id": name, "report": text} for name in ids])
    (folder / "explore/selection.json").write_text(json.dumps({"studies": corpus, "selected": ids[: corpus // 2]}))
    labels = [{"id": n, "critical": i % 4 > 0, "reason": "Edema", "source": "rules"} for i, n in enumerate(ids)]
    write_lines(folder / "criticality.jsonl", labels)
    rollouts = Archive(folder / "rl/rollouts")
    for step in range(steps):
        chosen = [ids[(step * studies + i) % (corpus // 2)] for i in range(studies)]
        rollouts.append(step, rollout_rows(step, chosen, text))
    interval = {"mean": 0.4, "low": 0.3, "high": 0.5}
    row = {"metric": "total", "studies": 6, "first": interval, "second": interval, "difference": interval}
    table = {"studies": 6, "seed": 5, "rows": [{**row, "best constant": 2.5}], "notes": ["SFT: 50.0 % distinct"]}
    (folder / "eval").mkdir()
    reports = {"references": REFERENCE, "sft": "Findings: Right pneumothorax. Impression: Pneumothorax.", "capo": text}
    for name, report in reports.items():
        (folder / f"eval/{name}.json").write_text(json.dumps({i: {"report": report} for i in ids[-6:]}))
    (folder / "eval/table.json").write_text(json.dumps(table))
    (folder / "eval/table.md").write_text("| metric |\n")
    return folder
