"""KL(policy || reference): estimates from log-probabilities of sampled tokens, and the exact one from hidden states.

Every estimator gives [B, T], 0 outside the mask, in the notation l policy, q reference, log-probabilities of the same
temperature-scaled distribution with the same tokens banned. Pass the result to a loss as `kl`.

Source of k1 to k3: Schulman, "Approximating KL divergence", 2020.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from capo.ratio import log_ratio, token_ratio
from capo.vocabulary import check_head, logit_tiles, product, row_blocks, tile_width, working_dtype


def k1(logps: Tensor, reference_logps: Tensor, mask: Tensor) -> Tensor:
    """l - q: unbiased, of either sign. As a loss term its gradient is 0 in expectation: use it in the reward."""
    return log_ratio(logps, reference_logps, mask)


def k2(logps: Tensor, reference_logps: Tensor, mask: Tensor) -> Tensor:
    """(l - q)^2 / 2: biased, but its gradient is unbiased for the KL's when the tokens are the policy's own."""
    return log_ratio(logps, reference_logps, mask).square() / 2


def k3(logps: Tensor, reference_logps: Tensor, mask: Tensor) -> Tensor:
    """exp(q - l) - (q - l) - 1: unbiased, never negative, 0 where the two agree.

    No clamp, and not multiplied by the importance ratio: the form of the paper and of GRPO (arXiv:2402.03300, eq. 4).
    """
    difference = -log_ratio(logps, reference_logps, mask)
    return difference.exp() - difference - 1


def corrected_k3(logps: Tensor, behaviour_logps: Tensor, reference_logps: Tensor, mask: Tensor) -> Tensor:
    """k3 times the importance ratio r of the token: unbiased off-policy too, and in its gradient.

    The ratio is not detached: d(r k3)/dl = r (k3 + 1 - exp(q - l)) = r (l - q), whose mean is the KL's gradient.

    Source: DeepSeek-V3.2, arXiv:2512.02556, section 3.1.
    """
    return token_ratio(logps, behaviour_logps, mask) * k3(logps, reference_logps, mask)


def linear_kl(
    hidden: Tensor,
    weight: Tensor,
    reference_hidden: Tensor,
    reference_weight: Tensor,
    *,
    temperature: float = 1.0,
    banned: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Exact KL(policy || reference) over the whole vocabulary at each position, without [N, V] logits.

        KL = sum_v p_v (log p_v - log q_v),   log p = log_softmax(hidden weight^T / temperature), q likewise

    No sampling noise, at the price of both heads over the whole vocabulary. Positions and lengths are the caller's:
    put the [N] values back where their tokens stand (`Layout.pad`) to pass them to a loss as `kl`.

    Args:
        hidden: [N, D], float64, float32, bf16 or fp16 (accumulated in float32).
        weight: [V, D].
        reference_hidden, reference_weight: [N, E] and [V, E], of the frozen reference; no gradient.
        temperature, banned: [V] bool; as when sampling. A banned token has probability 0 under both.
        chunk: columns of the vocabulary in a tile; by default what a tile needs fits 16 MiB.

    Returns:
        [N] float32 (float64 for float64), differentiable once, in hidden and weight.

    Raises:
        ValueError: a shape is not as above.
    """
    check_head(hidden, weight, temperature, banned, chunk)
    check_head(reference_hidden, reference_weight, temperature, banned, chunk)
    if len(hidden) != len(reference_hidden) or len(weight) != len(reference_weight):
        raise ValueError(
            f"expected the reference to have {len(hidden)} positions and {len(weight)} tokens as the policy does, "
            f"got {len(reference_hidden)} and {len(reference_weight)}"
        )
    return _LinearKl.apply(
        hidden, weight, reference_hidden.detach(), reference_weight.detach(), temperature, banned, chunk
    )


class _LinearKl(torch.autograd.Function):
    """Saves the slope [N, D] of each KL in its hidden state; a trained head computes the tiles again."""

    @staticmethod
    def forward(ctx, hidden, weight, reference_hidden, reference_weight, temperature, banned, chunk):
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        heads = (hidden, weight, reference_hidden, reference_weight)
        divergence, normalisers, excess = (hidden.new_empty(len(hidden), dtype=working_dtype(hidden)) for _ in range(3))
        slope = torch.empty_like(hidden) if needs_hidden else None
        options = {"temperature": temperature, "banned": banned, "chunk": chunk}
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in row_blocks(len(hidden)):
                normalisers[rows], reference_normaliser, excess[rows], direction = _compare(
                    *_rows_of(heads, rows), needs_hidden, options
                )
                divergence[rows] = excess[rows] - normalisers[rows] + reference_normaliser
                if needs_hidden:
                    slope[rows] = direction.div_(temperature).to(slope.dtype)
        ctx.save_for_backward(slope, *((*heads, normalisers, excess, banned) if needs_weight else ()))
        ctx.options = options
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        slope, *for_weight = ctx.saved_tensors
        grad_hidden = None if slope is None else (slope * grad[:, None]).to(slope.dtype)
        grad_weight = _weight_gradient(grad, *for_weight, ctx.options) if for_weight else None
        return grad_hidden, grad_weight, None, None, None, None, None


def _rows_of(heads: tuple[Tensor, Tensor, Tensor, Tensor], rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden, weight, reference_hidden, reference_weight = heads
    return hidden[rows], weight, reference_hidden[rows], reference_weight


def _paired_tiles(hidden: Tensor, weight: Tensor, reference_hidden: Tensor, reference_weight: Tensor, options: dict):
    """The same columns of both heads: (columns, logits, reference logits, rows of weight)."""
    heads = ((hidden, weight), (reference_hidden, reference_weight))
    width = options["chunk"] or min(tile_width(len(states), head, working_dtype(states)) for states, head in heads)
    mine, theirs = (logit_tiles(states, head, **{**options, "chunk": width}) for states, head in heads)
    for (columns, logits, tile), (_, reference_logits, _) in zip(mine, theirs, strict=True):
        yield columns, logits, reference_logits.to(logits.dtype), tile


def _compare(
    hidden: Tensor,
    weight: Tensor,
    reference_hidden: Tensor,
    reference_weight: Tensor,
    needs_direction: bool,
    options: dict,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One pass over both heads.

    Returns:
        both logsumexps and the mean excess E_p[z - z_ref], [R] each; E_p[(z - z_ref - mean) row of weight], [R, D].
    """
    dtype = working_dtype(hidden)
    total, reference_total, excess = (hidden.new_zeros(len(hidden), dtype=dtype) for _ in range(3))
    highest, reference_highest = torch.full_like(total, -torch.inf), torch.full_like(total, -torch.inf)
    mean, tilted = (hidden.new_zeros(hidden.shape, dtype=dtype) for _ in range(2))
    for _, logits, reference_logits, tile in _paired_tiles(hidden, weight, reference_hidden, reference_weight, options):
        higher = torch.maximum(highest, logits.amax(1))
        reference_higher = torch.maximum(reference_highest, reference_logits.amax(1))
        shrink = (highest - higher).exp()
        reference_total *= (reference_highest - reference_higher).exp()
        reference_total += (reference_logits - reference_higher[:, None]).exp_().sum(1)
        gap = reference_logits.neg_().add_(logits)
        weights = logits.sub_(higher[:, None]).exp_()
        total = total * shrink + weights.sum(1)
        if needs_direction:
            mean = mean.mul_(shrink[:, None]).add_(product(weights, tile, dtype))
        tilt = weights.mul_(gap)
        excess = excess * shrink + tilt.sum(1)
        if needs_direction:
            tilted = tilted.mul_(shrink[:, None]).add_(product(tilt, tile, dtype))
        highest, reference_highest = higher, reference_higher
    excess /= total
    direction = tilted.sub_(mean.mul_(excess[:, None])).div_(total[:, None]) if needs_direction else None
    return highest + total.log(), reference_highest + reference_total.log(), excess, direction


def _weight_gradient(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    reference_hidden: Tensor,
    reference_weight: Tensor,
    normalisers: Tensor,
    excess: Tensor,
    banned: Tensor | None,
    options: dict,
) -> Tensor:
    """d KL / d z = p (z - z_ref - its mean), tile by tile, times hidden."""
    dtype = working_dtype(hidden)
    gradient = torch.zeros_like(weight, dtype=dtype)
    heads = (hidden, weight, reference_hidden, reference_weight)
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in row_blocks(len(hidden)):
            scale = (grad[rows] / options["temperature"])[:, None]
            for columns, logits, reference_logits, _ in _paired_tiles(*_rows_of(heads, rows), options):
                gap = reference_logits.neg_().add_(logits).sub_(excess[rows, None])
                slope = logits.sub_(normalisers[rows, None]).exp_().mul_(gap).mul_(scale)
                gradient[columns] += product(slope.t(), hidden[rows], dtype)
    return gradient.to(weight.dtype)
