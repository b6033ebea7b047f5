"""RadFlow: SFT, Target Exploration, criticality, CAPO, evaluation; each stage makes one value and the next takes it.

    python train.py                                                                the embedded demo (configs/demo.yaml)
    torchrun --standalone --nproc-per-node 8 train.py --config configs/my.yaml     your own run, on 8 GPUs
    ... --rl.beta 0.05 --seed 1 --run-dir runs/beta05                              any key of the config, dotted
    ... --stages sft,explore                                                       a part; what is complete is skipped
    ... --plan                                                                     only say what memory it needs
    python train.py export runs/demo                                               adapter and merged model for others
    python train.py annotate --config configs/my.yaml                              only label the references
    python train.py report RUN | compare RUN_A RUN_B ... | watch RUN               look at runs (docs/reading-a-run.md)

A run that was killed goes on where it stopped when the same command is started again, on any number of processes.
SIGTERM and SIGUSR1 make it save its state and end with exit code 0.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

import annotate as annotation
from capo.explore import composite_score, explored, select_hard
from capo.journal import read_lines, write_json, write_lines, write_whole
from capo.ranks import Ranks
from capo.rollout import Engine, Request
from capo.sampling import sample_seed
from capo.sft import imitate
from capo.stopping import StopRequested, StopSignal
from capo.trainer import Trainer
from capo.warmup import LabelReader, read_labels
from data.batches import shuffled_batches
from data.corpus import load_corpus
from data.prefetch import decoded, prefetched
from data.sections import parse_sections
from data.studies import Study
from held_out import held_out_row
from models.loading import check_transformers, locate
from models.processing import Prompt, ReportProcessor
from models.processor_files import load_image_processor, tokens_of_largest_image
from models.qwen_vl import QwenVL
from models.start import start_path, weights_dtype
from plan import Load, sizes_at, table
from reporting.commands import compare_command, report_command, watch_command
from reporting.live import Live
from reporting.studies import StudySource
from reports_by_policy import banned_mask, generating, prompt_of
from rewards.hierarchy import HierarchicalReward
from rewards.workers import RewardWorkers
from rollouts import Batch, exchange, sample_and_score, watched, write_batch
from run_export import export_command, export_run, kinds_of
from run_folder import plain, read_config
from run_scores import baseline_columns, comparison_rows, describe, render_table, rexrank, with_other_images
from stages import (
    PRODUCTS,
    STAGES,
    Config,
    Run,
    TrainingStage,
    augmentation,
    balanced_weights,
    corpus_texts,
    free_memory,
    hard_studies,
    in_run,
    keep_policy,
    load_policy,
    load_to_train,
    need_earlier,
    pick_device,
    prepare_training,
    reported,
    timed,
)

# Beside the stages; each is given the words after its name.
COMMANDS: Mapping[str, Callable[[Sequence[str]], None]] = {
    "annotate": annotation.command,
    "compare": compare_command,
    "export": export_command,
    "report": report_command,
    "watch": watch_command,
}


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        COMMANDS[argv[0]](argv[1:])
        return
    only_plan = "--plan" in argv
    config = read_config(
        Config, [word for word in argv if word != "--plan"], default=Path("configs/demo.yaml"), description=__doc__
    )
    if only_plan:
        print(planned(config))
        return
    in_run(config, lambda ranks, stop: run_stages(config, ranks, stop))


def planned(config: Config) -> str:
    """The memory that the config's CAPO stage needs of each GPU."""
    if config.model.path is None:
        sys.exit("error: --plan expects --model.path, a checkpoint; the small model fits everywhere")
    try:
        directory = locate(config.model.path, weights=False)
        sizes = sizes_at(directory, config.model)
        image = tokens_of_largest_image(load_image_processor(directory, **config.model.processor.limits))
    except ValueError as error:
        sys.exit(f"error: {error}")
    prompt = image + 64
    load = Load(
        micro_batch=config.rl.optimizer.token_budget,
        slots=min(config.evaluate.slots, config.rl.studies_per_step * config.rl.group_size),
        cached=prompt + config.rollout.max_new_tokens,
        prefill=max(prompt, min(config.rollout.prefill_tokens, config.evaluate.slots * prompt)),
    )
    return table(sizes, config.model, load)


def run_stages(config: Config, ranks: Ranks, stop: StopSignal) -> None:
    """Everything the stages need, and then the stages."""
    folder = config.run_dir
    live = Live(folder, config.tracking, plain(config)) if ranks.first else None
    stages, start = prepared(config, ranks, stop, live)
    source = StudySource.of_studies([*stages.corpus.train, *stages.corpus.test])
    with live.following(source) if ranks.first else nullcontext():
        take_stages(stages, start)
    if ranks.first and (table := folder / "eval" / "table.md").exists():
        print(table.read_text(encoding="utf-8"))
    if ranks.first:
        print(f"run folder: {folder}")


def prepared(config: Config, ranks: Ranks, stop: StopSignal, live: Live | None) -> tuple[Run, Path]:
    """What every stage is given, and the checkpoint that the first of them starts from."""
    check_transformers()
    corpus = load_corpus(config.data, seed=config.seed)
    if ranks.first:
        start_path(config.run_dir / "start", config.model, corpus_texts(corpus), seed=config.seed)
    ranks.meet()
    start = start_path(config.run_dir / "start", config.model, (), seed=config.seed)
    run = Run(
        config=config,
        corpus=corpus,
        processor=ReportProcessor.load(start, config.model.processor),
        reward=HierarchicalReward.from_config(
            config.reward,
            parse_sections,
            judge=config.judge,
            also=[*explored(config.explore), *config.evaluate.metrics],
        ),
        device=pick_device(),
        ranks=ranks,
        stop=stop,
        live=live,
    )
    return run, start


def take_stages(run: Run, start: Path) -> None:
    """The stages of the method, in the paper's order; what is complete is skipped."""
    work = {
        "warmup": lambda: warm_up(run, start),
        "sft": lambda: fine_tune(run, start),
        "explore": lambda: explore(run),
        "criticality": lambda: annotate(run),
        "rl": lambda: reinforce(run),
        "evaluate": lambda: compare(run),
        "export": lambda: export(run),
    }
    for name in STAGES:
        # Labels of a person are taken over into criticality.jsonl even if it is there; the judge is not asked again.
        corrected = name == "criticality" and run.config.criticality.corrected is not None
        if name in run.config.stages.split(",") and (corrected or not (run.folder / PRODUCTS[name]).exists()):
            need_earlier(run.folder, name)
            with timed(run, name):
                work[name]()
                run.ranks.meet()  # its product is there before anybody looks for it
            free_memory()


def warm_up(run: Run, start: Path) -> None:
    """The vision tower learns to name the labels of the reference reports -> warmup/model. Without steps: nothing."""
    config, corpus = run.config, run.corpus
    if config.warmup.steps == 0:
        return
    policy = load_policy(start, run, dtype=weights_dtype(config.model, run.device))
    labeler, loaded = run.reward.expert.labeler, policy.output_weight().dtype
    found = labeler([study.report for study in corpus.train])
    labels = torch.tensor([[float(label in named) for label in labeler.labels] for named in found])
    reader = LabelReader(policy, policy.vision, labels.mean(0), grid=config.warmup.grid)
    steps, size = config.warmup.steps, config.warmup.batch_size
    trainer = Trainer(reader, config.warmup.optimizer, num_steps=steps, ranks=run.ranks)
    stage = TrainingStage(run, "warmup", trainer, every=config.sft.checkpoint_every)
    batches = shuffled_batches(len(corpus.train), size, seed=config.seed + 2, start_step=stage.first)

    def step(number: int) -> dict[str, float]:
        chosen = next(batches)
        own = run.ranks.share([1] * size)
        prompts = [
            prompt_of(run.processor, corpus.train[chosen[place]], augmentation(config, "warmup", number, place))
            for place in own
        ]
        return read_labels(trainer, prompts, labels[[chosen[place] for place in own]], num_studies=size)

    stage.run(steps, step, title="warm-up", shown="loss")
    policy.vision.to(loaded)  # trained in float32
    policy.save(run.folder / "warmup" / "model", run.processor, write=run.ranks.first)


def fine_tune(run: Run, start: Path) -> None:
    """SFT on image-report pairs -> sft/model, the reference policy. LoRA adapters are merged into it."""
    config, corpus = run.config, run.corpus
    warm = run.folder / "warmup" / "model"
    base = warm if warm.exists() else start
    policy = load_to_train(base, run)
    prepare_training(policy, run, seed=config.seed, train_vision=config.sft.vision == "trained")
    trainer = Trainer(policy, config.sft.optimizer, num_steps=config.sft.steps, ranks=run.ranks)
    stage = TrainingStage(run, "sft", trainer, every=config.sft.checkpoint_every)
    banned = banned_mask(policy, run.processor)
    reports = [run.processor.encode_report(study.report) for study in corpus.train]
    batches = shuffled_batches(
        len(corpus.train), config.sft.batch_size, seed=config.seed, start_step=stage.first,
        weights=balanced_weights(corpus.train, run.reward, config.sft.balance),
        lengths=[len(report) for report in reports] if config.data.group_lengths else None,
    )  # fmt: skip
    owned = ((chosen, run.ranks.share([len(reports[i]) for i in chosen])) for chosen in batches)
    loaded = prefetched(
        owned, lambda pair: [decoded(corpus.train[pair[0][place]]) for place in pair[1]], workers=config.data.workers
    )

    def step(number: int) -> dict[str, float]:
        (chosen, own), studies = next(loaded)
        prompts = [
            prompt_of(run.processor, study, augmentation(config, "sft", number, place))
            for place, study in zip(own, studies, strict=True)
        ]
        return imitate(
            trainer, prompts, [reports[chosen[place]] for place in own],
            num_tokens=sum(len(reports[i]) for i in chosen), banned=banned,
        )  # fmt: skip

    stage.run(config.sft.steps, step, title="SFT", shown="loss")
    keep_policy(policy, run, "sft", base=base)


def explore(run: Run) -> None:
    """Report every training study, score the reports, keep the worst -> explore/selection.json."""
    config, corpus, folder = run.config, run.corpus, run.folder / "explore"
    rows = reported(run, "sft", corpus.train, folder / "predictions", title="exploration")
    # A study whose reference lacks the section a metric reads cannot be called hard for it: it counts as perfect there.
    columns = {name: [row[name] for row in rows] for name in rows[0] if name not in ("id", "report")}
    metrics = {name: [1.0 if v is None else v for v in columns[name]] for name in explored(config.explore)}
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
    rows = annotation.label_references(
        run.config, run.corpus.train, lambda: run.reward.expert.labeler, run.ranks, run.stop
    )
    if run.ranks.first:
        print(annotation.summary(rows))


def reinforce(run: Run) -> None:
    """CAPO on the hard studies -> rl/model."""
    config, folder = run.config, run.folder / "rl"
    before = run.folder / "sft" / "model"
    policy = load_to_train(before, run)
    train_vision = config.model.rl_vision == "trained"
    reference = prepare_training(policy, run, seed=config.seed + 1, train_vision=train_vision, frozen_from=before)
    trainer = Trainer(
        policy, config.rl.optimizer, num_steps=config.rl.steps * config.rl.inner_epochs * config.rl.mini_batches,
        reference=reference, frozen_vision=not any(p.requires_grad for p in policy.vision.parameters()),
        ranks=run.ranks,
    )  # fmt: skip
    studies = hard_studies(run.folder, run.corpus)
    selection = hashlib.sha256(json.dumps([study.id for study in studies]).encode()).hexdigest()
    stage = TrainingStage(run, "rl", trainer, every=config.rl.checkpoint_every, identity={"selection": selection})
    critical = {str(row["id"]): bool(row["critical"]) for row in read_lines(run.folder / "criticality.jsonl")}
    banned = banned_mask(policy, run.processor)
    size = min(config.rl.studies_per_step, len(studies))
    batches = rl_batches(run, studies, size, first=stage.first)
    new_engine = partial(sampler, policy, run, size, banned)
    kept = None if trainer.sharded else new_engine()
    with RewardWorkers(config.reward, parse_sections, judge=config.judge) as workers:

        def step(number: int) -> dict[str, float | None]:
            measured = held_out_row(policy, run, number)
            stage.phase("sampling")
            batch = sample(kept or new_engine(), run, *next(batches), number, workers)
            cases, spread = batch.cases(critical, config.rl)
            stage.phase("update")
            began = time.perf_counter()
            row = trainer.improve(cases, config.rl, temperature=config.rollout.temperature, banned=banned)
            row["seconds_update"] = time.perf_counter() - began
            if run.ranks.first:
                write_batch(folder / "rollouts" / f"step_{number:06d}.jsonl", batch, cases, config.rl)
            return {**batch.metrics(), **spread, **row, **measured}

        stage.run(config.rl.steps, step, title="CAPO", shown="reward")
    keep_policy(policy, run, "rl", base=before)


def rl_batches(
    run: Run, studies: Sequence[Study], size: int, *, first: int
) -> Iterator[tuple[Sequence[Study], Sequence[Prompt]]]:
    """Studies of each step from `first` on, and the prompts of this rank's share, built while the step before runs."""
    config = run.config
    batches = shuffled_batches(
        len(studies), size, seed=config.seed + 1, start_step=first,
        weights=balanced_weights(studies, run.reward, config.rl.balance),
    )  # fmt: skip
    return prefetched(
        ([studies[i] for i in chosen] for chosen in batches),
        lambda batch: [prompt_of(run.processor, batch[i]) for i in run.ranks.share([1] * len(batch))],
        workers=config.data.workers, ahead=1,
    )  # fmt: skip


def sampler(policy: QwenVL, run: Run, num_studies: int, banned: torch.Tensor) -> Engine:
    """The engine of this rank for steps of so many studies."""
    config = run.config
    reports = -(-num_studies // run.ranks.size) * config.rl.group_size
    return Engine(
        policy, sampling=config.rollout, eos_id=run.processor.eos_id, banned=banned,
        slots=min(config.evaluate.slots, reports),
    )  # fmt: skip


def sample(
    engine: Engine, run: Run, studies: Sequence[Study], prompts: Sequence[Prompt], step: int, workers: RewardWorkers
) -> Batch:
    """G reports for each study, and their rewards: each rank samples its share, and all learn of all.

    Args:
        studies: of the whole step.
        prompts: of this rank's share of them.
    """
    seed, group = run.config.seed, run.config.rl.group_size
    own = [studies[i] for i in run.ranks.share([1] * len(studies))]
    requests = [
        Request(prompt, tuple(sample_seed(seed, "rl", step, study.id, i) for i in range(group)))
        for prompt, study in zip(prompts, own, strict=True)
    ]
    try:
        with generating(engine.policy):
            written = watched(
                engine.rollout(requests, stop=run.stop), f"rollouts of step {step}", len(own) * group,
                leave=False, shown=run.ranks.first,
            )  # fmt: skip
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


def export(run: Run) -> None:
    """The CAPO policy as others load it, with its model card -> export/rl/adapter (LoRA) and export/rl/merged."""
    if run.ranks.first:
        kinds = kinds_of(run.folder, "rl", None)
        export_run(run.folder, "rl", run.folder / PRODUCTS["export"], kinds=kinds, dtype=None)


if __name__ == "__main__":
    main()
