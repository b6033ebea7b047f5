"""The checkpoint a run starts from: the user's, or a small one with random weights."""

import os
import sys
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
    """The GPU of this process if there is one, else the CPU; it warns of a GPU that torch cannot use."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    gpu = find_gpu(os.environ.get("CUDA_VISIBLE_DEVICES"))
    if gpu is not None and os.environ.get("LOCAL_RANK", "0") == "0":
        silence = "set CUDA_VISIBLE_DEVICES to nothing if the CPU is meant"
        print(f"warning: this runs on the CPU, although there is {gpu}: {explain_no_gpu()}; {silence}", file=sys.stderr)
    return torch.device("cpu")


def find_gpu(visible: str | None, *, root: Path = Path("/")) -> str | None:
    """The GPU that the driver's files or the environment show; None also if CUDA_VISIBLE_DEVICES hides it."""
    if visible in ("", "-1"):
        return None
    files = {
        "an NVIDIA GPU": ("dev/nvidia[0-9]*", "proc/driver/nvidia/gpus/*"),
        "an AMD GPU": ("dev/kfd",),
    }
    found = [gpu for gpu, patterns in files.items() if any(any(root.glob(pattern)) for pattern in patterns)]
    if torch.backends.mps.is_available():
        found.append("an Apple GPU")
    if visible is not None:
        found.append(f"CUDA_VISIBLE_DEVICES={visible}")
    return found[0] if found else None


def explain_no_gpu() -> str:
    """Why torch uses no GPU, in its own words, and what to do."""
    if torch.version.cuda is None and torch.version.hip is None:
        advice = "install a build for the GPU, see https://pytorch.org/get-started/locally"
        return f"torch {torch.__version__} computes on CPUs only; {advice}"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
    else:
        reason = "it sees none"
    return (
        f"torch {torch.__version__} cannot use it ({reason}); repair the driver, or install the build of torch for it"
    )
