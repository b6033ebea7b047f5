"""Logits a tile at a time: [N, V] of them never exist, whatever the vocabulary."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Temporary memory of a tile, unless the caller gives its width: it should stay in a CPU's cache, and on a GPU be large
# enough that a GEMM has tens of thousands of columns.
TILE_BYTES = {"cpu": 16 * 2**20, "cuda": 512 * 2**20}
MAX_ROWS = 2048  # hidden states multiplied at one time: enough to keep a GEMM busy
# Logit of a banned token. Finite, because a tile may hold banned tokens only and -inf - (-inf) is NaN; its exponential
# beside any real logit is 0.
BANNED_LOGIT = -1e30


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
    hidden: Tensor, weight: Tensor, *, temperature: float, banned: Tensor | None, chunk: int | None
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Tiles of hidden weight^T / temperature from the first token of the vocabulary to the last.

    Args:
        hidden: [R, D], at most MAX_ROWS rows.
        weight: [V, D].
        banned: [V] bool; their logits are BANNED_LOGIT.
        chunk: width of a tile; None fits TILE_BYTES.

    Yields:
        the columns, their logits [R, columns] which the caller may overwrite and the next tile will, and their rows of
        `weight`.
    """
    dtype = working_dtype(hidden)
    width = min(chunk or tile_width(len(hidden), weight, dtype), len(weight))
    # Written again by every tile: new memory for each would cost page faults, and twice the memory while both exist.
    space = hidden.new_empty(len(hidden) * width, dtype=dtype)
    for start in range(0, len(weight), width):
        columns = slice(start, min(start + width, len(weight)))
        # Upcast once: the caller multiplies by the tile again. CUDA multiplies half precision as it is.
        tile = weight[columns] if weight.is_cuda else weight[columns].to(dtype)
        logits = product(hidden, tile.t(), dtype, out=space[: len(hidden) * len(tile)].view(len(hidden), len(tile)))
        if temperature != 1:
            logits /= temperature
        if banned is not None:
            logits.masked_fill_(banned[columns], BANNED_LOGIT)
        yield columns, logits, tile


def tile_width(num_rows: int, weight: Tensor, dtype: torch.dtype) -> int:
    """Columns for which logits, their exponentials and an upcast tile of weights fit TILE_BYTES."""
    memory = TILE_BYTES["cuda" if weight.is_cuda else "cpu"]
    upcast = 0 if weight.dtype == dtype or weight.is_cuda else weight.shape[1]
    return max(1, memory // (dtype.itemsize * (2 * max(1, num_rows) + upcast)))


def check_head(hidden: Tensor, weight: Tensor, temperature: float, banned: Tensor | None, chunk: int | None) -> None:
    """Refuse shapes and settings that could only give a wrong number.

    Raises:
        ValueError: what was expected and what was got.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"expected hidden [N, D] and weight [V, D], got {[*hidden.shape]} and {[*weight.shape]}")
    if temperature <= 0:
        raise ValueError(f"expected a temperature above 0, got {temperature}")
    if banned is not None and (banned.dtype != torch.bool or banned.shape != weight.shape[:1]):
        raise ValueError(f"expected banned as bool [V] with V = {len(weight)}, got {banned.dtype} {[*banned.shape]}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"expected a chunk of at least 1 column, got {chunk}")
