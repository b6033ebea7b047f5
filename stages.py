"""What the stages of a run share: their config, what each is given, and how each trains, reports and resumes."""

import functools
import gc
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from tqdm import tqdm

from capo.checkpoint import CheckpointError, Checkpoints
from capo.explore import ExploreConfig
from capo.fsdp import ParallelConfig, shard_policy
from capo.journal import Journal, read_lines, write_lines
from capo.ranks import Ranks
from capo.sampling import SamplingConfig, sample_seed
from capo.sft import SftConfig
from capo.stopping import StopRequested, StopSignal
from capo.trainer import DivergedError, RlConfig, Trainer
from capo.warmup import WarmupConfig
from data.augment import jitter
from data.corpus import Corpus, DataConfig
from data.studies import Study
from models.adapter_files import save_adapter
from models.lora import add_lora, merge_lora, reference
from models.processing import ReportProcessor
from models.qwen_vl import QwenVL, freeze_vision, load
from models.start import ModelConfig, compute_dtype, gathered_dtype, weights_dtype
from models.trainable import trainable_table
from parts import in_parts
from reporting.live import Live
from reporting.trackers import TrackingConfig
from reports_by_policy import EvaluateConfig, ReportWriter, greedy
from rewards.config import RewardConfig
from rewards.corrections import CriticalityConfig
from rewards.hierarchy import HierarchicalReward
from rewards.judge_config import ANSWERS_DEPEND_ON, JudgeConfig
from run_folder import open_run, plain
from run_scores import scored_rows

STAGES = ("warmup", "sft", "explore", "criticality", "rl", "evaluate", "export")


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
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    criticality: CriticalityConfig = field(default_factory=CriticalityConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    rollout: SamplingConfig = field(default_factory=SamplingConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.stages.split(",") if name not in STAGES]:
            raise ValueError(f"expected stages among {','.join(STAGES)}, got {unknown[0]!r}")
        for asked, key in (
            (self.criticality.source == "llm", "criticality.source llm"),
            (self.reward.consistency == "llm", "reward.consistency llm"),
        ):
            if asked and self.judge.model is None:
                raise ValueError(f"{key} needs judge.model, the name of the model that is asked")
        if self.rl.group_size > self.evaluate.slots:
            raise ValueError(
                f"expected evaluate.slots of at least rl.group_size, got {self.evaluate.slots} and {self.rl.group_size}"
            )


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
    live: Live | None  # of the first rank

    @property
    def folder(self) -> Path:
        return self.config.run_dir


class TrainingStage:
    """The steps of a stage that trains: from its last checkpoint on, written down as they come, saved on the way and
    when the run is asked to stop. An update that has begun is finished first.

    Args:
        every: steps between checkpoints.
        identity: what a checkpoint must share with this run beside the config.
    """

    def __init__(
        self, run: Run, name: str, trainer: Trainer, *, every: int, identity: Mapping[str, str] | None = None
    ) -> None:
        self.trainer, self.every, self.live = trainer, every, run.live
        self.ranks, self.stop = run.ranks, run.stop
        self.folder = run.folder / name
        known = {"config": config_hash(run.config), "studies": run.corpus.fingerprint, **(identity or {})}
        self.checkpoints = Checkpoints(self.folder / "checkpoints", run.ranks, identity=known)
        facts = self.checkpoints.load(trainer.state()[0])
        self.first = int(facts["step"]) if facts else 0
        if facts:
            trainer.restore(facts)
        run.ranks.meet()  # nobody writes before all have read

    def run(self, last: int, do: Callable[[int], Mapping[str, float | None]], *, title: str, shown: str) -> None:
        """`do` each step below `last`; its metrics go to metrics.jsonl, the one named `shown` to the bar."""
        journal = Journal(self.folder / "metrics.jsonl", resume_at=self.first) if self.ranks.first else None
        if self.live is not None:
            self.live.resume(read_lines(self.folder / "metrics.jsonl"), last)
        step, self.bar = self.first, progress(title, self.first, last, shown=self.ranks.first)
        try:
            for step in self.bar:
                self._check_stop()
                row = {"step": step, **do(step)}
                self.bar.set_postfix({shown: row[shown]})
                if journal is not None:
                    journal.append(row)
                if self.live is not None:
                    self.live.step(row)
                if (step + 1) % self.every == 0:
                    self.checkpoints.save(step + 1, *self.trainer.state())
                    if self.live is not None:
                        self.live.report()
        except StopRequested:
            self.checkpoints.save(step, *self.trainer.state())
            raise
        finally:
            self.checkpoints.finish()

    def _check_stop(self) -> None:
        """Once per step. All ranks come here before the step's first exchange between devices, which NCCL would wait
        for without a word."""
        if self.ranks.largest(float(self.stop.requested)):
            raise StopRequested(f"stopped in stage {self.ranks.stage}, as asked")

    def phase(self, name: str) -> None:
        """Say at the bar what the step does now."""
        self.bar.set_postfix_str(name)


def reported(run: Run, model: str, studies: Sequence[Study], folder: Path, *, title: str) -> list[dict[str, object]]:
    """One greedy report a study by the policy of stage `model`: rows with id, report and each metric."""
    size, writers = run.config.explore.part_size, []  # made for the first part; a finished stage needs none

    def work(part: Sequence[Study], name: str) -> list[dict[str, object]]:
        if not writers:
            writers.append(report_writer(load_policy(run.folder / model / "model", run), run, most=size))
        return scored_rows(run.reward, [report for report, _ in writers[0].write(part, title=name)], part)

    return in_parts(folder, studies, size, work, run.ranks, title=title)


def report_writer(policy: QwenVL, run: Run, *, most: int) -> ReportWriter:
    """Greedy reports as the run's config asks for them, of at most `most` studies at one time."""
    config = run.config
    return ReportWriter(
        policy, run.processor, greedy(config.rollout, max_new_tokens=config.evaluate.max_new_tokens),
        slots=min(config.evaluate.slots, most), workers=config.data.workers, stop=run.stop, shown=run.ranks.first,
    )  # fmt: skip


MAY_CHANGE = (
    *("run_dir", "stages", "parallel", "tracking", "reward.workers", "data.workers", "data.cache_dir"),
    "criticality.corrected",
    *(f"judge.{one.name}" for one in fields(JudgeConfig) if one.name not in ANSWERS_DEPEND_ON),
)


def config_hash(config: Config) -> str:
    """Of all that a run's results depend on."""
    kept = {key: value for key, value in plain(config).items() if key not in MAY_CHANGE}
    for *sections, key in (name.split(".") for name in MAY_CHANGE if "." in name):
        del functools.reduce(dict.__getitem__, sections, kept)[key]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def in_run(config: Config, work: Callable[[Ranks, StopSignal], None]) -> None:
    """Do `work` as one of the ranks, holding the run folder; a stop or a user's mistake ends it with one line."""
    ranks, stop = Ranks.join(timeout_s=config.parallel.timeout_s), StopSignal()
    stop.listen()
    try:
        with open_run(config.run_dir, config, may_change=MAY_CHANGE) if ranks.first else nullcontext():
            ranks.meet()  # the first rank has looked whether the folder may be used
            work(ranks, stop)
    except StopRequested as request:
        print(f"rank {ranks.rank}: {request}; start the same command again to go on", flush=True)
    except (ValueError, DivergedError, CheckpointError) as error:
        sys.exit(f"error: {error}")
    ranks.leave()


def pick_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def load_policy(path: Path, run: Run, *, dtype: torch.dtype | None = None) -> QwenVL:
    """A policy on its device; by default in the type that it computes in."""
    return load(path, dtype=dtype or compute_dtype(run.config.model, run.device)).to(run.device)


def load_to_train(path: Path, run: Run) -> QwenVL:
    """A policy for `prepare_training`, which moves block by block out of its file one that fully_shard lays out."""
    model = run.config.model
    if run.config.parallel.splits(run.ranks) or gathered_dtype(model, run.device):
        return load(path, dtype=None)
    return load_policy(path, run, dtype=weights_dtype(model, run.device))


def free_memory() -> None:
    """Let go of the models of the stage that ended: a sharded one holds reference cycles, which Python keeps on."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


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
    "export": "export/rl",
}
NEEDS = {
    "explore": ("sft",),
    "rl": ("sft", "explore", "criticality"),
    "evaluate": ("sft", "rl"),
    "export": ("rl", "evaluate"),
}


def need_earlier(folder: Path, name: str) -> None:
    for earlier in NEEDS.get(name, ()):
        if not (folder / PRODUCTS[earlier]).exists():
            raise ValueError(f"stage {name} needs {folder / PRODUCTS[earlier]}, not there; run stage {earlier} first")


@contextmanager
def timed(run: Run, name: str) -> Iterator[None]:
    """Say what runs, and add the seconds it took to timing.jsonl (a resumed stage has several lines).

    What goes wrong inside carries a note of rank and stage: an exchange that times out under autograd knows neither.
    """
    began, run.ranks.stage = time.perf_counter(), name
    if run.ranks.first:
        print(f"== {name}", flush=True)
        run.live.begin(name)
    try:
        yield
    except Exception as error:
        error.add_note(f"rank {run.ranks.rank} of {run.ranks.size}, stage {name}")
        raise
    if not run.ranks.first:
        return
    path = run.folder / "timing.jsonl"
    write_lines(path, [*read_lines(path), {"stage": name, "seconds": round(time.perf_counter() - began, 2)}])
    run.live.report()


def progress(name: str, first: int, last: int, *, shown: bool) -> tqdm:
    hidden = None if shown else True  # None: where there is no terminal
    return tqdm(range(first, last), name, initial=first, total=last, unit="step", disable=hidden, mininterval=1)


def prepare_training(
    policy: QwenVL, run: Run, *, seed: int, train_vision: bool, frozen_from: Path | None = None
) -> Callable | None:
    """Make the right parameters trainable, say which, and shard; return how to reach the policy as it is now, frozen.

    With LoRA that is the policy with its adapters off (the SFT adapters are merged by then, so off is not the base
    model); training all weights needs a second model, in the type that the policy computes in, so that both begin with
    the same numbers.

    Args:
        frozen_from: the checkpoint that `policy` was loaded from, where it is asked for.
    """
    model, parallel = run.config.model, run.config.parallel
    if model.recompute_activations:
        policy.recompute_activations()
    if model.training == "lora":
        add_lora(policy, model.lora, seed=seed)
    elif not train_vision:
        freeze_vision(policy)
    if run.ranks.first:
        print(trainable_table(policy), flush=True)
    shard_policy(
        policy, parallel, run.ranks, run.device,
        frozen_dtype=weights_dtype(model, run.device), gathered_dtype=gathered_dtype(model, run.device),
    )  # fmt: skip
    if model.training == "lora":
        return lambda: reference(policy)
    if frozen_from is None:
        return None
    frozen = load(frozen_from, dtype=None) if parallel.splits(run.ranks) else load_policy(frozen_from, run)
    compute = compute_dtype(model, run.device)
    shard_policy(frozen.requires_grad_(False), parallel, run.ranks, run.device, frozen_dtype=compute)
    return lambda: nullcontext(frozen)


def keep_policy(policy: QwenVL, run: Run, stage: str, *, base: Path) -> None:
    """Save what a stage trained: its adapter, made for `base`, and then the model with the adapter merged in."""
    folder, lora = run.folder / stage, run.config.model.lora
    run.ranks.meet()  # before parameters are put together, maybe through NCCL
    if run.config.model.training == "lora":
        save_adapter(policy, folder / "adapter", lora, base=str(base), write=run.ranks.first)
        merge_lora(policy)
    policy.save(folder / "model", run.processor, write=run.ranks.first)


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
