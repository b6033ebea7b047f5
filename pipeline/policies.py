"""The policy of a stage: loaded, made trainable, writing reports, saved."""

import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from capo.fsdp import shard_policy
from capo.journal import Digests, seal
from radflow.data.studies import Study
from radflow.models.adapter_files import save_adapter
from radflow.models.lora import add_lora, merge_lora, reference, trainable_table
from radflow.models.qwen_vl import QwenVL, load
from radflow.models.start import compute_dtype, gathered_dtype, weights_dtype
from radflow.pipeline.comparison import score_rows
from radflow.pipeline.generation import ReportWriter, greedy
from radflow.pipeline.resumable import resumable_map
from radflow.pipeline.run import Run, built_on


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
        policy.vision.requires_grad_(False)
    if run.ranks.is_main:
        print(trainable_table(policy), flush=True)
    shard_policy(
        policy,
        parallel,
        run.ranks,
        run.device,
        frozen_dtype=weights_dtype(model, run.device),
        gathered_dtype=gathered_dtype(model, run.device),
    )
    if model.training == "lora":
        return lambda: reference(policy)
    if frozen_from is None:
        return None
    frozen = load(frozen_from, dtype=None) if parallel.splits(run.ranks) else load_policy(frozen_from, run)
    compute = compute_dtype(model, run.device)
    shard_policy(frozen.requires_grad_(False), parallel, run.ranks, run.device, frozen_dtype=compute)
    return lambda: nullcontext(frozen)


def trains_vision(policy: QwenVL) -> bool:
    """Whether any weight of the vision tower is trained."""
    return any(parameter.requires_grad for parameter in policy.vision.parameters())


def save_policy(policy: QwenVL, run: Run, stage: str, *, base: Path) -> None:
    """Save what a stage trained: its adapter, made for `base`, and then the model with the adapter merged in."""
    folder, lora = run.folder / stage, run.config.model.lora
    run.ranks.barrier()  # before parameters are put together, maybe through NCCL
    if run.config.model.training == "lora":
        save_adapter(policy, folder / "adapter", lora, base=str(base), write=run.ranks.is_main)
        if run.ranks.is_main:
            seal(folder / "adapter", built_on(run.folder, stage))
        merge_lora(policy)
    policy.save(folder / "model", run.processor, write=run.ranks.is_main)


def report_studies(
    run: Run, model: str, studies: Sequence[Study], folder: Path, *, part_size: int, title: str
) -> list[dict[str, Any]]:
    """One greedy report per study by the policy of stage `model`: rows with id, report and each metric."""
    writers: list[ReportWriter] = []  # made for the first part; a finished stage needs none

    def work(part: Sequence[Study], name: str) -> list[dict[str, object]]:
        if not writers:
            policy = load_policy(run.folder / model / "model", run)
            run.prompts.follow(policy)
            writers.append(report_writer(policy, run, most=part_size))
        return score_rows(run.reward, [report for report, _ in writers[0].write(part, title=name)], part)

    digests = Digests.read(run.folder / model / "model")
    base = {f"{model}/model": digests.identity} if digests else {}
    return resumable_map(folder, studies, part_size, work, run.ranks, title=title, built_on=base)


def report_writer(policy: QwenVL, run: Run, *, most: int) -> ReportWriter:
    """Greedy reports as the run's config asks for them, of at most `most` studies at one time."""
    config = run.config
    return ReportWriter(
        policy,
        run.processor,
        greedy(config.rollout, max_new_tokens=config.evaluate.max_new_tokens),
        slots=min(config.evaluate.slots, most),
        workers=config.data.workers,
        prompts=run.prompts,
        stop=run.stop,
        shown=run.ranks.is_main,
    )
