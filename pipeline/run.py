"""A run: what every stage of it is given, which stage needs which, and how one is entered and left."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from capo.checkpoint import CheckpointError, check_product
from capo.explore import metric_names
from capo.journal import Digests, digests_path, hash_json, seal, write_lines
from capo.ranks import Ranks
from capo.stopping import StopRequested, StopSignal
from capo.trainer import DivergedError
from radflow.dashboard.live import Live
from radflow.dashboard.run_files import read_rows, read_selected
from radflow.data.corpus import Corpus, load_corpus
from radflow.data.readers.tables import escape_lines
from radflow.data.sections import SectionParser, render_report
from radflow.data.studies import Study
from radflow.models.loading import check_transformers
from radflow.models.model_card import name_with_commit
from radflow.models.processing import ReportProcessor
from radflow.models.start import pick_device, start_path
from radflow.models.training_data import TrainingData, load_training_data
from radflow.pipeline.command_line import exit_with, say_how_to_resume
from radflow.pipeline.generation import PromptStore
from radflow.pipeline.limits import check_lengths
from radflow.pipeline.run_config import MAY_CHANGE, STAGES, Config, note_checkpoint, open_run
from radflow.rewards.editing import Editing
from radflow.rewards.faults import RewardError
from radflow.rewards.metrics.lexical import notes_on_tokens
from radflow.rewards.types import Labeler
from radflow.rewards.workers import RewardWorkers


@dataclass(frozen=True)
class Run:
    """What every stage is given."""

    config: Config
    corpus: Corpus
    processor: ReportProcessor
    prompts: PromptStore
    reward: RewardWorkers  # closed by whoever built the run
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
    device = pick_device()  # before anything slow, as it may warn
    corpus = ranks.do_or_stop(partial(load_corpus, config.data, seed=config.seed), stop)
    check_products(config.run_dir, ranks)
    if ranks.is_main:
        for note in notes_on_tokens([study.report for study in corpus.train]):
            print(f"warning: {note}", flush=True)
        start_path(config.run_dir / "start", config.model, corpus_texts(corpus), seed=config.seed)
        seal_product(config.run_dir, "start")
    ranks.barrier()
    start = start_path(config.run_dir / "start", config.model, (), seed=config.seed)
    if config.model.path is not None:
        check_product(start, ranks, advice="copy the checkpoint again")
        if ranks.is_main:
            note_checkpoint(config.run_dir, name_with_commit(config.model.path, start))
    trained_on = training_data(config, corpus, start)
    processor = ReportProcessor.load(start, config.model.processor, trained_on=trained_on)
    check_lengths([*corpus.train, *corpus.test], processor, reports=True)
    run = Run(
        config=config,
        corpus=corpus,
        processor=processor,
        prompts=PromptStore(processor, [*corpus.train, *corpus.test], limit_mb=config.data.prompts_mb),
        reward=ranks.do_or_stop(partial(reward_workers, config, stop), stop),  # a plug-in may hang when it is imported
        device=device,
        ranks=ranks,
        stop=stop,
        live=live,
    )
    return run, start


def reward_workers(config: Config, stop: StopSignal) -> RewardWorkers:
    """What scores a run's reports, and makes edited copies of some if `rl.edits` asks for them."""

    def look() -> None:
        if stop.requested:
            raise StopRequested("stopped while reports were scored")

    edits = config.rl.edits
    return RewardWorkers(
        config.reward,
        SectionParser(config.data.headers),
        judge=config.judge,
        editing=Editing(edits.share, edits.when == "missed_by_all", render_report) if edits.share else None,
        explore=metric_names(config.explore),
        also=config.evaluate.metrics,
        look=look,
    )


def training_data(config: Config, corpus: Corpus, start: Path) -> list[TrainingData]:
    """What the models of a run are trained on: what the checkpoint that they start from says, and the run's studies."""
    data, count = config.data, f"{len(corpus.train):,}"
    own = TrainingData(f"{count} {data.modality} phantoms", synthetic=True)
    if data.source == "manifest" and data.manifest is not None:
        own = TrainingData(f"{count} studies of {data.manifest.name}", synthetic=False)
    if config.model.path is None:
        return [own]  # random weights
    before = load_training_data(start) or [TrainingData(name_with_commit(config.model.path, start), synthetic=False)]
    return [*before, own]


def run_on_ranks(config: Config, work: Callable[[Ranks, StopSignal], None]) -> None:
    """Do `work` as one of the ranks, holding the run folder; a stop or a user's mistake ends it with one line."""
    stop = StopSignal()
    if config.parallel.deterministic:
        keep_order()
    try:
        ranks = Ranks.from_environment(timeout_s=config.parallel.timeout_s)
        stop.listen()
        holding = open_run(config.run_dir, config, may_change=MAY_CHANGE) if ranks.is_main else nullcontext()
        with ranks.exchanges(), holding:
            ranks.barrier()  # the first rank has looked whether the folder may be used
            work(ranks, stop)
        sys.stdout.flush()  # at exit, Python itself would complain of a full disk
    except StopRequested as request:
        say_how_to_resume(request)
    except (ValueError, RewardError, DivergedError, CheckpointError) as error:
        sys.exit(f"error: {escape_lines(str(error))}")
    except OSError as error:  # a disk that is full, a folder that may not be written, a rank that is lost
        exit_with(error)
    ranks.shutdown()


def keep_order() -> None:
    """From now on CUDA adds in a fixed order wherever torch can, with a warning elsewhere; before its first product.

    Source: https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def corpus_texts(corpus: Corpus) -> list[str]:
    """What the tokenizer of a model built from scratch is trained on: the training side only."""
    return [text for s in corpus.train for text in (s.report, s.indication, s.comparison) if text]


# What a stage makes, as a file or a folder of the run; "start" comes before the stages.
PRODUCTS = {
    "start": "start",
    "warmup": "warmup/model",
    "sft": "sft/model",
    "explore": "explore",
    "criticality": "criticality.jsonl",
    "rl": "rl/model",
    "evaluate": "eval",
    "export": "export/rl",
}
WRITTEN_LAST = {"explore": "selection.json", "evaluate": "table.md"}  # in a folder that a killed stage goes on in
BUILT_ON = {
    "warmup": ("start",),
    "sft": ("start", "warmup"),
    "explore": ("sft",),
    "rl": ("sft", "explore", "criticality"),
    "evaluate": ("sft", "rl"),
    "export": ("rl", "evaluate"),
}
MAY_LACK = ("start", "warmup")  # a run from a checkpoint of others builds none, one without steps warms up none


def is_complete(folder: Path, name: str) -> bool:
    return (folder / PRODUCTS[name] / WRITTEN_LAST.get(name, "")).exists()


def pending_stages(run: Run) -> list[str]:
    """Stages that the config asks for and whose product is not there."""
    asked = [name for name in STAGES if name in run.config.stages.split(",")]
    # Labels of a person are taken over into criticality.jsonl even if it is there; the judge is not asked again.
    corrected = {"criticality"} if run.config.criticality.corrected is not None else set()
    return [name for name in asked if name in corrected or not is_complete(run.folder, name)]


def need_earlier(folder: Path, name: str) -> None:
    for earlier in BUILT_ON.get(name, ()):
        if earlier not in MAY_LACK and not is_complete(folder, earlier):
            product = folder / PRODUCTS[earlier] / WRITTEN_LAST.get(earlier, "")
            raise ValueError(f"stage {name} needs {product}, not there; run stage {earlier} first")


def seal_product(folder: Path, name: str) -> None:
    """Write the digests of what a stage made, if it made anything, the last of it."""
    if is_complete(folder, name):
        seal(folder / PRODUCTS[name], built_on(folder, name))


def built_on(folder: Path, name: str) -> dict[str, str]:
    """What a stage's product depends on: product -> hash."""
    return identify(folder, *BUILT_ON.get(name, ()))


def identify(folder: Path, *names: str) -> dict[str, str]:
    """Product of each stage that has one -> hash: of exploration that of the selected studies, of criticality that of
    the labels, else of its files."""
    found = {}
    for name in names:
        path = folder / PRODUCTS[name]
        if not is_complete(folder, name):
            continue
        if name == "explore":
            found[PRODUCTS[name]] = hash_json(list(read_selected(folder)))
        elif name == "criticality":
            found[PRODUCTS[name]] = hash_json(critical_labels(folder))
        elif digests := Digests.read(path):
            found[PRODUCTS[name]] = digests.identity
    return found


def check_products(folder: Path, ranks: Ranks) -> None:
    """Refuse what earlier starts made if a file is not as it was then, or was built on what has been made anew since.

    All ranks must call this. Of products without digests these are made now, with a warning.
    """
    complete = [name for name in PRODUCTS if is_complete(folder, name)]
    if ranks.is_main and (bare := [name for name in complete if not digests_path(folder / PRODUCTS[name]).exists()]):
        for name in bare:
            seal_product(folder, name)
        paths = ", ".join(str(folder / PRODUCTS[name]) for name in bare)
        why = "an older version wrote it, or the run was killed just then"
        print(f"warning: no digests of {paths}: {why}; made now, of the files as they are", flush=True)
    ranks.barrier()
    for name in complete:
        last = folder / PRODUCTS[name] / WRITTEN_LAST.get(name, "")
        what = f"remove {last}" if last == folder / PRODUCTS[name] else f"remove both it and {last}"
        advice = f"restore it, or {what} and start the same command again, which makes it anew"
        check_product(folder / PRODUCTS[name], ranks, advice=advice)
    refuse_stale(folder)


def refuse_stale(folder: Path) -> None:
    """Refuse a product that was built on another one than that which is there."""
    for name in PRODUCTS:
        digests = Digests.read(folder / PRODUCTS[name]) if is_complete(folder, name) else None
        if digests is None:
            continue
        for path, now in built_on(folder, name).items():
            if digests.built_on.get(path, now) != now:
                product, base = folder / PRODUCTS[name], folder / path
                advice = f"restore the {path} that it was built on, or move {product} away to make it anew"
                raise ValueError(f"{product} was built on another {path} than {base}, which changed since; {advice}")


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
        run.ranks.all_gather_or_stop(None if run.stop.requested else True)
        yield
    except Exception as error:
        error.add_note(f"rank {run.ranks.rank} of {run.ranks.size}, stage {name}")
        raise
    if run.live is None:
        return
    path = run.folder / "timing.jsonl"
    write_lines(path, [*read_rows(path), {"stage": name, "seconds": round(time.perf_counter() - began, 2)}])
    run.live.write_dashboard()


def hard_studies(run: Run) -> list[Study]:
    """What exploration selected, hardest first."""
    by_id = {study.id: study for study in run.corpus.train}
    return [by_id[study_id] for study_id in read_selected(run.folder)]


def critical_labels(folder: Path) -> dict[str, bool]:
    """Study id -> whether its reference is critical, from criticality.jsonl."""
    return {str(row["id"]): bool(row["critical"]) for row in read_rows(folder / "criticality.jsonl")}
