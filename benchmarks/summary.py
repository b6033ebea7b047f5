"""One table of the other programs' results: each piece of work, ours against the strongest peer, and against the limit.

`make bench` runs it last; it measures nothing itself. The limit is a large float32 matrix product in the same run or,
for images, their decoding alone. It is left empty where the work is neither.
"""

import csv
from dataclasses import dataclass

from harness import RESULTS, write

STEP = "TRL 1.16, completions alone through the head"
RECOMPUTED = "activations recomputed"
RECOMPUTING = f"{STEP}, {RECOMPUTED} (its default)"
GENERATE = "generate, 8 studies x 4, a quarter"
KINDS = ("new references", "known")
SHARE = "% of a large product"


@dataclass(frozen=True)
class Compared:
    """Two rows of results/NAME.csv, by their first cells; a column that ends with /s is a rate, others are times."""

    work: str
    name: str
    ours: str
    peer: str
    column: str = "seconds"
    peer_column: str = ""  # if it is another one
    limit: str = ""  # a row that does the least possible; without it, the table's share of a large product
    memory: str = "peak resident (MB)"  # the column, none if both ran in one process
    shown: str = ""  # the peer's name; by default its row


def _packing(group: int) -> Compared:
    setting = f"P 400, T 80, G {group}"
    ours, peer = f"{setting}, packed", f"{setting}, padded"
    return Compared(f"update, {group} reports per study", "packing", ours, peer, shown="a row per report")


def _reward(metric: str, size: str, kind: str, package: str) -> Compared:
    group = f"{metric}, G 4, {size}"
    ours, peer = f"{group}, {kind}", f"{group}, package"
    return Compared(f"{metric}, {size}, {kind}", "rewards", ours, peer, memory="", shown=package)


def _part(work: str, ours: str, peer: str, shown: str) -> Compared:
    return Compared(work, "reward_parts", ours, peer, column="58 words (ms)", shown=shown)


def _scorer(metric: str) -> Compared:
    return Compared(f"scorer: {metric}", "radeval", metric, metric, "here (s)", "RadEval (s)", shown="RadEval 2.2.1")


def _bootstrap(studies: str) -> Compared:
    return Compared(f"bootstrap, {studies}", "bootstrap", f"{studies}, RadFlow", f"{studies}, scipy", shown="scipy")


def _images(kind: str, peer: str, cache: str) -> Compared:
    ours, limit = f"{kind}, cache {cache}", f"{kind}, decoding alone" if cache == "cold" else ""
    return Compared(ours, "data_loading", ours, f"{kind}, {peer}", limit=limit, shown=peer)


COMPARED = (
    Compared("RL step", "rl_step", "RadFlow", STEP, shown="TRL 1.16, as on a GPU"),
    Compared(f"RL step, {RECOMPUTED}", "rl_step", f"RadFlow, {RECOMPUTED}", RECOMPUTING, shown="TRL 1.16, as on a GPU"),
    Compared("RL step", "rl_step", "RadFlow", "TRL 1.16"),
    Compared("decoding", "generate", "RadFlow", "vLLM 0.32", "tokens/s"),
    Compared("decoding, bfloat16", "generate", "RadFlow, bfloat16", "vLLM 0.32, bfloat16", "tokens/s"),
    Compared("decoding", "generate", "RadFlow", GENERATE, "tokens/s", shown="transformers, generate"),
    Compared("log-probabilities", "logps", "linear_logps", "Liger 0.8.5 torch"),
    Compared("log-probabilities", "logps", "linear_logps", "TRL 1.16 chunked"),
    Compared("loss", "loss", "capo_loss", "Liger 0.8.5 ppo_loss_fn"),
    Compared("loss", "loss", "capo_loss", "verl 0.9.1 vanilla"),
    *map(_packing, (4, 8, 16, 32)),
    *(
        _reward("RadGraph F1", f"{corpus} length", kind, "radgraph 0.1.18")
        for corpus in ("IU", "MIMIC")
        for kind in KINDS
    ),
    *(_reward("BERTScore", f"{words} words", kind, "bert-score 0.3.13") for words in (30, 80, 200) for kind in KINDS),
    _part("ROUGE-L", "rouge_l", "rouge_l, rouge-score 0.1.2", "rouge-score 0.1.2"),
    _part("labels by rules", "label_f1_rules", "label_f1_chexbert", "CheXbert's model"),
    *map(_scorer, ("corpus BLEU-1 to 4", "ROUGE-L")),
    *map(_bootstrap, ("590 studies", "10,000 studies")),
    *(_images(*kind, cache) for kind in (("JPEG", "Pillow"), ("DICOM", "pydicom")) for cache in ("cold", "warm")),
)


def table_of(name: str) -> dict[str, dict[str, str]]:
    """Rows of a result by their first cell; of several, the first."""
    rows: dict[str, dict[str, str]] = {}
    with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(next(iter(row.values())), row)
    return rows


def cells(compared: Compared) -> list[str]:
    rows, column = table_of(compared.name), compared.column
    mine, peer = rows[compared.ours], rows[compared.peer]
    figures = mine[column], peer[compared.peer_column or column]
    ours, theirs = map(float, figures)
    times = ours / theirs if column.endswith("/s") else theirs / ours
    share = mine.get(SHARE, "")
    if compared.limit:
        share = f"{100 * float(rows[compared.limit][column]) / ours:.0f}"
    memory = (row.get(compared.memory, "") for row in (mine, peer))
    return [
        compared.work,
        compared.shown or compared.peer,
        column,
        *figures,
        f"{times:.2f}",
        *memory,
        share,
        mine["measured on"],
    ]


if __name__ == "__main__":
    columns = ["work", "peer", "unit", "ours", "peer's", "times as fast"]
    columns += ["our peak resident (MB)", "peer's peak resident (MB)", "% of the limit", "measured on"]
    setting = "ours against the strongest peers; each row is from one run of one program"
    write("summary", {"setting": setting, "columns": columns, "rows": [cells(compared) for compared in COMPARED]})
