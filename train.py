"""RadFlow: SFT, Target Exploration, criticality, CAPO, evaluation; each stage makes one value and the next takes it.

    python train.py                                                                the embedded demo (configs/demo.yaml)
    torchrun --standalone --nproc-per-node 8 train.py --config configs/my.yaml     your own run, on 8 GPUs
    ... --rl.beta 0.05 --seed 1 --run-dir runs/beta05                              any key of the config, dotted
    ... --stages sft,explore                                                       a part; what is complete is skipped
    ... --plan                                                                     only say what memory it needs

A run that was killed goes on where it stopped when the same command is started again, on any number of processes.
SIGTERM and SIGUSR1 make it save its state and end with exit code 0.
"""

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from capo.checkpoint import CheckpointError, Checkpoints
from capo.explore import ExploreConfig, composite_score, select_hard
from capo.fsdp import ParallelConfig, gathered, shard_policy
from capo.journal import Journal, read_lines, write_json, write_lines, write_whole
from capo.ranks import Ranks
from capo.rollout import Request, rollout
from capo.sampling import SamplingConfig, sample_seed
from capo.sft import SftConfig, imitate
from capo.stopping import StopRequested, StopSignal
from capo.trainer import DivergedError, RlConfig, Trainer
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
from parts import in_parts
from plan import Load, sizes_at, table
from rewards.criticality import CriticalityRules
from rewards.hierarchy import HierarchicalReward, RewardConfig
from rewards.workers import RewardWorkers
from rollouts import Batch, exchange, sample_and_score, watched, write_batch
from run_folder import open_run, plain, read_config

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
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.stages.split(",") if name not in STAGES]:
            raise ValueError(f"expected stages among {','.join(STAGES)}, got {unknown[0]!r}")
        if self.rl.group_size > self.evaluate.slots:
            raise ValueError(
                f"expected evaluate.slots of at least rl.group_size, got {self.evaluate.slots} and {self.rl.group_size}"
            )


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    only_plan = "--plan" in argv
    config = read_config(
        Config, [word for word in argv if word != "--plan"], default=Path("configs/demo.yaml"), description=__doc__
    )
    if only_plan:
        print(planned(config))
        return
    ranks, stop = Ranks.join(timeout_s=config.parallel.timeout_s), StopSignal()
    stop.listen()
    try:
        with open_run(config.run_dir, config, may_change=MAY_CHANGE) if ranks.first else nullcontext():
            ranks.meet()  # the first rank has looked whether the folder may be used
            run_stages(config, ranks, stop)
    except StopRequested as request:
        print(f"rank {ranks.rank}: {request}; start the same command again to go on", flush=True)
    except (ValueError, DivergedError, CheckpointError) as error:
        sys.exit(f"error: {error}")


def planned(config: Config) -> str:
    """The memory that the config's CAPO stage needs of each GPU."""
    if config.model.path is None:
        sys.exit("error: --plan expects --model.path, a checkpoint directory; the small model fits everywhere")
    try:
        sizes = sizes_at(config.model.path, config.model)
    except ValueError as error:
        sys.exit(f"error: {error}")
    image = config.model.processor.max_pixels // 28**2  # tokens of an image: one for 28 x 28 pixels
    load = Load(
        micro_batch=config.rl.optimizer.token_budget,
        slots=min(config.evaluate.slots, config.rl.studies_per_step * config.rl.group_size),
        cached=image + 64 + config.rollout.max_new_tokens,
    )
    return table(sizes, config.model, load)


@dataclass(frozen=True)
class Run:
    """What every stage is given."""

    config: Config
    corpus: Corpus
    processor: ReportProcessor
    reward: HierarchicalReward
    device: torch.device
    ranks: Ranks
    stop: StopSignal

    @property
    def folder(self) -> Path:
        return self.config.run_dir


def run_stages(config: Config, ranks: Ranks, stop: StopSignal) -> None:
    """The stages of the method, in the paper's order."""
    folder = config.run_dir
    corpus = load_corpus(config.data, seed=config.seed)
    if ranks.first:
        start_path(folder / "start", config.model, corpus_texts(corpus), seed=config.seed)
    ranks.meet()
    start = start_path(folder / "start", config.model, (), seed=config.seed)
    stages = Run(
        config=config,
        corpus=corpus,
        processor=ReportProcessor.load(start, config.model.processor),
        reward=HierarchicalReward.from_config(config.reward, parse_sections),
        device=pick_device(),
        ranks=ranks,
        stop=stop,
    )
    work = {
        "warmup": lambda: warm_up(stages, start),
        "sft": lambda: fine_tune(stages, start),
        "explore": lambda: explore(stages),
        "criticality": lambda: annotate(stages),
        "rl": lambda: reinforce(stages),
        "evaluate": lambda: compare(stages),
    }
    for name in STAGES:
        if name in config.stages.split(",") and not (folder / PRODUCTS[name]).exists():
            need_earlier(folder, name)
            with timed(stages, name):
                work[name]()
                ranks.meet()  # its product is there before anybody looks for it
    if ranks.first and (table := folder / "eval" / "table.md").exists():
        print(table.read_text(encoding="utf-8"))
    if ranks.first:
        print(f"run folder: {folder}")


def warm_up(run: Run, start: Path) -> None:
    """The vision tower learns to name the labels of the reference reports -> warmup/model. Without steps: nothing."""
    config, corpus = run.config, run.corpus
    if config.warmup.steps == 0:
        return
    policy = load_policy(start, run)
    found = run.reward.expert.labeler([study.report for study in corpus.train])
    labels = torch.tensor([[float(label in names) for label in run.reward.expert.labeler.labels] for names in found])
    reader = LabelReader(policy, policy.vision, labels.mean(0))
    trainer = Trainer(
        reader, config.warmup.optimizer, num_steps=config.warmup.steps, ranks=run.ranks, stop=run.stop
    )  # fmt: skip
    stage = TrainingStage(run, "warmup", trainer, every=config.sft.checkpoint_every)
    size = config.warmup.batch_size
    batches = shuffled_batches(len(corpus.train), size, seed=config.seed + 2, start_step=stage.first)

    def step(number: int) -> dict[str, float]:
        chosen = next(batches)
        own = run.ranks.share([1] * size)
        prompts = [
            prompt_of(run.processor, corpus.train[chosen[place]], augmentation(config, "warmup", number, place))
            for place in own
        ]
        return read_labels(trainer, prompts, labels[[chosen[place] for place in own]], num_studies=size)

    stage.run(config.warmup.steps, step, title="warm-up", shown="loss")
    policy.save(run.folder / "warmup" / "model", run.processor, write=run.ranks.first)


def fine_tune(run: Run, start: Path) -> None:
    """SFT on image-report pairs -> sft/model, the reference policy. LoRA adapters are merged into it."""
    config, corpus = run.config, run.corpus
    warm = run.folder / "warmup" / "model"
    policy = load_policy(warm if warm.exists() else start, run, to_train=True)
    prepare_training(policy, run, seed=config.seed, train_vision=config.sft.vision == "trained")
    trainer = Trainer(policy, config.sft.optimizer, num_steps=config.sft.steps, ranks=run.ranks, stop=run.stop)
    stage = TrainingStage(run, "sft", trainer, every=config.sft.checkpoint_every)
    banned = banned_mask(policy, run.processor)
    reports = [run.processor.encode_report(study.report) for study in corpus.train]
    batches = shuffled_batches(
        len(corpus.train), config.sft.batch_size, seed=config.seed, start_step=stage.first,
        weights=balanced_weights(corpus.train, run.reward, config.sft.balance),
    )  # fmt: skip

    def step(number: int) -> dict[str, float]:
        chosen = next(batches)
        own = run.ranks.share([len(reports[i]) for i in chosen])
        prompts = [
            prompt_of(run.processor, corpus.train[chosen[place]], augmentation(config, "sft", number, place))
            for place in own
        ]
        return imitate(
            trainer, prompts, [reports[chosen[place]] for place in own],
            num_tokens=sum(len(reports[i]) for i in chosen), banned=banned,
        )  # fmt: skip

    stage.run(config.sft.steps, step, title="SFT", shown="loss")
    merge_lora(policy)
    policy.save(run.folder / "sft" / "model", run.processor, write=run.ranks.first)


def explore(run: Run) -> None:
    """Report every training study, score the reports, keep the worst -> explore/selection.json."""
    config, corpus, folder = run.config, run.corpus, run.folder / "explore"
    rows = reported(run, "sft", corpus.train, folder / "predictions", title="exploration")
    # A study whose reference lacks the section a metric reads cannot be called hard for it: it counts as perfect there.
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("id", "report")}
    metrics = {name: [1.0 if v is None else v for v in columns[name]] for name in config.explore.weights}
    scores = composite_score(metrics, config.explore)
    hard = select_hard(scores, config.explore)
    if not run.ranks.first:
        return
    write_lines(
        folder / "scores.jsonl",
        (
            {"id": study.id, "s": float(scores[i]), **{name: values[i] for name, values in columns.items()}}
            for i, study in enumerate(corpus.train)
        ),
    )
    summary = {"studies": len(corpus.train), "selected": [corpus.train[i].id for i in hard]}
    write_json(folder / "selection.json", {**summary, "highest_s": float(scores[hard].max())})


def annotate(run: Run) -> None:
    """Label every training reference as critical or normal, once -> criticality.jsonl."""
    judge = CriticalityRules(run.reward.expert.labeler)

    def rows(studies: Sequence[Study], _: str) -> list[dict[str, object]]:
        labels = judge([study.report for study in studies])
        return [
            {"id": study.id, "critical": label.critical, "reason": label.reason, "source": label.source}
            for study, label in zip(studies, labels, strict=True)
        ]

    parts = run.folder / "criticality"
    found = in_parts(parts, run.corpus.train, run.config.explore.part_size, rows, run.ranks, title="criticality")
    if run.ranks.first:
        write_lines(run.folder / "criticality.jsonl", found)


def reinforce(run: Run) -> None:
    """CAPO on the hard studies -> rl/model."""
    config, folder = run.config, run.folder / "rl"
    before = run.folder / "sft" / "model"
    policy = load_policy(before, run, to_train=True)
    train_vision = config.model.rl_vision == "trained"
    reference = prepare_training(policy, run, seed=config.seed + 1, train_vision=train_vision, reference=before)
    trainer = Trainer(
        policy, config.rl.optimizer, num_steps=config.rl.steps * config.rl.inner_epochs * config.rl.mini_batches,
        reference=reference, frozen_vision=config.model.rl_vision == "frozen", ranks=run.ranks, stop=run.stop,
    )  # fmt: skip
    studies = hard_studies(run.folder, run.corpus)
    selection = hashlib.sha256(json.dumps([study.id for study in studies]).encode()).hexdigest()
    stage = TrainingStage(run, "rl", trainer, every=config.rl.checkpoint_every, identity={"selection": selection})
    critical = {str(row["id"]): bool(row["critical"]) for row in read_lines(run.folder / "criticality.jsonl")}
    banned = banned_mask(policy, run.processor)
    batches = shuffled_batches(
        len(studies), min(config.rl.studies_per_step, len(studies)), seed=config.seed + 1, start_step=stage.first,
        weights=balanced_weights(studies, run.reward, config.rl.balance),
    )  # fmt: skip
    with RewardWorkers(config.reward, parse_sections) as workers:

        def step(number: int) -> dict[str, float | None]:
            batch = sample(policy, run, [studies[i] for i in next(batches)], number, banned, workers)
            cases, spread = batch.cases(critical, config.rl)
            began = time.perf_counter()
            row = trainer.improve(cases, config.rl, temperature=config.rollout.temperature, banned=banned)
            row["seconds_update"] = time.perf_counter() - began
            if run.ranks.first:
                write_batch(folder / "rollouts" / f"step_{number:06d}.jsonl", batch, cases, config.rl)
            return {**batch.metrics(), **spread, **row}

        stage.run(config.rl.steps, step, title="CAPO", shown="reward")
    merge_lora(policy)
    policy.save(folder / "model", run.processor, write=run.ranks.first)


def sample(
    policy: QwenVL, run: Run, studies: Sequence[Study], step: int, banned: torch.Tensor, workers: RewardWorkers
) -> Batch:
    """G reports for each study, and their rewards: each rank samples its share, and all learn of all."""
    config, group = run.config, run.config.rl.group_size
    own = [studies[i] for i in run.ranks.share([1] * len(studies))]
    requests = [
        Request(
            prompt_of(run.processor, study),
            tuple(sample_seed(config.seed, "rl", step, study.id, i) for i in range(group)),
        )
        for study in own
    ]
    options = {"sampling": config.rollout, "eos_id": run.processor.eos_id, "banned": banned, "stop": run.stop}
    slots = min(config.evaluate.slots, max(1, len(own)) * group)
    try:
        with gathered(policy):
            written = rollout(policy, requests, slots=slots, **options)
            written = watched(written, f"rollouts of step {step}", len(own) * group, leave=False, shown=run.ranks.first)
            mine = sample_and_score(written, requests, own, run.processor.decode, workers)
    except StopRequested:
        mine = None
    return exchange(mine, studies, run.ranks, lambda study: prompt_of(run.processor, study))


def compare(run: Run) -> None:
    """Report the held-out studies with the SFT policy and after CAPO -> eval/table.md and eval/table.json."""
    config, corpus, folder = run.config, run.corpus, run.folder / "eval"
    systems = {
        "SFT": ("sft", corpus.test),
        "CAPO": ("rl", corpus.test),
        "CAPO, other images": ("rl", with_other_images(corpus.test)),
    }
    columns, reports = {}, {}
    for name, (model, studies) in systems.items():
        file = name.lower().replace(", ", "_").replace(" ", "_")
        rows = reported(run, model, studies, folder / "parts" / file, title=f"{name} on held-out studies")
        reports[name] = [str(row["report"]) for row in rows]
        columns[name] = {key: [row[key] for row in rows] for key in rows[0] if key not in ("id", "report")}
        if run.ranks.first:
            write_json(folder / f"{file}.json", rexrank(corpus.test, reports[name]))
    if not run.ranks.first:
        return
    references = [study.report for study in corpus.test]
    write_json(folder / "references.json", rexrank(corpus.test, references))
    notes = [describe(n, r) for n, r in {**reports, "references": references}.items() if n != "CAPO, other images"]
    baselines = baseline_columns(run.reward, corpus.train, corpus.test, config.evaluate)
    baselines["CAPO, other images"] = columns["CAPO, other images"]
    rows = comparison_rows(columns["SFT"], columns["CAPO"], baselines)
    write_json(folder / "table.json", {"studies": len(corpus.test), "seed": config.seed, "rows": rows, "notes": notes})
    write_whole(folder / "table.md", render_table(rows, ("SFT", "CAPO"), notes))


# What the stages share.


class TrainingStage:
    """The steps of a stage that trains: from its last checkpoint on, written down as they come, saved on the way and
    when the run is asked to stop.

    Args:
        every: steps between checkpoints.
        identity: what a checkpoint must share with this run beside the config.
    """

    def __init__(
        self, run: Run, name: str, trainer: Trainer, *, every: int, identity: Mapping[str, str] | None = None
    ) -> None:
        self.trainer, self.every, self.ranks = trainer, every, run.ranks
        self.folder = run.folder / name
        known = {"config": config_hash(run.config), **(identity or {})}
        self.checkpoints = Checkpoints(self.folder / "checkpoints", run.ranks, identity=known)
        facts = self.checkpoints.load(trainer.state()[0])
        self.first = int(facts["step"]) if facts else 0
        if facts:
            trainer.restore(facts)
        run.ranks.meet()  # nobody writes before all have read

    def run(self, last: int, do: Callable[[int], Mapping[str, float | None]], *, title: str, shown: str) -> None:
        """`do` each step below `last`; its metrics go to metrics.jsonl, the one named `shown` to the bar."""
        journal = Journal(self.folder / "metrics.jsonl", resume_at=self.first) if self.ranks.first else None
        step, bar = self.first, progress(title, self.first, last, shown=self.ranks.first)
        try:
            for step in bar:
                row = do(step)
                if journal is not None:
                    journal.append({"step": step, **row})
                bar.set_postfix({shown: row[shown]})
                if (step + 1) % self.every == 0:
                    self.checkpoints.save(step + 1, *self.trainer.state())
        except StopRequested:
            self.trainer.rewind()
            self.checkpoints.save(step, *self.trainer.state())
            raise
        finally:
            self.checkpoints.finish()


def reported(run: Run, model: str, studies: Sequence[Study], folder: Path, *, title: str) -> list[dict[str, object]]:
    """One greedy report a study by the policy of stage `model`: rows with id, report and each metric."""
    policy: list[QwenVL] = []  # loaded when the first part is decoded; a finished stage needs none

    def work(part: Sequence[Study], name: str) -> list[dict[str, object]]:
        if not policy:
            policy.append(load_policy(run.folder / model / "model", run))
        reports = write_reports(
            policy[0], run.processor, part, run.config.evaluate, title=name, stop=run.stop, shown=run.ranks.first
        )
        columns = score_reports(run.reward, reports, part)
        return [
            {"id": study.id, "report": report, **{metric: values[i] for metric, values in columns.items()}}
            for i, (study, report) in enumerate(zip(part, reports, strict=True))
        ]

    return in_parts(folder, studies, run.config.explore.part_size, work, run.ranks, title=title)


MAY_CHANGE = ("run_dir", "stages", "reward.workers", "parallel")


def config_hash(config: Config) -> str:
    """Of all that a run's results depend on."""
    kept = {key: value for key, value in plain(config).items() if key not in MAY_CHANGE}
    kept["reward"] = {key: value for key, value in kept["reward"].items() if f"reward.{key}" not in MAY_CHANGE}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def pick_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def load_policy(path: Path, run: Run, *, to_train: bool = False) -> QwenVL:
    """A policy on its device; one that is trained and will be split stays in its file until `prepare_training`."""
    if to_train and run.config.parallel.splits(run.ranks):
        return load(path, dtype=None)
    return load(path, dtype=weights_dtype(run.config.model, run.device)).to(run.device)


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
def timed(run: Run, name: str) -> Iterator[None]:
    """Say what runs, and add the seconds it took to timing.jsonl (a resumed stage has several lines)."""
    began, run.ranks.stage = time.perf_counter(), name
    if run.ranks.first:
        print(f"== {name}", flush=True)
    yield
    if not run.ranks.first:
        return
    path = run.folder / "timing.jsonl"
    write_lines(path, [*read_lines(path), {"stage": name, "seconds": round(time.perf_counter() - began, 2)}])


def progress(name: str, first: int, last: int, *, shown: bool) -> tqdm:
    hidden = None if shown else True  # None: where there is no terminal
    return tqdm(range(first, last), name, initial=first, total=last, unit="step", disable=hidden, mininterval=1)


def prepare_training(
    policy: QwenVL, run: Run, *, seed: int, train_vision: bool, reference: Path | None = None
) -> Callable | None:
    """Make the right parameters trainable, and shard; return how to reach the policy as it is now, frozen.

    With LoRA that is the policy with its adapters off (the SFT adapters are merged by then, so off is not the base
    model); training all weights needs a second model.

    Args:
        reference: the checkpoint that `policy` was loaded from, where it is asked for.
    """
    model, parallel = run.config.model, run.config.parallel
    dtype = weights_dtype(model, run.device)
    if model.recompute_activations:
        policy.recompute_activations()
    if model.training == "lora":
        add_lora(policy, model.lora, seed=seed)
        shard_policy(policy, parallel, run.ranks, run.device, dtype)
        return lambda: adapters_off(policy)
    if not train_vision:
        freeze_vision(policy)
    shard_policy(policy, parallel, run.ranks, run.device, dtype)
    if reference is None:
        return None
    frozen = load_policy(reference, run, to_train=True).requires_grad_(False)
    shard_policy(frozen, parallel, run.ranks, run.device, dtype)
    return lambda: nullcontext(frozen)


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
