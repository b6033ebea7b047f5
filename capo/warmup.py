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
    grid: int = 0
    """Cells a side by which the head tells places of an image apart; 0 reads the mean over all images. Real images,
    whose findings differ in where they are more than in what they look like, need it."""
    batch_size: int = 24
    """Studies a step."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        if min(self.steps, self.grid) < 0 or self.batch_size < 1:
            raise ValueError(
                "expected steps and grid of at least 0 and batch_size of at least 1, got "
                f"{self.steps}, {self.grid} and {self.batch_size}"
            )


class LabelReader(nn.Module):
    """Linear layers on the image features of a study; they train themselves and the tower, not the language model.

    Both are float32 whatever the policy is: in bf16 small updates of the tower would vanish.

    One reads the mean over all features, so that each of them comes to carry the labels. With a grid another one reads
    the means in each cell of the first image and of the others: a Qwen tower knows where patches lie to each other, not
    where they lie in the image, and on real images the first head alone does not begin to learn.

    Args:
        policy: gives the features.
        vision: the policy's tower, made float32 and trained in place.
        prevalence: [L], share of studies with each label; the layer starts there.
        grid: cells a side; 0 reads the mean.
    """

    def __init__(self, policy: Policy, vision: nn.Module, prevalence: Tensor, *, grid: int = 0) -> None:
        super().__init__()
        self.vision, self.grid = vision.float(), grid
        self.features, self.shapes = policy.features, policy.feature_shapes
        width = policy.output_weight().shape[1]
        sizes = [width, *([2 * grid**2 * width] if grid else [])]
        self.heads = nn.ModuleList(nn.Linear(size, len(prevalence), device=policy.device) for size in sizes)
        for head in self.heads:
            nn.init.zeros_(head.weight)
            head.bias.data.copy_(prevalence.clamp(0.01, 0.99).logit())

    def forward(self, prompts: Sequence[Prompt]) -> Tensor:
        """Logits [H, B, L]: of the head on the mean, and of the one on the cells if there is a grid."""
        features = self.features(prompts)
        read = [torch.stack([images.mean(0) for images in features])]
        if self.grid:
            read.append(torch.stack([self._cells(f, p) for f, p in zip(features, prompts, strict=True)]))
        return torch.stack([head(values) for head, values in zip(self.heads, read, strict=True)])

    def _cells(self, features: Tensor, prompt: Prompt) -> Tensor:
        """[image tokens, W] -> [2 x grid x grid x W]: the first image, and the mean of the others, 0 without any."""
        shapes = self.shapes(prompt)
        images = features.split([height * width for height, width in shapes])
        pooled = [self._pooled(image, *shape) for image, shape in zip(images, shapes, strict=True)]
        others = torch.stack(pooled[1:]).mean(0) if pooled[1:] else torch.zeros_like(pooled[0])
        # Of one size however many cells there are: an optimiser's step moves every weight of the head by about as much.
        return torch.cat([pooled[0], others]) / (2 * self.grid**2) ** 0.5

    def _pooled(self, image: Tensor, height: int, width: int) -> Tensor:
        """[height x width, W] in rows -> [W x grid x grid]. Normalised first: an untrained tower's features are not."""
        rows = nn.functional.layer_norm(image, image.shape[-1:]).T.unflatten(1, (height, width))
        return nn.functional.adaptive_avg_pool2d(rows[None], self.grid).flatten()


def read_labels(
    trainer: Trainer, prompts: Sequence[Prompt], labels: Tensor, *, num_studies: int | None = None
) -> dict[str, float]:
    """One optimiser step on the binary cross-entropy of each label, averaged over studies, labels and heads.

    Args:
        trainer: of a `LabelReader`.
        labels: [B, L] float, 0 or 1.
        num_studies: of all ranks; by default B.
    """
    logits = trainer.policy(prompts)
    target = labels.to(logits).expand_as(logits)
    total = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    loss = total / ((num_studies or len(prompts)) * labels.shape[1] * len(logits))
    loss.backward()
    return {"loss": trainer.ranks.total(float(loss.detach())), **trainer.step()}
