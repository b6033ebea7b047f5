"""The final tables of several demo runs as one: mean over seeds of SFT and CAPO, and of their difference.

for seed in 0 1 2; do make demo ARGS="--seed $seed --run-dir runs/demo_$seed"; done
PYTHONPATH=. python benchmarks/demo_table.py runs/demo_0 runs/demo_1 runs/demo_2
"""

import argparse
import json
from pathlib import Path

from harness import write
from study.seeds import compare, estimate

from radflow.dashboard.checks import LOWER
from radflow.pipeline.comparison import LABELS
from radflow.pipeline.tables import with_direction
from radflow.rewards.registry import METRICS
from radflow.rewards.statistics import distinct_share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    folders = parser.parse_args().runs
    tables = [json.loads((folder / "eval" / "table.json").read_text(encoding="utf-8")) for folder in folders]
    columns: dict[str, list[tuple[float, float]]] = {
        row["metric"]: [pair_of(table, row["metric"]) for table in tables] for row in tables[0]["rows"]
    }
    columns["distinct reports"] = [(distinct(folder, "sft"), distinct(folder, "capo")) for folder in folders]
    seeds = ", ".join(str(table["seed"]) for table in tables)
    write(
        "demo",
        {
            "setting": f"make demo, seeds {seeds}: mean over seeds; difference ± half of its 95 % interval",
            "columns": ["metric", "SFT", "CAPO", "CAPO - SFT", "seeds on which it rose"],
            "rows": [cells(name, pairs) for name, pairs in columns.items()],
        },
    )


def pair_of(table: dict, metric: str) -> tuple[float, float]:
    (row,) = [row for row in table["rows"] if row["metric"] == metric]
    return row["first"]["mean"], row["second"]["mean"]


def distinct(folder: Path, system: str) -> float:
    reports = json.loads((folder / "eval" / f"{system}.json").read_text(encoding="utf-8"))
    return distinct_share([row["report"] for row in reports.values()])


def cells(name: str, pairs: list[tuple[float, float]]) -> list[str]:
    first, second = ([pair[i] for pair in pairs] for i in (0, 1))
    found = compare(first, second)
    label = METRICS[name].label if name in METRICS else LABELS.get(name, name)
    shown = [f"{estimate(values).mean:.3f}" for values in (first, second)]
    difference = f"{found.difference.mean:+.3f} ± {found.difference.half:.3f}"
    wins = f"{found.wins} of {found.seeds}"
    return [with_direction(label, "lower" if name in LOWER else "higher"), *shown, difference, wins]


if __name__ == "__main__":
    main()
