"""Text and images of a study -> the tensors the model reads. Built once, unpadded, never truncated."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

IMAGE, VISION_START, VISION_END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
START, END = "<|im_start|>", "<|im_end|>"

TASKS = {
    "chest_xray": "Report this chest radiograph: Findings and Impression.",
    "carotid_us": "Report this carotid ultrasound: Findings and Impression.",
}
PRIOR, INDICATION, COMPARISON = "Prior study: ", "Indication: ", "Comparison: "


def prompt_texts() -> list[str]:
    """Every text that a prompt is made of, whatever the study."""
    return [*TASKS.values(), PRIOR, INDICATION, COMPARISON, "user\n", "assistant\n"]


@dataclass(frozen=True)
class Prompt:
    """The model's input for one study."""

    study_id: str
    input_ids: Tensor  # [P] int64, image tokens included
    positions: Tensor  # [3, P] int64, mRoPE: temporal, height, width
    pixel_values: Tensor  # [patches, C] float32, of all images in order
    image_grid_thw: Tensor  # [images, 3] int64, patches per axis

    @property
    def num_tokens(self) -> int:
        """P."""
        return len(self.input_ids)

    @property
    def next_position(self) -> int:
        """Position of the first report token; each further token is one more."""
        return int(self.positions.max()) + 1


@dataclass(frozen=True)
class ProcessorConfig:
    """How a study becomes a prompt."""

    min_pixels: int = 56 * 56
    """Smaller images are scaled up to this many pixels."""
    max_pixels: int = 512 * 512
    """Larger images are scaled down to this many pixels."""
    max_prompt_tokens: int = 4096
    """A study whose prompt is longer is refused, never truncated: truncation cuts image tokens."""
    task: Literal["chest_xray", "carotid_us"] = "chest_xray"
    """The request put to the model."""


class ReportProcessor:
    """Tokenizer, image processor and chat format of one checkpoint."""

    def __init__(self, tokenizer, image_processor, config: ProcessorConfig) -> None:
        self.tokenizer, self.image_processor, self.config = tokenizer, image_processor, config
        self.eos_id: int = tokenizer.convert_tokens_to_ids(END)
        self.image_id: int = tokenizer.convert_tokens_to_ids(IMAGE)
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        self.banned_ids: tuple[int, ...] = tuple(sorted(special - {self.eos_id}))

    @classmethod
    def load(cls, directory: Path, config: ProcessorConfig) -> "ReportProcessor":
        """From a checkpoint directory.

        Raises:
            ValueError: no tokenizer there, or one without Qwen-VL's image and chat tokens.
        """
        if not (directory / "tokenizer_config.json").is_file():
            raise ValueError(f"{directory}: expected tokenizer files of a Qwen-VL checkpoint, found none")
        tokenizer = AutoTokenizer.from_pretrained(directory)
        for token in (IMAGE, VISION_START, VISION_END, START, END):
            if token not in tokenizer.get_vocab():
                raise ValueError(f"{directory}: expected a Qwen-VL tokenizer, its token {token} is missing")
        images = Qwen2VLImageProcessorPil.from_pretrained(directory)
        images.size = {"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels}
        return cls(tokenizer, images, config)

    def check_fits(self, vocab_size: int) -> None:
        """Refuse a tokenizer with more tokens than the model has embeddings."""
        if len(self.tokenizer) > vocab_size:
            raise ValueError(
                f"the tokenizer has {len(self.tokenizer)} tokens and the model {vocab_size} embeddings; "
                "they belong to different checkpoints"
            )

    def save(self, directory: Path) -> None:
        self.tokenizer.save_pretrained(directory)
        self.image_processor.save_pretrained(directory)

    def prompt(
        self,
        study_id: str,
        images: Sequence[Image.Image],
        *,
        indication: str = "",
        comparison: str = "",
        prior_images: Sequence[Image.Image] = (),
    ) -> Prompt:
        """The chat turn that asks for the report of a study.

        Raises:
            ValueError: no image, or more tokens than `max_prompt_tokens`; names the study.
        """
        if not images:
            raise ValueError(f"study {study_id}: expected at least one image, got none")
        processed = self.image_processor([*images, *prior_images], return_tensors="pt")
        grids = processed["image_grid_thw"]
        counts = (grids.prod(-1) // self.image_processor.merge_size**2).tolist()
        ids = self._chat(counts[: len(images)], counts[len(images) :], indication, comparison)
        if len(ids) > self.config.max_prompt_tokens:
            raise ValueError(
                f"study {study_id}: the prompt has {len(ids)} tokens, {sum(counts)} of them of {len(counts)} images; "
                f"the limit is {self.config.max_prompt_tokens}. Lower max_pixels or raise max_prompt_tokens"
            )
        input_ids = torch.tensor(ids)
        positions = mrope_positions(input_ids, grids, self.image_id, self.image_processor.merge_size)
        return Prompt(study_id, input_ids, positions, processed["pixel_values"], grids)

    def encode_report(self, text: str) -> Tensor:
        """[T] int64 token ids of a report, EOS at the end."""
        return torch.tensor([*self._plain(text), self.eos_id])

    def decode(self, ids: Tensor) -> str:
        """Text before EOS, special tokens left out."""
        kept = ids.tolist()
        if self.eos_id in kept:
            kept = kept[: kept.index(self.eos_id)]
        return self.tokenizer.decode(kept, skip_special_tokens=True).strip()

    def _chat(self, images: Sequence[int], prior: Sequence[int], indication: str, comparison: str) -> list[int]:
        special = self.tokenizer.convert_tokens_to_ids
        ids = [special(START), *self._plain("user\n")]
        for title, counts in (("", images), (PRIOR, prior)):
            if counts and title:
                ids += self._plain(title)
            for count in counts:
                ids += [special(VISION_START), *([self.image_id] * count), special(VISION_END)]
        for title, text in ((INDICATION, indication), (COMPARISON, comparison)):
            if text:
                ids += self._plain(f"{title}{text}\n")
        ids += self._plain(TASKS[self.config.task])
        return [*ids, special(END), *self._plain("\n"), special(START), *self._plain("assistant\n")]

    def _plain(self, text: str) -> list[int]:
        """Token ids of text in which the name of a special token is only text."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


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
            rows = torch.arange(height).repeat_interleave(width)
            columns = torch.arange(width).repeat(height)
            span = height * width
            positions[:, at : at + span] = torch.stack([torch.zeros_like(rows), rows, columns]) + position
            at, position = at + span, position + max(height, width)
        else:
            positions[:, at] = position
            at, position = at + 1, position + 1
    return positions
