"""RadFlow: SFT, Target Exploration, criticality, CAPO, evaluation; each stage makes one value and the next takes it.

    python train.py                                                              the embedded demo (configs/demo.yaml)
    torchrun --standalone --nproc-per-node 8 train.py --config configs/my.yaml   your own run, on 8 GPUs
    ... --rl.beta 0.05 --seed 1 --run-dir runs/beta05                            any key of the config, dotted
    ... --stages sft,explore                                                     some stages; complete ones are skipped

Rerun the same command to resume a run that was killed, on any number of processes. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1
make it save its state and exit with code 0; a second Ctrl-C ends it at once.

Commands (`train.py COMMAND --help` explains each):
    plan --config configs/my.yaml          GPU memory that the config needs
    annotate --config configs/my.yaml      label the references as critical or normal, and nothing else
    dashboard RUN                          build dashboard.html of a run
    compare RUN_A RUN_B ...                curves and configs of several runs on one page
    watch RUN                              follow a running job
    export RUN                             adapter and merged model for others

Options: --config FILE, --preset paper (the method as printed, over the config), --run-dir, --seed, --stages, and all
keys of these sections of the config:
    data          where studies come from: phantoms or a manifest
    model         checkpoint, LoRA, precision, image sizes and prompt
    warmup        label prediction that prepares an untrained vision tower
    sft           supervised fine-tuning
    explore       Target Exploration: which studies CAPO trains on
    reward        the hierarchical reward, its parts and weights
    judge         the LLM judge, if one is used
    criticality   who labels references as critical
    rl            CAPO: objective, clip ranges, KL, steps
    rollout       sampling of reports
    served        the server that samples them, with rollout.engine served
    evaluate      evaluation, and validation during CAPO
    parallel      sharding over GPUs
    tracking      dashboard, TensorBoard, Weights & Biases
`train.py --help SECTION ...` lists the options of sections, `train.py --help all` every option.
"""

import sys

from capo.stopping import StopRequested, StopSignal, expect_ctrl_c

# Before the imports below, which take seconds.
if __name__ == "__main__":
    expect_ctrl_c()

from radflow.pipeline.command_line import TRAIN_COMMANDS, run_command

if __name__ == "__main__" and run_command("train.py", sys.argv[1:], TRAIN_COMMANDS, __doc__):
    sys.exit()

import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import cast

import torch

from capo.clipping import critical_clip
from capo.explore import composite_score, metric_names, select_hard
from capo.journal import write_json, write_lines, write_whole
from capo.ranks import Ranks
from capo.sft import sft_step
from capo.trainer import Trainer
from capo.types import Policy
from capo.warmup import LabelReader, read_labels
from radflow.dashboard.live import Live
from radflow.dashboard.studies import StudySource
from radflow.models.start import weights_dtype
from radflow.pipeline import criticality
from radflow.pipeline.batch import write_rollouts
from radflow.pipeline.batches import rl_batches, sft_batches, warmup_batches
from radflow.pipeline.comparison import (
    Columns,
    baseline_columns,
    comparison_rows,
    describe,
    render_table,
    rexrank,
    with_other_images,
)
from radflow.pipeline.credit import advantages_of
from radflow.pipeline.export import export_policy
from radflow.pipeline.generation import suppressed_mask, with_features
from radflow.pipeline.policies import (
    free_memory,
    load_policy,
    load_to_train,
    prepare_training,
    report_studies,
    save_policy,
    trains_vision,
)
from radflow.pipeline.rollouts import rollout_engine, sample, sample_flat_groups_anew, score
from radflow.pipeline.run import (
    PRODUCTS,
    Run,
    build_run,
    critical_labels,
    enter_stage,
    hard_studies,
    need_earlier,
    pending_stages,
    refuse_stale,
    run_on_ranks,
    seal_product,
)
from radflow.pipeline.run_config import Config, parse_config, plain
from radflow.pipeline.stage_loop import StageLoop
from radflow.pipeline.validation import validate
from radflow.rewards.metrics.lexical import notes_on_tokens
from radflow.rewards.unspaced import has_characters


def main(words: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    if not run_command("train.py", words, TRAIN_COMMANDS, __doc__):
        config = parse_config(words)
        run_on_ranks(config, lambda ranks, stop: train(config, ranks, stop))


def train(config: Config, ranks: Ranks, stop: StopSignal) -> None:
    """All stages of a run, followed by its dashboard."""
    live = Live(config.run_dir, config.tracking, plain(config)) if ranks.is_main else None
    run, start = build_run(config, ranks, stop, live)
    source = StudySource.of_studies([*run.corpus.train, *run.corpus.test])
    with run.reward, nullcontext() if live is None else live.follow(source):
        run_stages(run, start)
    if ranks.is_main:
        if (table := run.folder / "eval" / "table.md").exists():
            print(table.read_text(encoding="utf-8"))
        print(f"run folder: {run.folder}")


def run_stages(run: Run, start: Path) -> None:
    """The stages of the method, in the paper's order; what is complete is skipped.

    The first rank says which, once: a rank that looked later would skip a stage whose product another has just written.
    """
    stages = {
        "warmup": lambda: warm_up(run, start),
        "sft": lambda: fine_tune(run, start),
        "explore": lambda: explore(run),
        "criticality": lambda: annotate(run),
        "rl": lambda: reinforce(run),
        "evaluate": lambda: compare(run),
        "export": lambda: export(run),
    }
    for name in run.ranks.all_gather(pending_stages(run))[0]:
        need_earlier(run.folder, name)
        with enter_stage(run, name):
            stages[name]()
            if run.ranks.is_main:
                seal_product(run.folder, name)
            run.ranks.barrier()  # its product is there before anybody looks for it
        run.prompts.release()
        free_memory()
    refuse_stale(run.folder)


def warm_up(run: Run, start: Path) -> None:
    """The vision tower learns to name the labels of the reference reports -> warmup/model. Without steps: nothing."""
    config, train = run.config, run.corpus.train
    if config.warmup.steps == 0:
        return
    policy = load_policy(start, run, dtype=weights_dtype(config.model, run.device))
    labeler, loaded = run.labeler, policy.output_weight().dtype
    found = labeler([study.report for study in train])
    labels = torch.tensor([[float(label in named) for label in labeler.labels] for named in found])
    run.prompts.follow(None)
    reader = LabelReader(policy, policy.vision, labels.mean(0), grid=config.warmup.grid)
    trainer = Trainer(cast(Policy, reader), config.warmup.optimizer, num_steps=config.warmup.steps, ranks=run.ranks)
    loop = StageLoop(run, "warmup", trainer, every=config.sft.checkpoint_every)
    batches = warmup_batches(run, first=loop.first)

    def step(number: int) -> dict[str, float]:
        prompts, indices = next(batches)
        return read_labels(trainer, prompts, labels[indices], num_studies=config.warmup.batch_size)

    loop.run(config.warmup.steps, step, title="warm-up", shown="loss")
    policy.vision.to(loaded)  # trained in float32
    policy.save(run.folder / "warmup" / "model", run.processor, write=run.ranks.is_main)


def fine_tune(run: Run, start: Path) -> None:
    """SFT on image-report pairs -> sft/model, the reference policy. LoRA adapters are merged into it."""
    config, warm = run.config, run.folder / "warmup" / "model"
    base = warm if warm.exists() else start
    policy = load_to_train(base, run)
    prepare_training(policy, run, seed=config.seed, train_vision=config.sft.vision == "trained")
    trainer = Trainer(policy, config.sft.optimizer, num_steps=config.sft.steps, ranks=run.ranks)
    keeps = not (trains_vision(policy) or trainer.sharded or config.sft.augment)
    run.prompts.follow(policy if keeps else None)
    loop = StageLoop(run, "sft", trainer, every=config.sft.checkpoint_every)
    suppressed = suppressed_mask(policy, run.processor)
    batches = sft_batches(run, first=loop.first)

    def step(number: int) -> dict[str, float]:
        prompts, reports, num_tokens = next(batches)
        return sft_step(trainer, prompts, reports, num_tokens=num_tokens, suppressed=suppressed)

    loop.run(config.sft.steps, step, title="SFT", shown="loss")
    save_policy(policy, run, "sft", base=base)


def explore(run: Run) -> None:
    """Report every training study, score the reports, keep the worst -> explore/selection.json (paper 4.1)."""
    config, train, folder = run.config, run.corpus.train, run.folder / "explore"
    size = config.explore.part_size
    rows = report_studies(run, "sft", train, folder / "predictions", part_size=size, title="exploration")
    names = [name for name in rows[0] if name not in ("id", "report")]
    # A study whose reference lacks the section a metric reads cannot be called hard for it: it counts as perfect there.
    known = {name: [1.0 if row[name] is None else row[name] for row in rows] for name in metric_names(config.explore)}
    scores = composite_score(known, config.explore)
    hard = select_hard(scores, config.explore)
    if run.ranks.is_main:
        columns = zip(train, rows, scores.tolist(), strict=True)
        scored = ({"id": study.id, "s": s, **{name: row[name] for name in names}} for study, row, s in columns)
        write_lines(folder / "scores.jsonl", scored)
        selection = {"studies": len(train), "selected": [train[i].id for i in hard]}
        write_json(folder / "selection.json", {**selection, "highest_s": float(scores[hard].max())})


def annotate(run: Run) -> None:
    """Label every training reference as critical or normal, once -> criticality.jsonl (paper 4.3)."""
    rows = criticality.label_references(run.config, run.corpus.train, lambda: run.labeler, run.ranks, run.stop)
    if run.ranks.is_main:
        print(criticality.summarise(rows))


def reinforce(run: Run) -> None:
    """CAPO on the hard studies -> rl/model (paper 4.2 to 4.4, figure 2)."""
    config, rl, base = run.config, run.config.rl, run.folder / "sft" / "model"
    policy = load_to_train(base, run)
    reference = prepare_training(
        policy, run, seed=config.seed + 1, train_vision=rl.vision == "trained", frozen_from=base
    )
    frozen_vision = not trains_vision(policy)
    num_updates = rl.steps * rl.inner_epochs * rl.mini_batches
    trainer = Trainer(
        policy, rl.optimizer, num_steps=num_updates, reference=reference, frozen_vision=frozen_vision, ranks=run.ranks
    )
    studies, labels = hard_studies(run), critical_labels(run.folder)
    shares_features = frozen_vision and not trainer.sharded  # every pass of a sharded tower needs all ranks
    run.prompts.follow(policy if shares_features else None)
    loop = StageLoop(run, "rl", trainer, every=rl.checkpoint_every)
    batches, suppressed = rl_batches(run, studies, first=loop.first), suppressed_mask(policy, run.processor)
    new_engine = partial(rollout_engine, policy, run, suppressed, num_studies=min(rl.studies_per_step, len(studies)))
    gathers = trainer.sharded and config.rollout.engine == "local"  # weights go to new memory in each step
    engine = new_engine if gathers else cache(new_engine)
    reports, held_out = loop.archive("rollouts"), loop.archive("held_out")

    def step(number: int) -> dict[str, float | None]:
        validation = validate(policy, run, number, held_out)
        chosen, prompts = next(batches)
        loop.phase("sampling")
        if shares_features:
            prompts = with_features(policy, prompts)
        rollouts = sample(engine(), run, prompts, step=number)  # G reports per study
        batch = score(rollouts, run, chosen, prompts)  # R of each report, eq. 4 to 7
        batch = sample_flat_groups_anew(batch, engine, run, step=number)
        batch.warn_of_faults(config.reward, shown=run.ranks.is_main)
        advantages = advantages_of(batch, rl, run.reward.weights, run.processor.decode, parse=run.parse)  # A, eq. 1
        critical = batch.select(labels)
        clip = critical_clip(critical, eps_normal=rl.eps_normal, tightening=rl.tightening)  # eps_i, eq. 9
        cases = batch.cases(advantages.advantages, critical, clip, masked=rl.truncated == "mask")
        loop.phase("update")
        began = time.perf_counter()
        update = trainer.capo_step(  # eq. 8, KL
            cases,
            rl,
            temperature=config.rollout.temperature,
            suppressed=suppressed,
            max_tokens=config.rollout.max_new_tokens,
        )
        update["seconds_update"] = time.perf_counter() - began
        if run.ranks.is_main:
            write_rollouts(reports, number, batch, advantages.advantages, critical, clip)
        return {**batch.metrics(advantages, critical), **update, **validation}

    loop.run(rl.steps, step, title="CAPO", shown="reward")
    save_policy(policy, run, "rl", base=base)


def compare(run: Run) -> None:
    """Report the held-out studies with the SFT policy and after CAPO -> eval/table.md and eval/table.json."""
    config, corpus, folder = run.config, run.corpus, run.folder / "eval"
    systems = {
        "SFT": ("sft", corpus.test),
        "CAPO": ("rl", corpus.test),
        "CAPO, other images": ("rl", with_other_images(corpus.test)),
    }
    columns: dict[str, Columns] = {}
    reports: dict[str, list[str]] = {}
    for name, (model, studies) in systems.items():
        file = name.lower().replace(", ", "_").replace(" ", "_")
        parts, size = folder / "parts" / file, config.evaluate.part_size
        rows = report_studies(run, model, studies, parts, part_size=size, title=f"{name} on held-out studies")
        reports[name] = [str(row["report"]) for row in rows]
        columns[name] = {key: [row[key] for row in rows] for key in rows[0] if key not in ("id", "report")}
        if run.ranks.is_main:
            write_json(folder / f"{file}.json", rexrank(corpus.test, reports[name]))
    try:
        if run.ranks.is_main:
            write_comparison(run, columns, reports)
        finished = True
    except StopRequested:
        finished = False
    run.ranks.all_gather_or_stop(finished or None)


def write_comparison(run: Run, columns: dict[str, Columns], reports: dict[str, list[str]]) -> None:
    """The two policies next to baselines; `columns` and `reports` are by system."""
    config, corpus, folder = run.config, run.corpus, run.folder / "eval"
    references = [study.report for study in corpus.test]
    write_json(folder / "references.json", rexrank(corpus.test, references))
    notes = [describe(n, r) for n, r in {**reports, "references": references}.items() if n != "CAPO, other images"]
    notes += notes_on_tokens(references)
    baselines = baseline_columns(run.reward, corpus.train, corpus.test, sample=config.evaluate.baseline_sample)
    baselines["CAPO, other images"] = columns["CAPO, other images"]
    rows = comparison_rows(columns["SFT"], columns["CAPO"], baselines)
    write_json(folder / "table.json", {"studies": len(corpus.test), "seed": config.seed, "rows": rows, "notes": notes})
    by_character = any(map(has_characters, references))
    write_whole(folder / "table.md", render_table(rows, ("SFT", "CAPO"), notes, by_character=by_character))


def export(run: Run) -> None:
    """The CAPO policy as others load it, with its model card -> export/rl/adapter (LoRA) and export/rl/merged."""
    if run.ranks.is_main:
        export_policy(run.folder, "rl", run.folder / PRODUCTS["export"])


if __name__ == "__main__":
    main()
