"""LoRA adapters on linear layers, identity at the start and merged in the end; the table of what a run trains."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from radflow.models.qwen_vl import QwenVL, local, whole

LANGUAGE = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
# The families name the layers of an MLP differently: fc1 in Qwen2-VL, gate_proj in Qwen2.5-VL, linear_fc1 in Qwen3-VL.
VISION = r".*visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.((gate|up|down)_proj|(linear_)?fc[12]))"
MERGER = r".*visual\.(merger|deepstack_merger_list\.\d+)\.(mlp\.[02]|linear_fc[12])"
HEAD = "lm_head"
GROUPS = (  # rows of the table of what is trained: title, two parts of the names of its modules
    ("vision attention", "visual.blocks", ".attn"),
    ("vision MLP", "visual.blocks", ".mlp"),
    ("merger", "visual", "merger"),
    ("language attention", "language_model.layers", ".self_attn"),
    ("language MLP", "language_model.layers", ".mlp"),
    ("embeddings", "embed_tokens", ""),
    ("head", "lm_head", ""),
    ("patch embedding, norms", "", ""),
)


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
        if self.rank < 1 or not 0 < self.alpha < math.inf:
            raise ValueError(
                f"expected rank of at least 1 and alpha above 0 and finite, got {self.rank} and {self.alpha}"
            )
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"expected targets to be a regular expression, got {self.targets!r}: {error}") from error

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
        self._copies: list[Tensor] = []  # of A^T and B^T, in the base's type
        self._use_copies = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base(x)
        rows = x.flatten(0, -2)
        return self.add_to(self.base(rows), rows).unflatten(0, x.shape[:-1])

    def add_to(self, product: Tensor, rows: Tensor) -> Tensor:
        """The base's product [N, out] with the adapter's of the same rows [N, in] added, in place."""
        if self._use_copies:
            a, b = self._copies
        else:  # B contiguous: a CPU takes twice as long for its gradient column by column
            a, b = (m.to(rows.dtype) for m in (self.lora_a.t(), self.lora_b.t().contiguous()))
        # Out of place would copy the base's product first, one more kernel per layer and token.
        return product.addmm_(rows @ a, b, alpha=self.scale)

    def fold_into(self, weight: Tensor) -> None:
        """Add the adapter to a copy of the base's weight, [out, in], of a layer that is not sharded."""
        weight.addmm_(self.lora_b, self.lora_a, alpha=self.scale)

    @torch.no_grad()
    def use_copies(self, use: bool) -> None:
        """Multiply with copies of A and B as they are now, cast once, at the same addresses each time."""
        if use and not self._copies:
            self._copies = [m.t().to(self.base.weight.dtype, copy=True) for m in (self.lora_a, self.lora_b)]
        elif use:
            for copied, own in zip(self._copies, (self.lora_a, self.lora_b), strict=True):
                copied.copy_(own.t())
        self._use_copies = use

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """The base with the adapter folded in; added in float32, then rounded to its type.

        Of a sharded layer, whose W and B are cut into the same rows, each rank writes its own; all must call this.
        """
        rows, b = local(self.base.weight).float(), local(self.lora_b)
        local(self.base.weight).copy_(torch.addmm(rows, b, whole(self.lora_a), alpha=self.scale))
        return self.base


def add_lora(policy: QwenVL, config: LoraConfig, *, seed: int) -> list[str]:
    """Freeze the model and put an adapter on every linear layer that `config` names.

    Returns:
        Names of the adapted layers, as transformers' model has them.

    Raises:
        ValueError: a pattern matches no linear layer.
    """
    assert not adapters(policy), "the policy has adapters already; merge them first"
    policy.requires_grad_(False)
    linear = linear_layers(policy)
    for key, pattern, wanted in (
        ("targets", config.targets, True),
        ("vision", VISION, config.vision),
        ("merger", MERGER, config.merger),
    ):
        if wanted and not any(re.fullmatch(pattern, name) for name in linear):
            raise ValueError(
                f"lora.{key}: {pattern!r} matches no linear layer of the model; names look like {list(linear)[-2]}"
            )
    names = match_layers(linear, config.pattern)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        _replace(policy.model, name, LoraLinear(linear[name], config, generator))
    return names


def linear_layers(policy: QwenVL) -> dict[str, nn.Linear]:
    """Every linear layer by its name in transformers' model."""
    return {name: module for name, module in policy.model.named_modules() if isinstance(module, nn.Linear)}


def match_layers(names: Iterable[str], pattern: str) -> list[str]:
    """Those that a regular expression matches whole. Raises ValueError if the head is one of them."""
    chosen = [name for name in names if re.fullmatch(pattern, name)]
    if HEAD in chosen:
        # It may share its weights with the embeddings, and log-probabilities are computed from them in pieces.
        raise ValueError(f"expected targets in decoder and tower, got some that match {HEAD}; leave it out")
    return chosen


def adapters(policy: QwenVL) -> dict[str, LoraLinear]:
    """Every adapted layer by its name in transformers' model."""
    return {name: module for name, module in policy.model.named_modules() if isinstance(module, LoraLinear)}


@contextmanager
def reference(policy: QwenVL) -> Iterator[QwenVL]:
    """The policy without its adapters, for the duration of a `with`: under RL the SFT policy, whose own are merged."""
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
    """Adapters in the base's type for the duration of a `with` in which they do not change, instead of a cast at every
    use, which in generation is every token. Recorded decoding steps of an earlier `with` read the new values."""
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
        _replace(policy.model, name, adapter.merge())


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def group_of(name: str) -> str:
    """The row of a module or parameter of transformers' model."""
    return next(group for group, where, part in GROUPS if where in name and part in name)


def trainable_table(policy: QwenVL) -> str:
    """For each part of the model: its linear layers, those with an adapter, its parameters, those trained and their
    share; in Markdown, without the parts that the model lacks. A tied head counts as embeddings."""
    counts: list[Counter[str]] = [Counter(), Counter(), Counter(), Counter()]
    layers, adapted, base, trained = counts
    for name, module in policy.model.named_modules():
        layers[group_of(name)] += isinstance(module, nn.Linear)
        adapted[group_of(name)] += isinstance(module, LoraLinear)
    for name, parameter in policy.model.named_parameters():
        group = group_of(name)
        trained[group] += parameter.numel() if parameter.requires_grad else 0
        base[group] += 0 if ".lora_" in name else parameter.numel()
    rows = {group: [counter[group] for counter in counts] for group, *_ in GROUPS if base[group]}
    rows["all"] = [counter.total() for counter in counts]
    head = "| part | linear layers | with adapter | parameters | trained | % |\n| --- | --- | --- | --- | --- | --- |\n"
    return head + "\n".join(
        f"| {title} | {n} | {m} | {size:,} | {count:,} | {100 * count / size:.3f} |"
        for title, (n, m, size, count) in rows.items()
    )
