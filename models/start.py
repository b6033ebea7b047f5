"""The checkpoint a run starts from: the user's, or a small one with random weights."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from radflow.models.loading import locate
from radflow.models.lora import LoraConfig
from radflow.models.processing import ProcessorConfig
from radflow.models.tiny import TinyConfig, build_tiny


@dataclass(frozen=True)
class ModelConfig:
    """Which model is trained, and which part of it."""

    path: str | None = None
    """Qwen-VL checkpoint in the published layout: a directory, or a hub id such as Qwen/Qwen2.5-VL-3B-Instruct,
    optionally with @revision. None builds the small model of `tiny`."""
    training: Literal["lora", "full"] = "lora"
    """Train LoRA adapters on a frozen base, or all weights (needed when they start random)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type that the model computes in; auto is bfloat16 on a GPU and float32 elsewhere. Trained weights are float32:
    LoRA's adapters, and with training full all weights, which compute in a copy of this type."""
    recompute_activations: bool = False
    """Keep only each layer's input and recompute the rest in the backward pass: less memory, a third more time."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    tiny: TinyConfig = field(default_factory=TinyConfig)
    processor: ProcessorConfig = field(default_factory=ProcessorConfig)

    def __post_init__(self) -> None:
        if self.training == "lora" and self.path is None:
            raise ValueError(
                "expected model.path with model.training lora, got none: adapters on random weights learn nothing; "
                "give a checkpoint, or train the small model with model.training full"
            )


def compute_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """Type in which a device computes, sharded or not."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, config.dtype)


def weights_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """Type of a stage's weights: float32 if they are trained, because small updates vanish in bfloat16."""
    return compute_dtype(config, device) if config.training == "lora" else torch.float32


def gathered_dtype(config: ModelConfig, device: torch.device) -> torch.dtype | None:
    """Type that trained weights are cast to for each pass; None if they compute as they are, as LoRA's adapters do."""
    compute = compute_dtype(config, device)
    return None if config.training == "lora" or compute == torch.float32 else compute


def start_path(folder: Path, config: ModelConfig, corpus: Sequence[str], *, seed: int) -> Path:
    """Directory of the checkpoint to start from; builds the small model in `folder` unless it is there already."""
    if config.path is not None:
        return locate(config.path)
    if not folder.exists():
        build_tiny(folder, corpus, config.tiny, seed=seed)
    return folder


def pick_device() -> torch.device:
    """The GPU of this process if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
