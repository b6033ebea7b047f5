"""RMSNorm and rotary embedding with their gradients written out.

Of transformers' own, autograd keeps one state more per token and norm, and passes over memory about twice as often.
"""

from typing import Any

import torch
from torch import Tensor, nn


class RmsNorm(nn.Module):
    """RMSNorm with weight and epsilon of transformers' module `norm`."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[.., D] -> [.., D]."""
        return _Normalise.apply(hidden_states, self.weight, self.variance_epsilon)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        full = states.float()
        mean_square = torch.linalg.vector_norm(full, dim=-1, keepdim=True).square_().div_(len(weight))
        scale = mean_square.add_(epsilon).rsqrt_()
        normed = (full * scale).to(states.dtype)
        ctx.save_for_backward(normed, scale, weight)
        return weight * normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        normed, scale, weight = (each.float() for each in ctx.saved_tensors)
        grad = grad.float()
        products = grad * normed
        of_weight = products.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        projection = (products @ weight)[..., None] / len(weight)
        return torch.addcmul(grad * weight, normed, projection, value=-1).mul_(scale), of_weight, None


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of queries and keys, in float32: [.., d] of any type -> the same.

    `cos` and `sin` broadcast to [.., d]; the two halves of their last dimension are equal.
    """
    rotated: Tensor = _Rotate.apply(states, cos, sin)
    return rotated


class _Rotate(torch.autograd.Function):
    """Its gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(states, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, -sin), None, None


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half, full = states.shape[-1] // 2, states.float()
    first, second = full.split(half, -1)
    rotated = full * cos
    rotated[..., :half].addcmul_(second, sin[..., :half], value=-1)
    rotated[..., half:].addcmul_(first, sin[..., :half])
    return rotated.to(states.dtype)
