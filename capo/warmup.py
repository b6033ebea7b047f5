"""Warm-up of a vision tower that starts from random weights: name the labels of a study from its image features alone.

A language model learns the wording of a small corpus by heart long before an untrained tower sends it anything worth
reading, and then has no reason left to look. A few hundred steps of this come first. Pretrained towers do not need it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from capo.trainer import OptimizerConfig, Trainer
from capo.types import Policy, Prompt


@dataclass(frozen=True)
class WarmupConfig:
    """How long the tower learns to name labels before SFT."""

    steps: int = 0
    """Optimiser steps; 0 leaves it out."""
    batch_size: int = 24
    """Studies a step."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1:
            raise ValueError(f"expected steps >= 0 and batch_size >= 1, got {self.steps} and {self.batch_size}")


class LabelReader(nn.Module):
    """A linear layer on the mean image feature of a study; trains itself and the tower, not the language model.

    Args:
        policy: gives the features.
        vision: the policy's tower, trained in place.
        prevalence: [L], share of studies with each label; the layer starts there.
    """

    def __init__(self, policy: Policy, vision: nn.Module, prevalence: Tensor) -> None:
        super().__init__()
        self.vision, self.features = vision, policy.features
        width = policy.output_weight().shape[1]
        self.head = nn.Linear(width, len(prevalence), device=policy.device)
        nn.init.zeros_(self.head.weight)
        self.head.bias.data.copy_(prevalence.clamp(0.01, 0.99).logit())

    def forward(self, prompts: Sequence[Prompt]) -> Tensor:
        """Logits [B, L]."""
        return self.head(torch.stack([features.mean(0) for features in self.features(prompts)]))


def read_labels(
    trainer: Trainer, prompts: Sequence[Prompt], labels: Tensor, *, num_studies: int | None = None
) -> dict[str, float]:
    """One optimiser step on the binary cross-entropy of each label, averaged over studies and labels.

    Args:
        trainer: of a `LabelReader`.
        labels: [B, L] float, 0 or 1.
        num_studies: of all ranks; by default B.
    """
    trainer.check_stop()
    logits = trainer.policy(prompts)
    total = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits), reduction="sum")
    loss = total / ((num_studies or len(prompts)) * labels.shape[1])
    loss.backward()
    return {"loss": trainer.ranks.total(float(loss.detach())), **trainer.step()}
