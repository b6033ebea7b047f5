"""The checkpoint a run starts from: the user's, or a small one built on the spot."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from models.lora import LoraConfig
from models.processing import ProcessorConfig
from models.tiny import TinyConfig, build_tiny


@dataclass(frozen=True)
class ModelConfig:
    """Which model is trained, and which part of it."""

    path: Path | None = None
    """Directory of a Qwen-VL checkpoint in the published layout; none builds the small model of `tiny`."""
    training: Literal["lora", "full"] = "lora"
    """Train LoRA adapters on a frozen base, or all weights (needed when they start random)."""
    rl_vision: Literal["frozen", "trained"] = "frozen"
    """The vision tower under CAPO, with training full: frozen, its features are computed once a step."""
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


def start_path(folder: Path, config: ModelConfig, corpus: Sequence[str], *, seed: int) -> Path:
    """Directory of the checkpoint to start from; builds the small model in `folder` unless it is there already."""
    if config.path is not None:
        return config.path
    if not folder.exists():
        build_tiny(folder, corpus, config.tiny, seed=seed)
    return folder
