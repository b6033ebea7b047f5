"""Warm-up of a vision tower with random weights: predict the labels of a study from its image features alone.

A language model memorises the wording of a small corpus long before the features of an untrained tower carry
information, and then ignores them. Pretrained towers need no warm-up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from capo.checks import check_range
from capo.config import OptimizerConfig
from capo.trainer import Trainer
from capo.types import Policy, Prompt


@dataclass(frozen=True)
class WarmupConfig:
    """How long the tower is trained on labels before SFT."""

    steps: int = 0
    """Optimiser steps on the corpus; 0 leaves the warm-up out."""
    grid: int = 0
    """Pooling cells per side of an image; 0 pools over all images. Real images, whose findings differ more by location
    than by appearance, need a grid."""
    batch_size: int = 24
    """Studies per step."""
    augment: bool = False
    """Shift, scale, rotate and relight images a little, differently each time."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        check_range(self, "steps", "grid", least=0)
        check_range(self, "batch_size", least=1)


class VisionPolicy(Policy, Protocol):
    """What a warm-up needs of a policy besides the members of `Policy`."""

    def feature_shapes(self, prompt: Any) -> list[tuple[int, int]]:
        """Rows and columns of the features of each image of a prompt."""


class LabelReader(nn.Module):
    """Linear heads on the image features of a study; trains them and the tower, not the language model.

    Both are float32 for any policy: in bf16 small updates of the tower would be lost.

    The first head reads the mean over all features. With a grid, a second one reads the means in each cell of the first
    image and of the others: a Qwen tower encodes relative positions of patches only, and on real images the first head
    alone does not start to learn.

    Args:
        policy: gives the features.
        vision: the policy's tower, made float32 and trained in place.
        prevalence: [L], share of studies with each label; initialises the biases.
        grid: cells per side; 0 leaves out the second head.
    """

    def __init__(self, policy: VisionPolicy, vision: nn.Module, prevalence: Tensor, *, grid: int = 0) -> None:
        super().__init__()
        self.vision, self.grid = vision.float(), grid
        self.features, self.shapes = policy.features, policy.feature_shapes
        self.width = policy.output_weight().shape[1]
        sizes = [self.width, *([2 * grid**2 * self.width] if grid else [])]
        heads = [nn.Linear(size, len(prevalence), device=policy.device) for size in sizes]
        self.heads = nn.ModuleList(heads)
        for head in heads:
            nn.init.zeros_(head.weight)
            head.bias.data.copy_(prevalence.clamp(0.01, 0.99).logit())

    def forward(self, prompts: Sequence[Prompt]) -> Tensor:
        """Logits [H, B, L], of one head or with a grid of two."""
        features = [images[:, : self.width] for images in self.features(prompts)]  # without those of DeepStack
        read = [torch.stack([images.mean(0) for images in features])]
        if self.grid:
            read.append(torch.stack([self._cells(f, p) for f, p in zip(features, prompts, strict=True)]))
        return torch.stack([head(values) for head, values in zip(self.heads, read, strict=True)])

    def _cells(self, features: Tensor, prompt: Prompt) -> Tensor:
        """[image tokens, W] -> [2 x grid x grid x W]: the first image, and the mean of the others, 0 without any."""
        shapes = self.shapes(prompt)
        images = torch.split(features, [height * width for height, width in shapes])
        pooled = [self._pooled(image, *shape) for image, shape in zip(images, shapes, strict=True)]
        others = torch.stack(pooled[1:]).mean(0) if pooled[1:] else torch.zeros_like(pooled[0])
        # Of one scale for any grid: an optimiser step moves every weight of the head by about as much.
        scale: float = (2 * self.grid**2) ** 0.5
        return torch.cat([pooled[0], others]) / scale

    def _pooled(self, image: Tensor, height: int, width: int) -> Tensor:
        """[height x width, W], row by row -> [W x grid x grid]. Normalised: features of an untrained tower are not."""
        rows = nn.functional.layer_norm(image, image.shape[-1:]).T.reshape(-1, height, width)
        pooled: Tensor = nn.functional.adaptive_avg_pool2d(rows[None], self.grid)
        return pooled.flatten()


def read_labels(
    trainer: Trainer, prompts: Sequence[Prompt], labels: Tensor, *, num_studies: int | None = None
) -> dict[str, float]:
    """One optimiser step of a `LabelReader` on binary cross-entropy, averaged over studies, labels and heads.

    `labels` [B, L] are 0 or 1; `num_studies` counts those of all ranks, by default B.
    """
    logits: Tensor = cast(LabelReader, trainer.policy)(prompts)
    target = labels.to(logits).expand_as(logits)
    total = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    loss = total / ((num_studies or len(prompts)) * labels.shape[1] * len(logits))
    torch.autograd.backward(loss)
    return {"loss": trainer.ranks.all_reduce_sum(float(loss.detach())), **trainer.step()}
