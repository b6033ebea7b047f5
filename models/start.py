"""The checkpoint a run starts from: the user's, or a small one built on the spot."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from models.loading import locate
from models.lora import LoraConfig
from models.processing import ProcessorConfig
from models.tiny import TinyConfig, build_tiny


@dataclass(frozen=True)
class ModelConfig:
    """Which model is trained, and which part of it."""

    path: str | None = None
    """Qwen-VL checkpoint in the published layout: a directory, or an id of the hub such as
    Qwen/Qwen2.5-VL-3B-Instruct, with @revision if you like; none builds the small model of `tiny`."""
    training: Literal["lora", "full"] = "lora"
    """Train LoRA adapters on a frozen base, or all weights (needed when they start random)."""
    rl_vision: Literal["frozen", "trained"] = "frozen"
    """The vision tower under CAPO, with training full: frozen, its features are computed once a step."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """That the model computes in, sharded or not; auto is bfloat16 on a GPU and float32 elsewhere. What is trained is
    float32: LoRA's adapters, and all weights with training full, which compute in a copy of this type."""
    recompute_activations: bool = False
    """Keep each layer's input only and compute the rest again in the backward pass: less memory, a third more time."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    tiny: TinyConfig = field(default_factory=TinyConfig)
    processor: ProcessorConfig = field(default_factory=ProcessorConfig)

    def __post_init__(self) -> None:
        if self.training == "lora" and self.rl_vision == "trained":
            raise ValueError(
                "expected model.rl_vision frozen with model.training lora, got trained; see model.lora.vision"
            )
        if self.training == "lora" and self.path is None:
            raise ValueError(
                "expected model.path with model.training lora, got none: adapters on random weights learn nothing; "
                "give a checkpoint, or train the small model with model.training full"
            )


def compute_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """What `model.dtype` comes to on a device: of every product, whatever the sharding."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, config.dtype)


def weights_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """Of the weights that a training stage holds: small updates would vanish in bfloat16, a frozen base has none."""
    return compute_dtype(config, device) if config.training == "lora" else torch.float32


def gathered_dtype(config: ModelConfig, device: torch.device) -> torch.dtype | None:
    """That trained weights are cast to for each pass; None if they compute as they are. LoRA's adapters do."""
    compute = compute_dtype(config, device)
    return None if config.training == "lora" or compute == torch.float32 else compute


def start_path(folder: Path, config: ModelConfig, corpus: Sequence[str], *, seed: int) -> Path:
    """Directory of the checkpoint to start from; builds the small model in `folder` unless it is there already.

    Raises:
        ValueError: the hub does not give the checkpoint (see `models.loading.locate`).
    """
    if config.path is not None:
        return locate(config.path)
    if not folder.exists():
        build_tiny(folder, corpus, config.tiny, seed=seed)
    return folder
