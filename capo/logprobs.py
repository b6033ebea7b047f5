"""Log-probabilities of chosen tokens from hidden states and the LM head, in chunks: [N, V] logits are never stored."""

import torch
from torch import Tensor


def linear_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    banned: Tensor | None = None,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution.

        z = hidden weight^T / temperature, -inf where banned;   logp = z[target] - logsumexp(z)

    Args:
        hidden: [N, D], float32 or bf16.
        weight: [V, D].
        targets: [N] int64; never a banned token.
        temperature: the one used when sampling.
        banned: [V] bool, tokens that were masked when sampling.
        chunk: tokens whose logits exist at one time; memory is chunk x V floats.

    Returns:
        logps: [N] float32, differentiable in hidden and weight.
        entropy: [N] float32, in nats, no gradient.
    """
    if hidden.ndim != 2 or targets.shape != hidden.shape[:1]:
        raise ValueError(f"expected hidden [N, D] and targets [N], got {[*hidden.shape]} and {[*targets.shape]}")
    if temperature <= 0:
        raise ValueError(f"expected a temperature above 0, got {temperature}")
    if banned is not None and banned[targets].any():
        token = int(targets[banned[targets]][0])
        raise ValueError(f"target token {token} is banned: its log-probability is -inf; mask it when sampling too")
    return _LinearLogps.apply(hidden, weight, targets, temperature, banned, chunk)


class _LinearLogps(torch.autograd.Function):
    """Keeps only the log-normalisers, and recomputes each chunk of logits in the backward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, banned, chunk):
        logps, entropy, normalisers = [], [], []
        for rows, ids in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logits = _logits(rows, weight, temperature, banned)
            normaliser = logits.logsumexp(-1)
            chosen = logits.gather(1, ids[:, None])[:, 0]
            probabilities = (logits - normaliser[:, None]).exp_()
            # A banned token has probability 0 and logit -inf; their product must be 0, not NaN.
            expected = (probabilities * logits.masked_fill_(probabilities == 0, 0.0)).sum(-1)
            logps.append(chosen - normaliser)
            entropy.append(normaliser - expected)
            normalisers.append(normaliser)
        empty = hidden.new_zeros(0, dtype=torch.float32)
        ctx.save_for_backward(hidden, weight, targets, torch.cat([empty, *normalisers]), banned)
        ctx.temperature, ctx.chunk = temperature, chunk
        entropy = torch.cat([empty, *entropy])
        ctx.mark_non_differentiable(entropy)
        return torch.cat([empty, *logps]), entropy

    @staticmethod
    def backward(ctx, grad_logps, _):
        hidden, weight, targets, normalisers, banned = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        for start in range(0, len(hidden), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logits = _logits(hidden[part], weight, ctx.temperature, banned)
            # d logp / d z = onehot - p
            grad = (logits - normalisers[part, None]).exp_().neg_()
            grad.scatter_add_(1, targets[part, None], torch.ones_like(grad[:, :1]))
            grad.mul_(grad_logps[part, None] / ctx.temperature)
            if needs_hidden:
                grad_hidden[part] = (grad @ weight.to(grad.dtype)).to(hidden.dtype)
            if needs_weight:
                grad_weight.addmm_(grad.t(), hidden[part].to(grad.dtype))
        return grad_hidden, grad_weight.to(weight.dtype) if needs_weight else None, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, temperature: float, banned: Tensor | None) -> Tensor:
    logits = (hidden @ weight.t()).float() / temperature
    return logits if banned is None else logits.masked_fill_(banned, -torch.inf)
