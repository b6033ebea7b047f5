"""What each step of a stage trains on: studies in an order that the seed and the step fix, prompts built ahead."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from torch import Tensor

from capo.sampling import sample_seed
from capo.types import Prompt
from radflow.data.augment import jitter
from radflow.data.batches import shuffled_batches
from radflow.data.prefetch import decode, prefetch
from radflow.data.studies import Study
from radflow.pipeline.generation import build_prompt
from radflow.pipeline.run import Run


def warmup_batches(run: Run, *, first: int) -> Iterator[tuple[list[Prompt], list[int]]]:
    """Prompts of this rank's share of each step from `first` on, and the indices of their studies."""
    config, train = run.config, run.corpus.train
    batches = shuffled_batches(len(train), config.warmup.batch_size, seed=config.seed + 2, start_step=first)
    for step, chosen in enumerate(batches, first):
        own = run.ranks.assign([1] * len(chosen))
        prompts = [
            build_prompt(run.processor, train[chosen[i]], augmentation(run, "warmup", step=step, index=i)) for i in own
        ]
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
    loaded = prefetch(shares, lambda share: [decode(train[share[0][i]]) for i in share[1]], workers=config.data.workers)
    for step, ((chosen, own), studies) in enumerate(loaded, first):
        changes = [augmentation(run, "sft", step=step, index=i) for i in own]
        prompts = [build_prompt(run.processor, study, change) for study, change in zip(studies, changes, strict=True)]
        yield prompts, [reports[chosen[i]] for i in own], sum(lengths[i] for i in chosen)


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
    return prefetch(
        ([studies[i] for i in chosen] for chosen in batches),
        lambda batch: [build_prompt(run.processor, batch[i]) for i in run.ranks.assign([1] * len(batch))],
        workers=config.data.workers,
        ahead=1,
    )


def augmentation(run: Run, stage: Literal["warmup", "sft"], *, step: int, index: int) -> Callable | None:
    """What changes the images of the study at `index` of a step's batch; None if the stage leaves them as they are."""
    if not (run.config.warmup if stage == "warmup" else run.config.sft).augment:
        return None
    return jitter(sample_seed(run.config.seed, f"augment {stage}", step, "", index))


def balanced_weights(run: Run, studies: Sequence[Study], balance: float) -> list[float] | None:
    """Sampling weights count^-balance of each study's set of Impression labels; None for plain shuffling."""
    if balance == 0:
        return None
    kinds = [frozenset(labels) for labels in run.labeler([study.impression for study in studies])]
    counts = Counter(kinds)
    return [counts[kind] ** -balance for kind in kinds]
