"""FlexAttention as training calls it against a dense mask: values, gradients, and how often it is compiled."""

import itertools
from collections import Counter
from dataclasses import dataclass

import torch
from gpu import work
from gpu.report import Bar, Report
from gpu.runner import Setting
from torch import Tensor, nn
from torch._dynamo.utils import get_compilation_metrics
from torch.nn.attention.flex_attention import BlockMask
from toy_policy import TextPrompt

from capo.packing import Layout
from radflow.models.layers import attend

LENGTHS = 20
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
GRAPHS = 8  # Dynamo compiles one function this often and then runs it uncompiled


@dataclass(frozen=True)
class Shape:
    """Of one layer's attention."""

    heads: int
    kv_heads: int
    size: int


# The demo's heads, those of other small models, and those of the published ones.
SHAPES = (Shape(4, 2, 32), Shape(4, 2, 48), Shape(16, 2, 128))


class Layer(nn.Module):
    """What transformers' attention functions read of the layer that calls them."""

    is_causal = True

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.num_key_value_groups = shape.heads // shape.kv_heads


def compare(setting: Setting, report: Report) -> None:
    device = work.start(setting)
    gradients = not setting.small  # FlexAttention has no backward pass on a CPU
    layouts = [layout(number, device, unit=3 if setting.small else 40) for number in range(LENGTHS)]
    masks = [each.block_mask for each in layouts]
    lengths = [each.num_tokens for each in layouts]
    report.ran(
        f"layouts of {min(lengths)} to {max(lengths)} tokens, three reports each, head sizes "
        f"{', '.join(str(shape.size) for shape in SHAPES)}, {'with' if gradients else 'without'} gradients; "
        "errors as shares of the largest value, against the dense mask in float64"
    )
    for dtype, limit in LIMITS.items():
        worst: dict[str, float] = {}
        for (number, shape), index in itertools.product(enumerate(SHAPES), range(LENGTHS)):
            if setting.small and index % len(SHAPES) != number:
                continue  # each length with one head size
            dense, mask = layouts[index].attention.dense, masks[index]
            for name, error in errors(shape, dense, mask, dtype, gradients=gradients).items():
                # `max` would drop a NaN that comes second
                worst[name] = max(worst.get(name, 0.0), error) if error == error else error
        for name, error in worst.items():
            bar = Bar(at_most=limit) if name.startswith("flex") else None
            report.figure(f"{str(dtype).removeprefix('torch.')}, {name}", error, bar)
    compiled = Counter(metrics.co_name for metrics in get_compilation_metrics() if metrics.co_name)
    # On a CPU nothing is compiled by training: what is counted there are traces of FlexAttention's definition.
    bar = None if setting.small else Bar(at_most=GRAPHS)
    report.figure("graphs of one function", max(compiled.values(), default=0), bar)
    report.figure("graphs by function", ", ".join(f"{name} {count}" for name, count in compiled.items()) or "none")


def layout(number: int, device: torch.device, *, unit: int) -> Layout:
    """One study of a length that no other has; the lengths of its reports differ."""
    prompt = TextPrompt.of("text", unit + (unit + 3) * number)
    lengths = [unit // 2 + number, unit + 2 * number, unit // 3 + 3 * number]
    return work.layout_of([prompt], [work.random_reports(97, lengths)], device)


def errors(shape: Shape, dense: Tensor, block: BlockMask, dtype: torch.dtype, *, gradients: bool) -> dict[str, float]:
    """Of output and gradients, by the way of computing them; the two masks are of one layout."""
    generator, device = torch.Generator().manual_seed(0), dense.device
    length, heads = dense.shape[-1], (shape.heads, shape.kv_heads, shape.kv_heads)
    inputs = [torch.randn(1, n, length, shape.size, generator=generator).to(device, dtype) for n in heads]
    slope = torch.randn(1, length, shape.heads, shape.size, generator=generator).to(device, dtype)
    truth = results(shape, [x.double() for x in inputs], slope.double(), dense, gradients)
    found = {}
    for name, mask in (("flex", block), ("dense", dense)):
        values = results(shape, inputs, slope, mask, gradients)
        shares = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(values, truth, strict=True)]
        found[f"{name} output"] = shares[0]
        if gradients:
            found[f"{name} gradients"] = float(torch.tensor(shares[1:]).max())  # NaN where one of them is
    return found


def results(
    shape: Shape, inputs: list[Tensor], slope: Tensor, mask: Tensor | BlockMask, gradients: bool
) -> list[Tensor]:
    """The output, and the gradients of query, key and value, in float64."""
    inputs, length = [x.detach().requires_grad_(gradients) for x in inputs], slope.shape[1]
    # The length of a block mask is one of whole blocks: what is added is padding.
    filled = [nn.functional.pad(x, (0, 0, 0, mask.shape[-1] - length)) for x in inputs]
    output = attend(Layer(shape), *filled, mask, scaling=shape.size**-0.5, dropout=0.0)[0][:, :length]
    found = [output.detach(), *(torch.autograd.grad(output, inputs, slope) if gradients else ())]
    return [value.double() for value in found]
