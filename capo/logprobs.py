"""Log-probabilities of chosen tokens from hidden states and the LM head, without storing [N, V] logits."""

from collections.abc import Callable, Iterator
from math import inf
from typing import Any, NoReturn

import torch
from torch import Tensor

# Temporary memory of a tile: small enough for a CPU's cache, and on a GPU tens of thousands of columns for a GEMM.
TILE_BYTES = {"cpu": 8 * 2**20, "cuda": 512 * 2**20}
ALIGNED = 64  # columns; a CPU multiplies up to a third slower if the rows of logits do not begin on a cache line
MAX_ROWS = 2048  # hidden states per GEMM: enough to keep it busy
SUPPRESSED_LOGIT = -1e30  # finite: in a tile of suppressed tokens only, -inf - (-inf) would be NaN


def linear_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    suppressed: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution.

        z = (hidden weight^T + bias) / temperature, -inf where suppressed;   logp = z[target] - logsumexp(z)

    The vocabulary is read once in tiles, with a running maximum, as flash attention reads keys. The mean row of
    `weight` under each distribution is accumulated on the way. The gradient of `hidden` needs only that, so that with
    a frozen head forward and backward cost two matrix products. A trained head costs two more.

    torch.compile sees one operator, torch.func.grad and vmap work, and nothing is read back from a GPU.

    Args:
        hidden: [N, D], float64, float32, bf16 or fp16. bf16 and fp16 are accumulated in float32.
        weight: [V, D].
        targets: [N] int64; never a suppressed token.
        bias: [V], of the head.
        temperature: the one used when sampling.
        suppressed: [V] bool, tokens that were masked when sampling.
        chunk: vocabulary columns per tile; by default a tile fits TILE_BYTES. Does not change the result.

    Returns:
        logps: [N] float32 (float64 for float64), differentiable once, in hidden, weight and bias.
        entropy: [N] likewise, in nats, no gradient.

    Raises:
        ValueError: a shape is not as above, or a target is suppressed or outside the vocabulary.
        RuntimeError: such a target on another device than a CPU, which reports it asynchronously; second derivatives.

    Source: online softmax, arXiv:1805.02867; arXiv:2205.14135.
    """
    check_head(hidden, weight, bias, temperature, suppressed, chunk)
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"expected targets int64 [{len(hidden)}], got {targets.dtype} {[*targets.shape]}")
    # A tensor in vmap does not say whether it needs a gradient.
    needs_slope = torch.is_grad_enabled() and (hidden.requires_grad or torch._C._are_functorch_transforms_active())
    inputs = hidden, weight, bias, targets, float(temperature), suppressed, chunk, needs_slope
    logps, entropy, _, _ = _LinearLogps.apply(*inputs)  # type: ignore[no-untyped-call]
    return logps, entropy


@torch.library.custom_op("capo::linear_logps", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    temperature: float,
    suppressed: Tensor | None,
    chunk: int | None,
    needs_slope: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logps, entropy and logsumexp [N]; the gradient of each log-probability in its hidden state [N, D], or [0]."""
    _check_targets(weight, targets, suppressed)
    options: dict[str, Any] = {"bias": bias, "temperature": temperature, "suppressed": suppressed, "chunk": chunk}
    logps, entropy, normalisers, slope = _outputs(hidden, needs_slope)
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in row_blocks(len(hidden)):
            read = _read(hidden[rows], weight, targets[rows], needs_slope, options)
            chosen, normalisers[rows], energy, mean = read
            logps[rows] = chosen - normalisers[rows]
            entropy[rows] = normalisers[rows] - energy
            if mean is not None:
                slope[rows] = mean.neg_().add_(weight[targets[rows]]).div_(temperature).to(slope.dtype)
    return logps, entropy, normalisers, slope


@_forward.register_fake
def _(hidden: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(hidden, others[-1])


def _outputs(hidden: Tensor, needs_slope: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logps, entropy, normalisers = (hidden.new_empty(hidden.shape[0], dtype=working_dtype(hidden)) for _ in range(3))
    return logps, entropy, normalisers, hidden.new_empty(hidden.shape if needs_slope else 0)


class _LinearLogps(torch.autograd.Function):
    """Saves [N, D], the gradient of each log-probability in its hidden state; for a trained head its inputs too.

    Both passes are opaque operators, whose loops over tiles torch.compile does not unroll. Not `register_autograd`:
    torch.func refuses what it makes.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Any:
        return _forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        hidden, weight, bias, targets, ctx.temperature, suppressed, ctx.chunk, _ = inputs
        _, entropy, normalisers, slope = output
        trained = any(ctx.needs_input_grad[1:3])
        ctx.save_for_backward(slope, *((hidden, weight, bias, targets, normalisers, suppressed) if trained else ()))
        ctx.mark_non_differentiable(entropy, normalisers)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        # Dynamo gives every output a gradient and nests no Function; AOTAutograd refuses second derivatives itself.
        compiling = torch.compiler.is_compiling()
        if others[-1] is not None and not compiling:
            _differentiable_once()
        if grad_logps is None:
            return (None,) * 8
        slope, *head = ctx.saved_tensors
        needs_hidden, *needs_head = ctx.needs_input_grad[:3]
        grad_hidden = (slope * grad_logps[:, None]).to(slope.dtype) if needs_hidden else None
        inputs = grad_logps, *head, ctx.temperature, ctx.chunk, *needs_head
        head_gradient: Callable[..., tuple[Tensor, Tensor]] = _head_gradient if compiling else _HeadGradient.apply
        grads = head_gradient(*inputs) if head else (None, None)
        grad_weight, grad_bias = (grad if needed else None for grad, needed in zip(grads, needs_head, strict=True))
        return grad_hidden, grad_weight, grad_bias, *(None,) * 5


class _HeadGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> Any:
        return _head_gradient(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:
        _differentiable_once()


def _differentiable_once() -> NoReturn:
    raise RuntimeError("linear_logps is differentiable once; for second derivatives compute all logits")


@torch.library.custom_op("capo::linear_logps_head_gradient", mutates_args=())
def _head_gradient(
    grad_logps: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    normalisers: Tensor,
    suppressed: Tensor | None,
    temperature: float,
    chunk: int | None,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor]:
    """d logp / d z = onehot - p, tile by tile, times hidden [V, D], and summed [V]; what is not needed is [0]."""
    dtype = working_dtype(hidden)
    grad_weight, grad_bias = _head_outputs(weight, dtype, needs_weight, needs_bias)
    options: dict[str, Any] = {"bias": bias, "temperature": temperature, "suppressed": suppressed, "chunk": chunk}
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in row_blocks(len(hidden)):
            scale = grad_logps[rows] / temperature
            for columns, logits, _ in logit_tiles(hidden[rows], weight, **options):
                slope = (logits - normalisers[rows, None]).exp_().mul_(-scale[:, None])
                if needs_weight:
                    grad_weight[columns] += product(slope.t(), hidden[rows], dtype)
                if needs_bias:
                    grad_bias[columns] += slope.sum(0)
            if needs_weight:
                add_at(grad_weight, targets[rows], hidden[rows].to(dtype) * scale[:, None])
            if needs_bias:
                add_at(grad_bias, targets[rows], scale)
    return grad_weight.to(weight.dtype), grad_bias.to(weight.dtype if bias is None else bias.dtype)


@_head_gradient.register_fake
def _(_: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, *others: Any) -> tuple[Tensor, Tensor]:
    grad_weight, grad_bias = _head_outputs(weight, weight.dtype, *others[-2:])
    return grad_weight, grad_bias.to(weight.dtype if bias is None else bias.dtype)


def _head_outputs(weight: Tensor, dtype: torch.dtype, needs_weight: bool, needs_bias: bool) -> tuple[Tensor, Tensor]:
    grad_weight = weight.new_zeros(weight.shape if needs_weight else 0, dtype=dtype)
    return grad_weight, weight.new_zeros(weight.shape[0] if needs_bias else 0, dtype=dtype)


def _read(
    hidden: Tensor, weight: Tensor, targets: Tensor, needs_mean: bool, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """One pass over the vocabulary: target logit, logsumexp, mean logit [R] each; mean row of weight [R, D]."""
    dtype = working_dtype(hidden)
    chosen, energy = (hidden.new_zeros(len(hidden), dtype=dtype) for _ in range(2))
    normaliser = torch.full_like(chosen, -torch.inf)
    mean = hidden.new_zeros(hidden.shape, dtype=dtype) if needs_mean else None
    space: Tensor | None = None
    for columns, logits, tile in logit_tiles(hidden, weight, **options):
        index = targets - columns.start
        inside = (index >= 0) & (index < logits.shape[1])
        found = logits.gather(1, index.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        chosen = torch.where(inside, found, chosen)
        highest = logits.amax(1)
        space = torch.empty_like(logits) if space is None else space
        weights = torch.softmax(logits, 1, out=space.view(-1)[: logits.numel()].view_as(logits))
        here = highest - weights.amax(1).log()  # logsumexp of the tile; softmax is one kernel, which does not return it
        normaliser = torch.logaddexp(normaliser, here)
        share = (here - normaliser).exp()  # of this tile in the probability so far
        if mean is not None:
            mean.lerp_(product(weights, tile, dtype), share[:, None])
        energy = energy.lerp(logits.mul_(weights).sum(1), share)
    return chosen, normaliser, energy, mean


def add_at(total: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """total[index] += values, in place, [N, ..] += [R, ..] at [R] int64 in [0, N); repeats are added in a fixed order.

    Each device has an operator of its own that does so: the other one's adds race there.
    """
    if total.is_cuda:  # `unsafe`: the index is not read back to be checked
        return torch._index_put_impl_(total, [index], values, accumulate=True, unsafe=True)
    return total.index_add_(0, index, values)


def working_dtype(hidden: Tensor) -> torch.dtype:
    """What logits are held and sums accumulated in: float64 for float64, float32 for everything else."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def row_blocks(num_rows: int) -> Iterator[slice]:
    return (slice(start, min(start + MAX_ROWS, num_rows)) for start in range(0, num_rows, MAX_ROWS))


def product(left: Tensor, right: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """left @ right accumulated and returned in `dtype`; half-precision operands stay so where the device has it."""
    if right.is_cuda and right.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left.to(right.dtype), right, out_dtype=dtype)
    return torch.mm(left.to(dtype), right.to(dtype), out=out)


def logit_tiles(
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None,
    temperature: float,
    suppressed: Tensor | None,
    chunk: int | None,
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Tiles of (hidden weight^T + bias) / temperature, in the vocabulary's order; `hidden` has at most MAX_ROWS rows.

    Yields:
        columns; their logits [R, columns], in memory that the caller may overwrite and the next tile will; their rows
        of `weight`.
    """
    dtype = working_dtype(hidden)
    width = min(chunk or tile_width(len(hidden), weight, dtype), len(weight))
    # Reused by every tile: new memory would cost page faults, and twice the memory while two tiles exist.
    space = hidden.new_empty(len(hidden) * width, dtype=dtype)
    offset = None if bias is None else bias.to(dtype) / temperature
    if suppressed is not None:  # added: filling a mask takes longer than all else that is done to the logits
        offset = hidden.new_zeros(len(weight), dtype=dtype) if offset is None else offset
        offset = offset.masked_fill(suppressed, SUPPRESSED_LOGIT)
    for start in range(0, len(weight), width):
        columns = slice(start, min(start + width, len(weight)))
        # Upcast once, as the caller multiplies by the tile again. CUDA multiplies half precision directly.
        tile = weight[columns] if weight.is_cuda else weight[columns].to(dtype)
        logits = product(hidden, tile.t(), dtype, out=space[: len(hidden) * len(tile)].view(len(hidden), len(tile)))
        if temperature != 1:
            logits /= temperature
        if offset is not None:
            logits += offset[columns]
        yield columns, logits, tile


def tile_width(num_rows: int, weight: Tensor, dtype: torch.dtype) -> int:
    """Columns for which logits, their exponentials and an upcast tile of weights fit TILE_BYTES: a multiple of ALIGNED,
    and no less."""
    memory = TILE_BYTES["cuda" if weight.is_cuda else "cpu"]
    upcast = 0 if weight.dtype == dtype or weight.is_cuda else weight.shape[1]
    columns = memory // (dtype.itemsize * (2 * max(1, num_rows) + upcast))
    return max(ALIGNED, columns - columns % ALIGNED)


def check_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    temperature: float,
    suppressed: Tensor | None,
    chunk: int | None,
) -> None:
    """Raise ValueError for shapes and settings that would give a wrong number."""
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"expected hidden [N, D] and weight [V, D], got {[*hidden.shape]} and {[*weight.shape]}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"expected bias [{len(weight)}], got {[*bias.shape]}")
    if not 0 < temperature < inf:
        raise ValueError(f"expected a finite temperature above 0, got {temperature}")
    if suppressed is not None and (suppressed.dtype != torch.bool or suppressed.shape != weight.shape[:1]):
        raise ValueError(f"expected suppressed bool [{len(weight)}], got {suppressed.dtype} {[*suppressed.shape]}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"expected a chunk of at least 1 column, got {chunk}")


def _check_targets(weight: Tensor, targets: Tensor, suppressed: Tensor | None) -> None:
    """Refuse targets without a probability. Only a CPU can say which: elsewhere, reading it would wait for the GPU."""
    outside = (targets < 0) | (targets >= len(weight))
    bad = outside if suppressed is None else outside | suppressed[targets.clamp(0, len(weight) - 1)]
    if targets.device.type != "cpu":
        torch._assert_async(~bad.any(), "linear_logps: a target is suppressed or outside the vocabulary")
    elif bad.any():
        token = int(targets[bad][0])
        if not 0 <= token < len(weight):
            raise ValueError(f"expected targets in [0, {len(weight)}), got {token}; mask padding before calling")
        raise ValueError(f"target token {token} is suppressed (log-probability -inf); suppress it when sampling too")
