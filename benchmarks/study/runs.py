"""One arm of the study, on one seed: train from the shared SFT checkpoint, report the held-out studies, measure.

The stages are those of train.py, called with the arm's config; a killed arm goes on at its last checkpoint.
"""

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from study.arms import Arm
from study.drift import kl_to_reference

from capo.journal import read_lines, write_json, write_lines
from capo.ranks import Ranks
from capo.stopping import StopSignal
from radflow import train
from radflow.data.corpus import Corpus
from radflow.data.sections import parse_sections
from radflow.pipeline.comparison import constant_reports, nearest_reports, score_rows, with_other_images
from radflow.pipeline.finding_errors import MADE_UP, MISSED
from radflow.pipeline.generation import ReportWriter
from radflow.pipeline.policies import load_policy, report_studies
from radflow.pipeline.run import PRODUCTS, Run, build_run, hard_studies, is_complete, reward_workers
from radflow.pipeline.run_config import MAY_CHANGE, Config, open_run, read_config
from radflow.rewards.registry import build_reward
from radflow.rewards.rules.criticality import CriticalityRules

HERE = Path(__file__).parent
# The config of each dataset and what the study changes of it. That of IU X-ray is the one its users run.
DATASETS: Mapping[str, tuple[Path, Mapping[str, object]]] = {
    "chest": (HERE / "chest.yaml", {}),
    "chest_short": (HERE / "chest.yaml", {"sft.steps": 100}),  # an SFT policy that has much left to learn
    "carotid": (HERE / "carotid.yaml", {}),
    "iu": (
        HERE.parent.parent / "configs" / "iu_xray_tiny.yaml",
        {
            "reward.workers": 0,  # several seeds run side by side
            "reward.bertscore.num_layers": 3,
            "evaluate.metrics": "bertscore",
            "evaluate.validate_every": 10,
            "evaluate.validate_studies": 100,
        },
    ),
}
# The rows of the paper's tables have the paper's advantages; those of `method` and `outcome` say theirs.
PAPERS_ADVANTAGES: Mapping[str, object] = {"rl.advantage": "group", "rl.edits.share": 0}
KL_STUDIES = 150  # held-out studies that are sampled once more for their KL to the SFT policy
SHARED = ("start", "warmup", "sft", "criticality.jsonl")  # what an arm takes over from the seed's base


def config_of(dataset: str, seed: int, folder: Path, changes: Mapping[str, object], encoder: Path) -> Config:
    """The dataset's config with an arm's changes."""
    path, of_study = DATASETS[dataset]
    given = {
        "seed": seed,
        "run-dir": folder,
        "reward.bertscore.path": encoder,
        **of_study,
        **PAPERS_ADVANTAGES,
        **changes,
    }
    words = []
    for key, value in given.items():
        words += [f"--{key}", *map(str, value if isinstance(value, tuple) else (value,))]
    return read_config(Config, path, words)


@lru_cache(maxsize=1)  # a worker runs the arms of one seed in a row
def base_of(dataset: str, seed: int, folder: Path, encoder: Path) -> Run:
    """The seed's corpus, processor and the reward that every arm is measured by."""
    config = config_of(dataset, seed, folder / "base", {}, encoder)
    return build_run(config, Ranks(), StopSignal(), None)[0]


def train_base(dataset: str, seed: int, folder: Path, encoder: Path) -> None:
    """Warm-up, SFT, exploration and criticality of a seed, which all its arms share."""
    config = config_of(dataset, seed, folder / "base", {}, encoder)
    with open_run(config.run_dir, config, may_change=MAY_CHANGE):
        run = base_of(dataset, seed, folder, encoder)
        stages = {
            "warmup": train.warm_up,
            "sft": train.fine_tune,
            "explore": train.explore,
            "criticality": train.annotate,
        }
        for name, stage in stages.items():
            if not is_complete(run.folder, name):
                began = time.process_time()
                stage(run, *([run.folder / "start"] if name in ("warmup", "sft") else []))
                note_cost(run.folder, name, time.process_time() - began)


def run_arm(dataset: str, seed: int, folder: Path, encoder: Path, arm: Arm) -> None:
    """Train one arm and measure it on the held-out studies -> <arm>/result.jsonl, one row per study."""
    base = base_of(dataset, seed, folder, encoder)
    mine = folder / arm.name
    if (mine / "result.jsonl").exists():
        return
    quiet = {} if arm.followed else {"evaluate.validate_every": 0}
    run = dataclasses.replace(base, config=config_of(dataset, seed, mine, {**arm.changes, **quiet}, encoder))
    with open_run(mine, run.config, may_change=MAY_CHANGE):
        take_over(base.folder, mine)
        write_lines(mine / "result.jsonl", results(run, arm))


def results(run: Run, arm: Arm) -> list[dict[str, object]]:
    """One row per held-out study: id, critical, report, every metric, wrong findings, KL to the SFT policy."""
    if arm.writes != "policy":
        return complete(run, score_rows(run.reward, blind_reports(run, arm.writes), run.corpus.test))
    if arm.policy_of is not None:
        return complete(run, report_again(run, arm))
    began = time.process_time()
    stage = {"nothing": lambda _: "sft", "rl": run_rl, "sft": run_sft_again}[arm.trains](run)
    note_cost(run.folder, "train", time.process_time() - began)
    size = run.config.evaluate.part_size
    rows = report_studies(run, stage, run.corpus.test, run.folder / "reports", part_size=size, title=run.folder.name)
    return complete(run, rows, None if stage == "sft" else stage)


def report_again(run: Run, arm: Arm) -> list[dict[str, object]]:
    """Reports of the policy that another arm trained: sampled, or given other studies' images."""
    folder = run.folder.parent / arm.policy_of
    stage = "rl" if (folder / PRODUCTS["rl"]).exists() else "sft"
    trained = dataclasses.replace(run, config=dataclasses.replace(run.config, run_dir=folder))
    if arm.reports == "other images":
        others = with_other_images(run.corpus.test)
        parts, size = run.folder / "reports", run.config.evaluate.part_size
        return report_studies(trained, stage, others, parts, part_size=size, title=arm.name)
    policy = load_policy(folder / stage / "model", run)
    options = {"seed": run.config.seed, "slots": run.config.rollout.slots}
    writer = ReportWriter(policy, run.processor, run.config.rollout, **options)
    written = writer.write(run.corpus.test, title=arm.name)
    return score_rows(run.reward, [report for report, _ in written], run.corpus.test)


def blind_reports(run: Run, kind: str) -> list[str]:
    """Constant: the training report of a sample that scores best by the labels of the Impression, for every study.
    Nearest: the report of the training study with the most similar image."""
    train_studies, test = run.corpus.train, run.corpus.test
    if kind == "nearest":
        return nearest_reports(train_studies, test)
    only_rules = build_reward(run.config.reward, parse_sections)
    best = constant_reports(only_rules, train_studies, run.config.evaluate.baseline_sample)
    return [best["label_f1_rules"]] * len(test)


def take_over(base: Path, mine: Path) -> None:
    """Link what the arms of a seed share; exploration's predictions too, so that only the choice is made anew."""
    for name in SHARED:
        if (base / name).exists() and not (mine / name).exists():
            (mine / name).symlink_to(os.path.relpath(base / name, mine))
    (mine / "explore").mkdir(exist_ok=True)
    if not (mine / "explore" / "predictions").exists():
        (mine / "explore" / "predictions").symlink_to(
            os.path.relpath(base / "explore" / "predictions", mine / "explore")
        )


def run_rl(run: Run) -> str:
    """The RL stage on the studies that the arm's ranking and share choose."""
    if not (run.folder / PRODUCTS["rl"]).exists():
        train.explore(run)
        with reward_workers(run.config, run.stop) as reward:  # the arm's own
            train.reinforce(dataclasses.replace(run, reward=reward))
    return "rl"


def run_sft_again(run: Run) -> str:
    """SFT on the same studies from the same checkpoint, with as many updates on as many studies at the same rates."""
    folder = run.folder / "again"
    if not (folder / PRODUCTS["sft"]).exists():
        train.explore(run)
        rl = run.config.rl
        sft = dataclasses.replace(
            run.config.sft,
            steps=rl.steps * rl.inner_epochs * rl.mini_batches,
            batch_size=rl.studies_per_step // rl.mini_batches,
            balance=rl.balance,
            optimizer=rl.optimizer,
        )
        hard = hard_studies(run)
        again = dataclasses.replace(
            run,
            config=dataclasses.replace(run.config, run_dir=folder, sft=sft),
            corpus=Corpus(tuple(hard), run.corpus.test),
        )
        train.fine_tune(again, run.folder / PRODUCTS["sft"])
    return "again/sft"


def complete(run: Run, rows: Sequence[Mapping[str, object]], stage: str | None = None) -> list[dict[str, object]]:
    """The rows with wrong findings (made up or missed) and criticality, and with the KL of the policy of `stage`, if
    any."""
    studies = run.corpus.test
    critical = CriticalityRules(run.reward.labeler)([study.report for study in studies])
    kl: list[float | None] = [None] * len(studies)
    if stage is not None:
        policy, reference = (load_policy(run.folder / name / "model", run) for name in (stage, "sft"))
        stride = -(-len(studies) // KL_STUDIES)
        kl[::stride] = kl_to_reference(policy, reference, run, studies[::stride])
    return [
        {**row, "wrong": row[MADE_UP] + row[MISSED], "critical": label.critical, "kl": divergence}
        for row, label, divergence in zip(rows, critical, kl, strict=True)
    ]


def note_cost(folder: Path, name: str, seconds: float) -> None:
    """Add CPU seconds to cost.json; a resumed stage adds to what it had."""
    path = folder / "cost.json"
    costs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, {**costs, name: costs.get(name, 0.0) + seconds})


def read_result(folder: Path, arm: str) -> list[dict[str, object]]:
    """Rows of an arm that is done.

    Raises:
        ValueError: it is not there.
    """
    path = folder / arm / "result.jsonl"
    if not path.exists():
        raise ValueError(f"{path}: expected the result of arm {arm}; run the table again")
    return read_lines(path)
