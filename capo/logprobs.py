"""Log-probabilities of chosen tokens from hidden states and the LM head, without [N, V] logits."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from capo.vocabulary import check_head, logit_tiles, product, row_blocks, working_dtype


def linear_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    banned: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution.

        z = hidden weight^T / temperature, -inf where banned;   logp = z[target] - logsumexp(z)

    The vocabulary is read once in tiles, with a running maximum, as flash attention reads its keys. The mean row of
    `weight` under each distribution is accumulated on the way: it is all that the gradient of `hidden` needs, so
    with a frozen head forward and backward together cost two matrix products, as many as with all logits stored.
    A trained head costs two more, because its gradient computes the tiles again.

    Args:
        hidden: [N, D], float64, float32, bf16 or fp16. bf16 and fp16 are accumulated in float32.
        weight: [V, D].
        targets: [N] int64; never a banned token.
        temperature: the one used when sampling.
        banned: [V] bool, tokens that were masked when sampling.
        chunk: columns of the vocabulary in a tile; by default what a tile needs fits 16 MiB. It changes no result.

    Returns:
        logps: [N] float32 (float64 for float64), differentiable once, in hidden and weight.
        entropy: [N] likewise, in nats, no gradient.

    Raises:
        ValueError: a shape is not as above, or a target is banned or outside the vocabulary.

    Source: online softmax, arXiv:1805.02867; arXiv:2205.14135.
    """
    check_head(hidden, weight, temperature, banned, chunk)
    _check_targets(hidden, weight, targets, banned)
    return _LinearLogps.apply(hidden, weight, targets, temperature, banned, chunk)


class _LinearLogps(torch.autograd.Function):
    """Saves [N, D] and [N]: the gradient of each log-probability in its hidden state, and the log-normalisers."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, banned, chunk):
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        logps, normalisers, entropy = (hidden.new_empty(len(hidden), dtype=working_dtype(hidden)) for _ in range(3))
        slope = torch.empty_like(hidden) if needs_hidden else None
        options = {"temperature": temperature, "banned": banned, "chunk": chunk}
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in row_blocks(len(hidden)):
                chosen, normalisers[rows], energy, mean = _read(
                    hidden[rows], weight, targets[rows], needs_hidden, options
                )
                logps[rows] = chosen - normalisers[rows]
                entropy[rows] = normalisers[rows] - energy
                if needs_hidden:
                    slope[rows] = mean.neg_().add_(weight[targets[rows]]).div_(temperature).to(slope.dtype)
        ctx.save_for_backward(slope, *((hidden, weight, targets, normalisers, banned) if needs_weight else ()))
        ctx.options = options
        ctx.mark_non_differentiable(entropy)
        return logps, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logps, _):
        slope, *for_weight = ctx.saved_tensors
        grad_hidden = None if slope is None else (slope * grad_logps[:, None]).to(slope.dtype)
        grad_weight = _weight_gradient(grad_logps, *for_weight, ctx.options) if for_weight else None
        return grad_hidden, grad_weight, None, None, None, None


def _read(
    hidden: Tensor, weight: Tensor, targets: Tensor, needs_mean: bool, options: dict
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One pass over the vocabulary: target logit, logsumexp, mean logit [R] each; mean row of weight [R, D]."""
    dtype = working_dtype(hidden)
    chosen, total, energy = (hidden.new_zeros(len(hidden), dtype=dtype) for _ in range(3))
    highest = torch.full_like(total, -torch.inf)
    mean = hidden.new_zeros(hidden.shape, dtype=dtype) if needs_mean else None
    space = None
    for columns, logits, tile in logit_tiles(hidden, weight, **options):
        place = targets - columns.start
        inside = (place >= 0) & (place < logits.shape[1])
        found = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        chosen = torch.where(inside, found, chosen)
        higher = torch.maximum(highest, logits.amax(1))
        shrink = (highest - higher).exp()
        space = torch.empty_like(logits) if space is None else space
        weights = torch.sub(logits, higher[:, None], out=space.view(-1)[: logits.numel()].view_as(logits)).exp_()
        total = total * shrink + weights.sum(1)
        if needs_mean:
            mean = mean.mul_(shrink[:, None]).add_(product(weights, tile, dtype))
        energy = energy * shrink + logits.mul_(weights).sum(1)
        highest = higher
    if needs_mean:
        mean /= total[:, None]
    return chosen, highest + total.log(), energy / total, mean


def _weight_gradient(
    grad_logps: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    normalisers: Tensor,
    banned: Tensor | None,
    options: dict,
) -> Tensor:
    """d logp / d z = onehot - p, tile by tile, times hidden."""
    dtype = working_dtype(hidden)
    gradient = torch.zeros_like(weight, dtype=dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in row_blocks(len(hidden)):
            scale = grad_logps[rows] / options["temperature"]
            for columns, logits, _ in logit_tiles(hidden[rows], weight, **options):
                slope = (logits - normalisers[rows, None]).exp_().mul_(-scale[:, None])
                gradient[columns] += product(slope.t(), hidden[rows], dtype)
            gradient.index_add_(0, targets[rows], hidden[rows].to(dtype) * scale[:, None])
    return gradient.to(weight.dtype)


def _check_targets(hidden: Tensor, weight: Tensor, targets: Tensor, banned: Tensor | None) -> None:
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"expected targets as int64 [N] with N = {len(hidden)}, got {targets.dtype} {[*targets.shape]}"
        )
    outside = (targets < 0) | (targets >= len(weight))
    bad = outside if banned is None else outside | banned[targets.clamp(0, len(weight) - 1)]
    if bad.any():
        token = int(targets[bad][0])
        if not 0 <= token < len(weight):
            raise ValueError(f"expected targets in [0, {len(weight)}), got {token}; mask padding before calling")
        raise ValueError(f"target token {token} is banned: its log-probability is -inf; ban it when sampling too")
