"""Supervised fine-tuning on image-report pairs: gives the reference policy (paper 4.1)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from capo.checks import check_range
from capo.config import OptimizerConfig
from capo.packing import micro_batches, pack, report_logps
from capo.trainer import Trainer
from capo.types import Prompt


@dataclass(frozen=True)
class SftConfig:
    """How the reference policy is fitted."""

    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 16
    """Studies per step, over all micro-batches and ranks."""
    balance: float = 0.0
    """0 draws studies with equal probability; 1 sets of Impression labels, however rare; in between, a power."""
    augment: bool = False
    """Shift, scale, rotate and change the brightness of images slightly and at random."""
    vision: Literal["trained", "frozen"] = "trained"
    """The vision tower, if all weights are trained; frozen makes sense after a warm-up."""
    checkpoint_every: int = 100
    """Steps between checkpoints; a killed run repeats fewer than this."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        check_range(self, "steps", "batch_size", "checkpoint_every", least=1)
        check_range(self, "balance", least=0, most=1)


def sft_step(
    trainer: Trainer,
    prompts: Sequence[Prompt],
    reports: Sequence[Tensor],
    *,
    num_tokens: int | None = None,
    suppressed: Tensor | None = None,
) -> dict[str, float]:
    """One optimiser step on reference reports.

        L = -(1/N) sum_i sum_t log pi(y_it | prompt_i, y_i<t)        N tokens of the whole step

    Args:
        prompts, reports: of this rank; reports as [T] int64 token ids, EOS included.
        num_tokens: report tokens of all ranks; by default those of `reports`.
        suppressed: [V] bool; the distribution is renormalised without tokens that are never sampled.

    Returns:
        loss (nats per token), tokens, and the metrics of `Trainer.step`.
    """
    num_tokens = num_tokens or sum(map(len, reports))
    lengths = [len(p.input_ids) + len(r) for p, r in zip(prompts, reports, strict=True)]
    batches, policy = micro_batches(lengths, trainer.config.token_budget), trainer.policy
    # A rank with fewer micro-batches repeats a prompt without its report: a sharded policy needs every rank in a pass.
    idle = int(trainer.ranks.all_reduce_max(len(batches))) - len(batches)
    total = 0.0
    for rows, used in [*((rows, True) for rows in batches), *[(batches[-1][:1], False)] * idle]:
        layout = pack([prompts[i] for i in rows], [[reports[i]] if used else [] for i in rows]).to(policy.device)
        logps, _ = policy(partial(report_logps, policy, layout, suppressed=suppressed))
        loss = -logps.sum() / num_tokens
        torch.autograd.backward(loss)
        total += float(loss.detach())
    return {"loss": trainer.ranks.all_reduce_sum(total), "tokens": num_tokens, **trainer.step()}
