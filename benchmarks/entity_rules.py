"""The entity score of the rules, BLEU-2 and ROUGE-L against published RadGraph scores of report pairs.

    python benchmarks/entity_rules.py

Nothing is fitted to the pairs. Folds and intervals (bootstrap) are over studies, each with the reports of all systems.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from harness import write
from scipy.stats import pearsonr, spearmanr

from radflow.rewards.config import RewardConfig
from radflow.rewards.registry import METRICS, Backends

RULES = ("entity_f1_rules", "bleu2", "rouge_l")
TARGETS = {"rg_er": "entities and relations", "rg_e": "entities", "rg_bar_er": "both, whole"}
FOLDS, DRAWS = 5, 1000


def read_pairs(path: Path) -> list[dict]:
    """uid, system, ref, hyp and the published scores of each pair."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pearson(scores: np.ndarray, target: np.ndarray) -> float:
    return float(pearsonr(scores, target).statistic)


def over_studies(scores: np.ndarray, target: np.ndarray, studies: Sequence[int]) -> tuple[float, float, float]:
    """Pearson: lower and upper end of the 95 % interval, and the lowest of the folds."""
    generator, unique = np.random.default_rng(0), np.unique(studies)
    members = [np.flatnonzero(np.asarray(studies) == study) for study in unique]
    draws = []
    for _ in range(DRAWS):
        rows = np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))])
        draws.append(pearson(scores[rows], target[rows]))
    parts = [np.concatenate(members[fold::FOLDS]) for fold in range(FOLDS)]
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high), min(pearson(scores[part], target[part]) for part in parts)


def rows(pairs: Sequence[dict]) -> list[list[str]]:
    """One for each metric and published score."""
    backends, found = Backends(RewardConfig()), []
    systems = np.array([pair["system"] for pair in pairs])
    for name in RULES:
        metric = METRICS[name].load(backends)
        scores = np.array(metric([pair["hyp"] for pair in pairs], [pair["ref"] for pair in pairs]))
        for target, meaning in TARGETS.items():
            published = np.array([pair[target] for pair in pairs])
            low, high, fold = over_studies(scores, published, [pair["uid"] for pair in pairs])
            each = [pearson(scores[systems == s], published[systems == s]) for s in sorted(set(systems))]
            figures = [
                pearson(scores, published),
                low,
                high,
                fold,
                float(spearmanr(scores, published).statistic),
                *each,
            ]
            found.append([name, meaning, *(f"{figure:.3f}" for figure in figures)])
    return found


def main() -> None:
    shared = Path(os.environ.get("RADFLOW_SHARED", Path(__file__).parents[2] / "shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=shared / "data" / "radgraph_pairs" / "pairs.jsonl")
    pairs = read_pairs(parser.parse_args().data)
    figures = ["Pearson", "2.5 %", "97.5 %", f"lowest of {FOLDS} folds", "Spearman"]
    each = [f"Pearson, {system}" for system in sorted({pair["system"] for pair in pairs})]
    setting = f"Agreement with published RadGraph F1 on {len(pairs)} report pairs"
    columns = ["score", "RadGraph F1 of", *figures, *each]
    write("entity_rules", {"setting": setting, "columns": columns, "rows": rows(pairs)})


if __name__ == "__main__":
    main()
