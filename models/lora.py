"""LoRA adapters on chosen linear layers: identity at the start, folded into the base at the end."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LoraConfig:
    """Where adapters go and how large they are."""

    rank: int = 8
    """Inner dimension (the paper: 8)."""
    alpha: float = 16.0
    """Adapters are scaled by alpha / rank."""
    targets: str = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    """Regular expression over full module names; it must match the whole name."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(
                f"expected lora.rank of at least 1 and lora.alpha above 0, got {self.rank} and {self.alpha}"
            )


class LoraLinear(nn.Module):
    """y = W x + (alpha / rank) B A x, with W frozen and B = 0 at the start.

    A and B are float32 whatever the base is: small updates would vanish in bf16.

    Source: LoRA, arXiv:2106.09685, section 4.1.
    """

    def __init__(self, base: nn.Linear, config: LoraConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.scale, self.enabled = base.requires_grad_(False), config.alpha / config.rank, True
        bound = 1 / math.sqrt(base.in_features)
        a = torch.empty(config.rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(a.to(base.weight.device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, config.rank, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        if not self.enabled:
            return out
        return out + (self.scale * (x.to(self.lora_a.dtype) @ self.lora_a.t() @ self.lora_b.t())).to(out.dtype)

    def merged(self) -> nn.Linear:
        """The base layer with the adapter folded in."""
        with torch.no_grad():
            weight = self.base.weight.float() + self.scale * self.lora_b @ self.lora_a
            self.base.weight.copy_(weight.to(self.base.weight.dtype))
        return self.base


def add_lora(model: nn.Module, config: LoraConfig, *, seed: int) -> list[str]:
    """Freeze the model and put an adapter on every linear layer that `config.targets` matches.

    Returns:
        Names of the adapted layers.

    Raises:
        ValueError: the pattern matches no linear layer.
    """
    model.requires_grad_(False)
    pattern, generator = re.compile(config.targets), torch.Generator().manual_seed(seed)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and pattern.fullmatch(n)]
    if not names:
        raise ValueError(f"lora.targets {config.targets!r} matches no linear layer of the model")
    for name in names:
        _replace(model, name, LoraLinear(model.get_submodule(name), config, generator))
    return names


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[nn.Module]:
    """The model as it was before its adapters, for the time of a `with`."""
    adapters = [m for m in model.modules() if isinstance(m, LoraLinear)]
    for adapter in adapters:
        adapter.enabled = False
    try:
        yield model
    finally:
        for adapter in adapters:
            adapter.enabled = True


def merge_lora(model: nn.Module) -> None:
    """Fold every adapter into its base layer and remove it; a model without adapters stays as it is."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            _replace(model, name, module.merged())


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
