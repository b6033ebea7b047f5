"""A run: what every stage of it is given, which stage needs which, and how one is entered and left."""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from capo.checkpoint import CheckpointError
from capo.explore import metric_names
from capo.journal import read_lines, write_lines
from capo.ranks import Ranks
from capo.stopping import StopRequested, StopSignal
from capo.trainer import DivergedError
from radflow.dashboard.live import Live
from radflow.data.corpus import Corpus, load_corpus
from radflow.data.readers.tables import escape_lines
from radflow.data.sections import SectionParser
from radflow.data.studies import Study
from radflow.models.loading import check_transformers
from radflow.models.model_card import hide_folders
from radflow.models.processing import ReportProcessor
from radflow.models.start import pick_device, start_path
from radflow.models.training_data import TrainingData, load_training_data
from radflow.pipeline.limits import check_lengths
from radflow.pipeline.run_config import MAY_CHANGE, STAGES, Config, open_run
from radflow.rewards.hierarchy import HierarchicalReward
from radflow.rewards.metrics.lexical import notes_on_tokens
from radflow.rewards.registry import build_reward
from radflow.rewards.types import Labeler


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

    @property
    def parse(self) -> SectionParser:
        """The section parser of the run's reports, with the headers of `data.headers`."""
        return SectionParser(self.config.data.headers)

    @property
    def labeler(self) -> Labeler:
        """The rule labeler of the run's reports: of the Impression expert, warm-up, balance and criticality."""
        return self.reward.labeler


def build_run(config: Config, ranks: Ranks, stop: StopSignal, live: Live | None) -> tuple[Run, Path]:
    """What every stage is given, and the checkpoint that the first of them starts from."""
    check_transformers()
    corpus = load_corpus(config.data, seed=config.seed)
    if ranks.is_main:
        for note in notes_on_tokens([study.report for study in corpus.train]):
            print(f"warning: {note}", flush=True)
        start_path(config.run_dir / "start", config.model, corpus_texts(corpus), seed=config.seed)
    ranks.barrier()
    start = start_path(config.run_dir / "start", config.model, (), seed=config.seed)
    trained_on = training_data(config, corpus, start)
    processor = ReportProcessor.load(start, config.model.processor, trained_on=trained_on)
    check_lengths([*corpus.train, *corpus.test], processor, reports=True)
    run = Run(
        config=config,
        corpus=corpus,
        processor=processor,
        reward=build_reward(
            config.reward,
            SectionParser(config.data.headers),
            judge=config.judge,
            explore=metric_names(config.explore),
            also=config.evaluate.metrics,
        ),
        device=pick_device(),
        ranks=ranks,
        stop=stop,
        live=live,
    )
    return run, start


def training_data(config: Config, corpus: Corpus, start: Path) -> list[TrainingData]:
    """What the models of a run are trained on: what the checkpoint that they start from says, and the run's studies."""
    data, count = config.data, f"{len(corpus.train):,}"
    own = TrainingData(f"{count} {data.modality} phantoms", synthetic=True)
    if data.source == "manifest" and data.manifest is not None:
        own = TrainingData(f"{count} studies of {data.manifest.name}", synthetic=False)
    if config.model.path is None:
        return [own]  # random weights
    before = load_training_data(start) or [TrainingData(hide_folders(config.model.path), synthetic=False)]
    return [*before, own]


def run_on_ranks(config: Config, work: Callable[[Ranks, StopSignal], None]) -> None:
    """Do `work` as one of the ranks, holding the run folder; a stop or a user's mistake ends it with one line."""
    ranks, stop = Ranks.from_environment(timeout_s=config.parallel.timeout_s), StopSignal()
    stop.listen()
    try:
        with open_run(config.run_dir, config, may_change=MAY_CHANGE) if ranks.is_main else nullcontext():
            ranks.barrier()  # the first rank has looked whether the folder may be used
            work(ranks, stop)
    except StopRequested as request:
        print(f"rank {ranks.rank}: {request}; start the same command again to go on", flush=True)
    except (ValueError, DivergedError, CheckpointError) as error:
        sys.exit(f"error: {escape_lines(str(error))}")
    ranks.shutdown()


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


def pending_stages(run: Run) -> list[str]:
    """Stages that the config asks for and whose product is not there."""
    asked = [name for name in STAGES if name in run.config.stages.split(",")]
    # Labels of a person are taken over into criticality.jsonl even if it is there; the judge is not asked again.
    corrected = {"criticality"} if run.config.criticality.corrected is not None else set()
    return [name for name in asked if name in corrected or not (run.folder / PRODUCTS[name]).exists()]


def need_earlier(folder: Path, name: str) -> None:
    for earlier in NEEDS.get(name, ()):
        if not (folder / PRODUCTS[earlier]).exists():
            raise ValueError(f"stage {name} needs {folder / PRODUCTS[earlier]}, not there; run stage {earlier} first")


@contextmanager
def enter_stage(run: Run, name: str) -> Iterator[None]:
    """Say what runs, and add the seconds it took to timing.jsonl (a resumed stage has several lines).

    What goes wrong inside carries a note of rank and stage: an exchange that times out under autograd knows neither.
    """
    began, run.ranks.stage = time.perf_counter(), name
    if run.live is not None:
        print(f"== {name}", flush=True)
        run.live.begin(name)
    try:
        yield
    except Exception as error:
        error.add_note(f"rank {run.ranks.rank} of {run.ranks.size}, stage {name}")
        raise
    if run.live is None:
        return
    path = run.folder / "timing.jsonl"
    write_lines(path, [*read_lines(path), {"stage": name, "seconds": round(time.perf_counter() - began, 2)}])
    run.live.write_dashboard()


def hard_studies(run: Run) -> list[Study]:
    """What exploration selected, hardest first."""
    selection = json.loads((run.folder / "explore" / "selection.json").read_text(encoding="utf-8"))
    by_id = {study.id: study for study in run.corpus.train}
    return [by_id[study_id] for study_id in selection["selected"]]


def fingerprint(studies: Sequence[Study]) -> str:
    """Hash of which studies these are, in order."""
    return hashlib.sha256(json.dumps([study.id for study in studies]).encode()).hexdigest()


def critical_labels(run: Run) -> dict[str, bool]:
    """Study id -> whether its reference is critical, from criticality.jsonl."""
    return {str(row["id"]): bool(row["critical"]) for row in read_lines(run.folder / "criticality.jsonl")}
