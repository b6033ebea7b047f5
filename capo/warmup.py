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
    """Optimiser steps on the corpus; 0 leaves the warm-up out."""
    phantom_steps: int = 0
    """Steps before those on chest phantoms, whose labels are true and of which there are as many as wanted; for the
    14 chest labels only."""
    batch_size: int = 24
    """Studies a step."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if min(self.steps, self.phantom_steps) < 0 or self.batch_size < 1:
            raise ValueError(
                "expected steps and phantom_steps of at least 0 and batch_size of at least 1, got "
                f"{self.steps}, {self.phantom_steps} and {self.batch_size}"
            )
        if self.phantom_steps and not self.steps:
            raise ValueError(
                f"expected warmup.steps with warmup.phantom_steps {self.phantom_steps}, got 0: what was learned on "
                "phantoms has to be carried over to the corpus"
            )


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
