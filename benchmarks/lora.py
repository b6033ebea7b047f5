"""Adapters of one decoder layer in bfloat16: multiplied in float32, in the base's type, and none.

Forward and backward of seven linear layers of a quarter of Qwen2.5-VL-3B's widths on 128 tokens, LoRA rank 8, the base
frozen. A CPU without instructions for bfloat16 takes minutes for the full widths.
"""

import functools
from collections.abc import Callable
from contextlib import nullcontext

import torch
from harness import arguments, compare
from sampler_gap import float32_adapters
from torch import nn

from models.lora import LoraConfig, LoraLinear

HIDDEN, MLP, KEYS, TOKENS = 512, 2752, 64, 128
LAYERS = [
    *((HIDDEN, HIDDEN), (HIDDEN, KEYS), (HIDDEN, KEYS), (HIDDEN, HIDDEN)),  # q, k, v, o
    *((HIDDEN, MLP), (HIDDEN, MLP), (MLP, HIDDEN)),  # gate, up, down
]


def layers(kind: str) -> Callable[[], float]:
    """`kind`: none, float32 or base."""
    torch.manual_seed(0)
    linear = [nn.Linear(*sizes, bias=False, dtype=torch.bfloat16).requires_grad_(False) for sizes in LAYERS]
    if kind != "none":
        linear = [LoraLinear(layer, LoraConfig(), torch.Generator()) for layer in linear]
    inputs = {width: torch.randn(1, TOKENS, width, dtype=torch.bfloat16) for width in (HIDDEN, MLP)}

    def work() -> float:
        with float32_adapters(None) if kind == "float32" else nullcontext():
            given = [inputs[layer_in].clone().requires_grad_() for layer_in, _ in LAYERS]
            total = sum(layer(x).float().square().mean() for layer, x in zip(linear, given, strict=True))
        total.backward()
        return float(total.detach())

    work()
    return work


if __name__ == "__main__":
    options = arguments(__doc__)
    compare(
        "lora",
        {
            "adapters in float32": functools.partial(layers, "float32"),
            "RadFlow: adapters in the base's type": functools.partial(layers, "base"),
            "no adapters": functools.partial(layers, "none"),
        },
        setting=f"seven linear layers, a quarter of the 3B model's widths, {TOKENS} tokens, bfloat16, both passes",
        rounds=options.rounds, threads=options.threads,
    )  # fmt: skip
