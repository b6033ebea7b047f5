"""Floating-point operations of a piece of work: torch's counter, with formulas for what it does not know."""

import math
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula, sdpa_backward_flop, sdpa_flop

import capo.logprobs  # noqa: F401  # registers its operators


@register_flop_formula(torch.ops.mkldnn._linear_pointwise)
def _packed_linear(rows: torch.Size, weight: torch.Size, *_: object, out_shape: torch.Size, **__: object) -> int:
    return 2 * math.prod(rows) * out_shape[-1]


@register_flop_formula(torch.ops.capo.linear_logps)
def _linear_logps(hidden: torch.Size, weight: torch.Size, *others: object, **__: object) -> int:
    """Logits, and the mean row of the head if a gradient is needed."""
    needs_slope = others[-1]
    return 2 * hidden[0] * math.prod(weight) * (2 if needs_slope else 1)


@register_flop_formula(torch.ops.capo.linear_logps_head_gradient)
def _head_gradient(_: torch.Size, hidden: torch.Size, weight: torch.Size, *__: object, **___: object) -> int:
    return 4 * hidden[0] * math.prod(weight)


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu)
def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return sdpa_flop(query, key, value)


@register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward)
def _attention_backward(
    gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    return sdpa_backward_flop(gradient, query, key, value)


def gflop(work: Callable[[], object]) -> float:
    """Billions of operations of `work()`, products and attention; it runs once."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9
