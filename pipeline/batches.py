"""What each step of a stage trains on: studies in an order that the seed and the step fix, prompts built ahead."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from torch import Tensor

from capo.sampling import sample_seed
from capo.types import Prompt
from radflow.data.augment import jitter
from radflow.data.batches import shuffled_batches
from radflow.data.prefetch import prefetch
from radflow.data.studies import Study
from radflow.pipeline.generation import build_prompt
from radflow.pipeline.run import Run

Stage = Literal["warmup", "sft"]


def warmup_batches(run: Run, *, first: int) -> Iterator[tuple[list[Prompt], list[int]]]:
    """Prompts of this rank's share of each step from `first` on, and the indices of their studies."""
    config, train = run.config, run.corpus.train
    batches = shuffled_batches(len(train), config.warmup.batch_size, seed=config.seed + 2, start_step=first)
    shares = ((chosen, run.ranks.assign([1] * len(chosen))) for chosen in batches)
    for chosen, own, prompts in _build_ahead(run, "warmup", shares, first=first):
        yield prompts, [chosen[i] for i in own]


def sft_batches(run: Run, *, first: int) -> Iterator[tuple[list[Prompt], list[Tensor], int]]:
    """Prompts and report tokens of this rank's share of each step from `first` on; report tokens of all ranks.

    Ranks take reports of about equally many tokens.
    """
    config, train = run.config, run.corpus.train
    reports = [run.processor.encode_report(study.report) for study in train]
    lengths = [len(report) for report in reports]
    batches = shuffled_batches(
        len(train),
        config.sft.batch_size,
        seed=config.seed,
        start_step=first,
        weights=balanced_weights(run, train, config.sft.balance),
        lengths=lengths if config.data.group_lengths else None,
    )
    shares = ((chosen, run.ranks.assign([lengths[i] for i in chosen])) for chosen in batches)
    for chosen, own, prompts in _build_ahead(run, "sft", shares, first=first):
        ready = run.prompts.attach([train[chosen[i]] for i in own], prompts)
        yield ready, [reports[chosen[i]] for i in own], sum(lengths[i] for i in chosen)


def rl_batches(run: Run, studies: Sequence[Study], *, first: int) -> Iterator[tuple[Sequence[Study], Sequence[Prompt]]]:
    """Studies of each step from `first` on, and the prompts of this rank's share, built while the step before runs."""
    config = run.config
    batches = shuffled_batches(
        len(studies),
        min(config.rl.studies_per_step, len(studies)),
        seed=config.seed + 1,
        start_step=first,
        weights=balanced_weights(run, studies, config.rl.balance),
    )
    shares = ([studies[i] for i in chosen] for chosen in batches)
    own = run.ranks.assign([1] * min(config.rl.studies_per_step, len(studies)))
    loaded = prefetch(
        shares, lambda batch: [run.prompts.build(batch[i]) for i in own], workers=config.data.workers, ahead=1
    )
    for batch, prompts in loaded:
        yield batch, run.prompts.attach([batch[i] for i in own], prompts)


def _build_ahead(
    run: Run, stage: Stage, shares: Iterable[tuple[Sequence[int], Sequence[int]]], *, first: int
) -> Iterator[tuple[Sequence[int], Sequence[int], list[Prompt]]]:
    """The studies of each step, the positions of this rank's among them, and their prompts."""
    steps = ((step, *share) for step, share in enumerate(shares, first))
    loaded = prefetch(steps, lambda one: _build_share(run, stage, *one), workers=run.config.data.workers)
    for (_, chosen, own), prompts in loaded:
        yield chosen, own, prompts


def _build_share(run: Run, stage: Stage, step: int, chosen: Sequence[int], own: Sequence[int]) -> list[Prompt]:
    """Prompts of this rank's share of a step, at the positions `own` of its batch; augmented if the stage is."""
    train = run.corpus.train
    if not (run.config.warmup if stage == "warmup" else run.config.sft).augment:
        return [run.prompts.build(train[chosen[i]]) for i in own]
    changes = (jitter(sample_seed(run.config.seed, f"augment {stage}", step, "", i)) for i in own)
    return [build_prompt(run.processor, train[chosen[i]], change) for i, change in zip(own, changes, strict=True)]


def balanced_weights(run: Run, studies: Sequence[Study], balance: float) -> list[float] | None:
    """Sampling weights count^-balance of each study's set of Impression labels; None for plain shuffling."""
    if balance == 0:
        return None
    kinds = [frozenset(labels) for labels in run.labeler([study.impression for study in studies])]
    counts = Counter(kinds)
    return [counts[kind] ** -balance for kind in kinds]
