"""Positions of the tokens of a prompt on the three axes of Qwen-VL's rotary embedding (mRoPE)."""

import torch
from torch import Tensor


def mrope_positions(input_ids: Tensor, grids: Tensor, image_id: int, merge: int) -> Tensor:
    """[3, P] positions: text counts up on all three axes, an image spreads over height and width.

    Source: Qwen2-VL, arXiv:2409.12191, section 2.1; equal to transformers' get_rope_index for still images.
    """
    positions = torch.zeros(3, len(input_ids), dtype=torch.int64)
    is_image = (input_ids == image_id).tolist()
    sizes = iter((grids[:, 1:] // merge).tolist())
    at, position = 0, 0
    while at < len(is_image):
        if is_image[at]:
            height, width = next(sizes)
            span = height * width
            axes = (torch.zeros(1, dtype=torch.int64), torch.arange(height), torch.arange(width))
            positions[:, at : at + span] = torch.cartesian_prod(*axes).T + position
            at, position = at + span, position + max(height, width)
        else:
            positions[:, at] = position
            at, position = at + 1, position + 1
    return positions
