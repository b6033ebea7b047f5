"""LoRA adapters on chosen linear layers: identity at the start, folded into the base for a while or for good."""

import copy
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.qwen_vl import QwenVL, local, whole

LANGUAGE = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
# The families name the layers of an MLP differently: fc1 in Qwen2-VL, gate_proj in Qwen2.5-VL, linear_fc1 in Qwen3-VL.
VISION = r".*visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.((gate|up|down)_proj|(linear_)?fc[12]))"
MERGER = r".*visual\.(merger|deepstack_merger_list\.\d+)\.(mlp\.[02]|linear_fc[12])"


@dataclass(frozen=True)
class LoraConfig:
    """Where adapters go and how large they are."""

    rank: int = 8
    """Inner dimension (the paper: 8)."""
    alpha: float = 16.0
    """Adapters are scaled by alpha / rank."""
    targets: str = LANGUAGE
    """Regular expression over the module names of transformers' model; it must match the whole name."""
    vision: bool = False
    """Adapters on attention and MLP of the vision blocks too."""
    merger: bool = False
    """Adapters on the layers between vision tower and language model too (Qwen3-VL: its DeepStack mergers as well)."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(
                f"expected lora.rank of at least 1 and lora.alpha above 0, got {self.rank} and {self.alpha}"
            )
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(
                f"expected lora.targets to be a regular expression, got {self.targets!r}: {error}"
            ) from error

    @property
    def pattern(self) -> str:
        """One regular expression for all layers with an adapter, as PEFT takes one for `target_modules`."""
        chosen = [self.targets, *[VISION] * self.vision, *[MERGER] * self.merger]
        return chosen[0] if len(chosen) == 1 else "|".join(f"(?:{each})" for each in chosen)


class LoraLinear(nn.Module):
    """y = W x + (alpha / rank) B A x, with W frozen and B = 0 at the start.

    A and B are float32 whatever the base is: small updates would vanish in bf16. They are multiplied in the type of the
    input, as the base is.

    Source: LoRA, arXiv:2106.09685, section 4.1.
    """

    def __init__(self, base: nn.Linear, config: LoraConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.base, self.scale, self.enabled = base.requires_grad_(False), config.alpha / config.rank, True
        bound = 1 / math.sqrt(base.in_features)
        a = torch.empty(config.rank, base.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(a.to(base.weight.device))
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, config.rank, device=base.weight.device))
        self._copies: tuple[Tensor, Tensor] | None = None  # of A^T and B^T, in the base's type
        self._use_copies = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base(x)
        a, b = self._copies if self._use_copies else (m.t().to(x.dtype) for m in (self.lora_a, self.lora_b))
        rows = x.flatten(0, -2)
        # In place: out of place would copy the base's product first, one more kernel per layer and token.
        return self.base(rows).addmm_(rows @ a, b, alpha=self.scale).unflatten(0, x.shape[:-1])

    @torch.no_grad()
    def use_copies(self, use: bool) -> None:
        """Multiply with copies of A and B as they are now, cast once, at the same addresses each time."""
        if use and self._copies is None:
            self._copies = tuple(m.t().to(self.base.weight.dtype, copy=True) for m in (self.lora_a, self.lora_b))
        elif use:
            for copied, own in zip(self._copies, (self.lora_a, self.lora_b), strict=True):
                copied.copy_(own.t())
        self._use_copies = use

    @torch.no_grad()
    def merge_into(self, layer: nn.Linear) -> nn.Linear:
        """Write the base weight with the adapter folded in to `layer`; added in float32, then rounded to its type.

        Of a sharded layer, whose W and B are cut into the same rows, each rank writes its own; all must call this.
        """
        rows, b = local(self.base.weight).float(), local(self.lora_b)
        local(layer.weight).copy_(torch.addmm(rows, b, whole(self.lora_a), alpha=self.scale))
        return layer


def add_lora(policy: QwenVL, config: LoraConfig, *, seed: int) -> list[str]:
    """Freeze the model and put an adapter on every linear layer that `config` names.

    Returns:
        Names of the adapted layers, as transformers' model has them.

    Raises:
        ValueError: a pattern matches no linear layer.
    """
    assert not adapters(policy), "the policy has adapters already; merge them first"
    policy.requires_grad_(False)
    linear = [name for name, module in policy.model.named_modules() if isinstance(module, nn.Linear)]
    for key, pattern, wanted in (
        ("targets", config.targets, True), ("vision", VISION, config.vision), ("merger", MERGER, config.merger),
    ):  # fmt: skip
        if wanted and not any(re.fullmatch(pattern, name) for name in linear):
            raise ValueError(
                f"lora.{key}: {pattern!r} matches no linear layer of the model; names look like {linear[-2]}"
            )
    names = [name for name in linear if re.fullmatch(config.pattern, name)]
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        _replace(policy.model, name, LoraLinear(policy.model.get_submodule(name), config, generator))
    return names


def adapters(policy: QwenVL) -> dict[str, LoraLinear]:
    """Every adapted layer by its name in transformers' model."""
    return {name: module for name, module in policy.model.named_modules() if isinstance(module, LoraLinear)}


@contextmanager
def reference(policy: QwenVL) -> Iterator[QwenVL]:
    """The policy as it was before its adapters, for the time of a `with`.

    Under RL that is the SFT policy, because the adapters of SFT are merged by then.
    """
    switched = [adapter for adapter in adapters(policy).values() if adapter.enabled]
    for adapter in switched:
        adapter.enabled = False
    try:
        yield policy
    finally:
        for adapter in switched:
            adapter.enabled = True


@contextmanager
def cast_once(policy: QwenVL) -> Iterator[QwenVL]:
    """Adapters in the base's type for the time of a `with` in which they do not change, instead of a cast at every use:
    generation uses each of them at every token. Recorded decoding steps of an earlier `with` read the new values."""
    held = adapters(policy).values()
    try:
        for adapter in held:
            adapter.use_copies(True)
        yield policy
    finally:
        for adapter in held:
            adapter.use_copies(False)


def merge_lora(policy: QwenVL) -> None:
    """Fold every adapter into its base layer and remove it, for good; a model without adapters stays as it is."""
    for name, adapter in adapters(policy).items():
        _replace(policy.model, name, adapter.merge_into(adapter.base))


@contextmanager
def merged(policy: QwenVL) -> Iterator[QwenVL]:
    """Adapters folded in for the time of a `with`: inside, the model has the layers and names of one without adapters.

    The merged weights are copies and the base is never written, because W + D - D is not W once it is rounded (in
    bfloat16 the third digit would change). It costs the memory of the adapted weights a second time.
    """
    held = adapters(policy)
    try:
        for name, adapter in held.items():
            _replace(policy.model, name, adapter.merge_into(copy.deepcopy(adapter.base)))
        yield policy
    finally:
        for name, adapter in held.items():
            _replace(policy.model, name, adapter)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
