"""RadFlow: SFT, Target Exploration, criticality, CAPO, evaluation; each stage makes one value and the next takes it.

    torchrun --standalone --nproc-per-node 1 train.py                              the embedded demo (configs/demo.yaml)
    torchrun --standalone --nproc-per-node 1 train.py --config configs/my.yaml     your own run
    ... --rl.beta 0.05 --seed 1 --run-dir runs/beta05                              any key of the config, dotted
    ... --stages sft,explore                                                       a part; what is complete is skipped

A run that was killed goes on where it stopped when the same command is started again.
"""

import copy
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from capo.checkpoint import load_checkpoint, save_checkpoint
from capo.explore import ExploreConfig, composite_score, select_hard
from capo.journal import Journal, read_lines, write_json, write_lines, write_whole
from capo.rollout import Request, rollout
from capo.sampling import SamplingConfig, sample_seed
from capo.sft import SftConfig, imitate
from capo.trainer import RlConfig, Trainer
from capo.warmup import LabelReader, WarmupConfig, read_labels
from data.augment import jitter
from data.batches import shuffled_batches
from data.corpus import Corpus, DataConfig, load_corpus
from data.sections import parse_sections
from data.studies import Study
from evaluate import (
    EvaluateConfig,
    banned_mask,
    baseline_columns,
    comparison_rows,
    describe,
    prompt_of,
    render_table,
    rexrank,
    score_reports,
    with_other_images,
    write_reports,
)
from models.lora import adapters_off, add_lora, merge_lora
from models.processing import ReportProcessor
from models.qwen_vl import QwenVL, freeze_vision, load
from models.start import ModelConfig, start_path, weights_dtype
from rewards.criticality import CriticalityRules
from rewards.hierarchy import HierarchicalReward, RewardConfig
from rewards.workers import RewardWorkers
from rollouts import Batch, sample_and_score, watched, write_batch
from run_folder import open_run, read_config

STAGES = ("warmup", "sft", "explore", "criticality", "rl", "evaluate")


@dataclass(frozen=True)
class Config:
    """Everything a run depends on; written resolved to config.yaml in its folder."""

    run_dir: Path = Path("runs/demo")
    """Folder of the run: models, predictions, metrics, tables."""
    seed: int = 0
    """Of phantoms, initial weights, batches and sampling."""
    stages: str = ",".join(STAGES)
    """Stages to run, with commas; each needs those before it, and what is complete is skipped."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    explore: ExploreConfig = field(default_factory=ExploreConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    rollout: SamplingConfig = field(default_factory=SamplingConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.stages.split(",") if name not in STAGES]:
            raise ValueError(f"expected stages among {','.join(STAGES)}, got {unknown[0]!r}")
        if self.rl.group_size > self.evaluate.slots:
            raise ValueError(
                f"expected evaluate.slots of at least rl.group_size, got {self.evaluate.slots} and {self.rl.group_size}"
            )


def main(argv: Sequence[str] | None = None) -> None:
    config = read_config(
        Config, sys.argv[1:] if argv is None else argv, default=Path("configs/demo.yaml"), description=__doc__
    )
    try:
        refuse_many_ranks()
        with open_run(config.run_dir, config, may_change=("run_dir", "stages", "reward.workers")):
            run(config)
    except ValueError as error:
        sys.exit(f"error: {error}")


def run(config: Config) -> None:
    """The stages of the method, in the paper's order."""
    folder, device = config.run_dir, pick_device()
    corpus = load_corpus(config.data, seed=config.seed)
    start = start_path(folder / "start", config.model, corpus_texts(corpus), seed=config.seed)
    processor = ReportProcessor.load(start, config.model.processor)
    reward = HierarchicalReward.from_config(config.reward, parse_sections)
    work = {
        "warmup": lambda: warm_up(config, start, corpus, processor, reward, device),
        "sft": lambda: fine_tune(config, start, corpus, processor, reward, device),
        "explore": lambda: explore(config, corpus, processor, reward, device),
        "criticality": lambda: annotate(config, corpus, reward),
        "rl": lambda: reinforce(config, corpus, processor, reward, device),
        "evaluate": lambda: compare(config, corpus, processor, reward, device),
    }
    for name in STAGES:
        if name in config.stages.split(",") and not (folder / PRODUCTS[name]).exists():
            need_earlier(folder, name)
            with timed(folder, name):
                work[name]()
    if (table := folder / "eval" / "table.md").exists():
        print(table.read_text(encoding="utf-8"))
    print(f"run folder: {folder}")


def warm_up(
    config: Config,
    start: Path,
    corpus: Corpus,
    processor: ReportProcessor,
    reward: HierarchicalReward,
    device: torch.device,
) -> None:
    """The vision tower learns to name the labels of the reference reports -> warmup/model. Without steps: nothing."""
    folder = config.run_dir / "warmup"
    if config.warmup.steps == 0:
        return
    policy = load_policy(start, config, device)
    found = reward.expert.labeler([study.report for study in corpus.train])
    labels = torch.tensor([[float(label in names) for label in reward.expert.labeler.labels] for names in found])
    reader = LabelReader(policy, policy.vision, labels.mean(0))
    trainer = Trainer(reader, config.warmup.optimizer, num_steps=config.warmup.steps)
    first = resume(trainer, folder)
    journal = Journal(folder / "metrics.jsonl", resume_at=first)
    batches = shuffled_batches(len(corpus.train), config.warmup.batch_size, seed=config.seed + 2, start_step=first)
    for step in (bar := progress("warm-up", first, config.warmup.steps)):
        chosen = next(batches)
        prompts = [
            prompt_of(processor, corpus.train[i], augmentation(config, "warmup", step, place))
            for place, i in enumerate(chosen)
        ]
        row = read_labels(trainer, prompts, labels[chosen])
        journal.append({"step": step, **row})
        bar.set_postfix(loss=f"{row['loss']:.3f}")
        keep(trainer, folder, step + 1, config.sft.checkpoint_every)
    policy.save(folder / "model", processor)


def fine_tune(
    config: Config,
    start: Path,
    corpus: Corpus,
    processor: ReportProcessor,
    reward: HierarchicalReward,
    device: torch.device,
) -> None:
    """SFT on image-report pairs -> sft/model, the reference policy. LoRA adapters are merged into it."""
    folder = config.run_dir / "sft"
    warm = config.run_dir / "warmup" / "model"
    policy = load_policy(warm if warm.exists() else start, config, device)
    prepare_training(policy, config, seed=config.seed, train_vision=config.sft.vision == "trained")
    trainer = Trainer(policy, config.sft.optimizer, num_steps=config.sft.steps)
    first = resume(trainer, folder)
    journal = Journal(folder / "metrics.jsonl", resume_at=first)
    banned = banned_mask(policy, processor)
    reports = [processor.encode_report(study.report) for study in corpus.train]
    batches = shuffled_batches(
        len(corpus.train), config.sft.batch_size, seed=config.seed, start_step=first,
        weights=balanced_weights(corpus.train, reward, config.sft.balance),
    )  # fmt: skip
    for step in (bar := progress("SFT", first, config.sft.steps)):
        chosen = next(batches)
        prompts = [
            prompt_of(processor, corpus.train[i], augmentation(config, "sft", step, place))
            for place, i in enumerate(chosen)
        ]
        row = imitate(trainer, prompts, [reports[i] for i in chosen], banned=banned)
        journal.append({"step": step, **row})
        bar.set_postfix(loss=f"{row['loss']:.3f}")
        keep(trainer, folder, step + 1, config.sft.checkpoint_every)
    merge_lora(policy)
    policy.save(folder / "model", processor)


def explore(
    config: Config, corpus: Corpus, processor: ReportProcessor, reward: HierarchicalReward, device: torch.device
) -> None:
    """Report every training study, score the reports, keep the worst -> explore/selection.json."""
    folder = config.run_dir / "explore"
    policy = load_policy(config.run_dir / "sft" / "model", config, device)
    reports: list[str] = []
    # Part files of fixed studies: a resumed run decodes the same batches as an undisturbed one.
    parts = [
        corpus.train[i : i + config.explore.part_size] for i in range(0, len(corpus.train), config.explore.part_size)
    ]
    for number, studies in enumerate(tqdm(parts, "exploration", unit="part", disable=None)):
        part = folder / "predictions" / f"part_{number:05d}.jsonl"
        if not part.exists():
            written = write_reports(policy, processor, studies, config.evaluate, title=part.stem)
            write_lines(part, ({"id": s.id, "report": r} for s, r in zip(studies, written, strict=True)))
        reports += [str(row["report"]) for row in read_lines(part)]
    columns = score_reports(reward, reports, corpus.train)
    # A study whose reference lacks the section a metric reads cannot be called hard for it: it counts as perfect there.
    metrics = {name: [1.0 if v is None else v for v in columns[name]] for name in config.explore.weights}
    scores = composite_score(metrics, config.explore)
    hard = select_hard(scores, config.explore)
    write_lines(
        folder / "scores.jsonl",
        (
            {"id": study.id, "s": float(scores[i]), **{name: values[i] for name, values in columns.items()}}
            for i, study in enumerate(corpus.train)
        ),
    )
    summary = {"studies": len(corpus.train), "selected": [corpus.train[i].id for i in hard]}
    write_json(folder / "selection.json", {**summary, "highest_s": float(scores[hard].max())})


def annotate(config: Config, corpus: Corpus, reward: HierarchicalReward) -> None:
    """Label every training reference as critical or normal, once -> criticality.jsonl."""
    path = config.run_dir / "criticality.jsonl"
    labels = CriticalityRules(reward.expert.labeler)([study.report for study in corpus.train])
    rows = [
        {"id": study.id, "critical": label.critical, "reason": label.reason, "source": label.source}
        for study, label in zip(corpus.train, labels, strict=True)
    ]
    write_lines(path, rows)


def reinforce(
    config: Config, corpus: Corpus, processor: ReportProcessor, reward: HierarchicalReward, device: torch.device
) -> None:
    """CAPO on the hard studies -> rl/model."""
    folder = config.run_dir / "rl"
    policy = load_policy(config.run_dir / "sft" / "model", config, device)
    reference = prepare_training(policy, config, seed=config.seed + 1, train_vision=config.model.rl_vision == "trained")
    num_updates = config.rl.steps * config.rl.inner_epochs * config.rl.mini_batches
    trainer = Trainer(
        policy, config.rl.optimizer, num_steps=num_updates,
        reference=reference, frozen_vision=config.model.rl_vision == "frozen",
    )  # fmt: skip
    first = resume(trainer, folder)
    journal = Journal(folder / "metrics.jsonl", resume_at=first)
    studies = hard_studies(config.run_dir, corpus)
    critical = {str(row["id"]): bool(row["critical"]) for row in read_lines(config.run_dir / "criticality.jsonl")}
    banned = banned_mask(policy, processor)
    batches = shuffled_batches(
        len(studies), min(config.rl.studies_per_step, len(studies)), seed=config.seed + 1, start_step=first,
        weights=balanced_weights(studies, reward, config.rl.balance),
    )  # fmt: skip
    with RewardWorkers(config.reward, parse_sections) as workers:
        for step in (bar := progress("CAPO", first, config.rl.steps)):
            chosen = [studies[i] for i in next(batches)]
            batch = sample(policy, processor, chosen, config, step, banned, workers)
            cases, spread = batch.cases(critical, config.rl)
            began = time.perf_counter()
            row = trainer.improve(cases, config.rl, temperature=config.rollout.temperature, banned=banned)
            row["seconds_update"] = time.perf_counter() - began
            write_batch(folder / "rollouts" / f"step_{step:06d}.jsonl", batch, cases, config.rl)
            row = {"step": step, **batch.metrics(), **spread, **row}
            journal.append(row)
            bar.set_postfix(reward=row["reward"], kl=row["kl"])  # no reward at all is None, which the bar can show
            keep(trainer, folder, step + 1, config.rl.checkpoint_every)
    merge_lora(policy)
    policy.save(folder / "model", processor)


def sample(
    policy: QwenVL,
    processor: ReportProcessor,
    studies: Sequence[Study],
    config: Config,
    step: int,
    banned: torch.Tensor,
    workers: RewardWorkers,
) -> Batch:
    """G reports for each study, and their rewards."""
    requests = [
        Request(
            prompt_of(processor, study),
            tuple(sample_seed(config.seed, "rl", step, study.id, i) for i in range(config.rl.group_size)),
        )
        for study in studies
    ]
    total = len(studies) * config.rl.group_size
    written = rollout(
        policy, requests, sampling=config.rollout, eos_id=processor.eos_id, banned=banned,
        slots=min(config.evaluate.slots, total),
    )  # fmt: skip
    written = watched(written, f"rollouts of step {step}", total, leave=False)
    return sample_and_score(written, requests, studies, processor.decode, workers)


def compare(
    config: Config, corpus: Corpus, processor: ReportProcessor, reward: HierarchicalReward, device: torch.device
) -> None:
    """Report the held-out studies with the SFT policy and after CAPO -> eval/table.md and eval/table.json."""
    folder = config.run_dir / "eval"
    columns, notes = {}, []
    for name, model in (("SFT", "sft"), ("CAPO", "rl")):
        policy = load_policy(config.run_dir / model / "model", config, device)
        reports = write_reports(policy, processor, corpus.test, config.evaluate, title=f"{name} on held-out studies")
        columns[name] = score_reports(reward, reports, corpus.test)
        notes.append(describe(name, reports))
        write_json(folder / f"{name.lower()}.json", rexrank(corpus.test, reports))
    references = [study.report for study in corpus.test]
    notes.append(describe("references", references))
    write_json(folder / "references.json", rexrank(corpus.test, references))
    baselines = baseline_columns(reward, corpus.train, corpus.test, config.evaluate)
    blind = write_reports(
        policy, processor, with_other_images(corpus.test), config.evaluate, title="CAPO on other studies' images"
    )
    baselines["CAPO, other images"] = score_reports(reward, blind, corpus.test)
    write_json(folder / "capo_other_images.json", rexrank(corpus.test, blind))
    rows = comparison_rows(columns["SFT"], columns["CAPO"], baselines)
    write_json(folder / "table.json", {"studies": len(corpus.test), "seed": config.seed, "rows": rows, "notes": notes})
    write_whole(folder / "table.md", render_table(rows, ("SFT", "CAPO"), notes))


# What the stages share.


def refuse_many_ranks() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("expected one process (torchrun --nproc-per-node 1): this release trains on one device")


def pick_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_policy(path: Path, config: Config, device: torch.device) -> QwenVL:
    return load(path, dtype=weights_dtype(config.model, device)).to(device)


def corpus_texts(corpus: Corpus) -> list[str]:
    """What the tokenizer of a model built from scratch is trained on: the training side only."""
    return [text for s in corpus.train for text in (s.report, s.indication, s.comparison) if text]


PRODUCTS = {
    "warmup": "warmup/model",
    "sft": "sft/model",
    "explore": "explore/selection.json",
    "criticality": "criticality.jsonl",
    "rl": "rl/model",
    "evaluate": "eval/table.md",
}
NEEDS = {"explore": ("sft",), "rl": ("sft", "explore", "criticality"), "evaluate": ("sft", "rl")}


def need_earlier(folder: Path, name: str) -> None:
    for earlier in NEEDS.get(name, ()):
        if not (folder / PRODUCTS[earlier]).exists():
            raise ValueError(f"stage {name} needs {folder / PRODUCTS[earlier]}, not there; run stage {earlier} first")


@contextmanager
def timed(folder: Path, name: str) -> Iterator[None]:
    """Say what runs, and add the seconds it took to timing.jsonl (a resumed stage has several lines)."""
    began = time.perf_counter()
    print(f"== {name}", flush=True)
    yield
    path = folder / "timing.jsonl"
    write_lines(path, [*read_lines(path), {"stage": name, "seconds": round(time.perf_counter() - began, 2)}])


def progress(name: str, first: int, last: int) -> tqdm:
    return tqdm(range(first, last), name, initial=first, total=last, unit="step", disable=None, mininterval=1)


def prepare_training(policy: QwenVL, config: Config, *, seed: int, train_vision: bool) -> Callable:
    """Make the right parameters trainable; return how to reach the policy as it is now, frozen.

    With LoRA that is the policy with its adapters off (the SFT adapters are merged by then, so off is not the base
    model); training all weights needs a copy.
    """
    if config.model.recompute_activations:
        policy.recompute_activations()
    if config.model.training == "lora":
        add_lora(policy, config.model.lora, seed=seed)
        return lambda: adapters_off(policy)
    if not train_vision:
        freeze_vision(policy)
    frozen = copy.deepcopy(policy).requires_grad_(False)
    return lambda: nullcontext(frozen)


def resume(trainer: Trainer, folder: Path) -> int:
    """Restore the newest checkpoint of a stage; the step to go on with."""
    state = load_checkpoint(folder / "checkpoints")
    if state is None:
        return 0
    trainer.load_state_dict(state)
    return int(state["step"])


def keep(trainer: Trainer, folder: Path, step: int, every: int) -> None:
    if step % every == 0:
        save_checkpoint(folder / "checkpoints", step, trainer.state_dict())


def augmentation(config: Config, stage: str, step: int, place: int) -> Callable | None:
    return jitter(sample_seed(config.seed, f"augment {stage}", step, "", place)) if config.sft.augment else None


def balanced_weights(studies: Sequence[Study], reward: HierarchicalReward, balance: float) -> list[float] | None:
    """Sampling weights count^-balance of each study's set of Impression labels; None for plain shuffling."""
    if balance == 0:
        return None
    kinds = [frozenset(labels) for labels in reward.expert.labeler([study.impression for study in studies])]
    counts = Counter(kinds)
    return [counts[kind] ** -balance for kind in kinds]


def hard_studies(folder: Path, corpus: Corpus) -> list[Study]:
    selection = json.loads((folder / "explore" / "selection.json").read_text(encoding="utf-8"))
    by_id = {study.id: study for study in corpus.train}
    return [by_id[study_id] for study_id in selection["selected"]]


if __name__ == "__main__":
    main()
