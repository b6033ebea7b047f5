"""Supervised fine-tuning on image-report pairs: gives the reference policy (paper 4.1)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from capo.packing import micro_batches, pack, report_logps
from capo.trainer import OptimizerConfig, Trainer
from capo.types import Prompt


@dataclass(frozen=True)
class SftConfig:
    """How the reference policy is fitted."""

    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 16
    """Studies a step, over all micro-batches."""
    balance: float = 0.0
    """0 draws every study alike; 1 draws every set of Impression labels alike, however rare; in between, a power."""
    augment: bool = False
    """Shift, scale, turn and relight images a little, differently each time."""
    vision: Literal["trained", "frozen"] = "trained"
    """The vision tower, when all weights are trained; frozen makes sense after a warm-up."""
    checkpoint_every: int = 100
    """Steps between checkpoints; a killed run repeats fewer than this."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"expected balance in [0, 1], got {self.balance}")


def imitate(
    trainer: Trainer,
    prompts: Sequence[Prompt],
    reports: Sequence[Tensor],
    *,
    num_tokens: int | None = None,
    banned: Tensor | None = None,
) -> dict[str, float]:
    """One optimiser step on reference reports.

        L = -(1/N) sum_i sum_t log pi(y_it | prompt_i, y_i<t)        N tokens of the whole step

    Args:
        prompts: B prompts, of this rank.
        reports: B reports as [T] int64 token ids, EOS included.
        num_tokens: report tokens of all ranks; by default those of `reports`.
        banned: [V] bool; the distribution is renormalised without tokens that are never sampled.

    Returns:
        loss (nats a token), tokens, grad_norm, learning_rate.
    """
    num_tokens = num_tokens or sum(len(report) for report in reports)
    lengths = [len(p.input_ids) + len(r) for p, r in zip(prompts, reports, strict=True)]
    batches, policy = micro_batches(lengths, trainer.config.token_budget), trainer.policy
    # A rank with fewer micro-batches repeats a prompt without its report: a sharded policy needs all ranks in a pass.
    idle = int(trainer.ranks.largest(len(batches))) - len(batches)
    total = 0.0
    for rows, used in [*((rows, True) for rows in batches), *[(batches[-1][:1], False)] * idle]:
        layout = pack([prompts[i] for i in rows], [[reports[i]] if used else [] for i in rows]).to(policy.device)
        logps, _ = policy(lambda layout=layout: report_logps(policy, layout, banned=banned))
        loss = -logps.sum() / num_tokens
        loss.backward()
        total += float(loss.detach())
    return {"loss": trainer.ranks.total(total), "tokens": num_tokens, **trainer.step()}
