"""Tokenizer, chat template and image processor, from whichever files a checkpoint was published with."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from models.loading import read_json

IMAGE, VISION_START, VISION_END = "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"
START, END = "<|im_start|>", "<|im_end|>"


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a checkpoint with its chat template: `chat_template.json` where it is there, as transformers does.

    Raises:
        ValueError: no tokenizer there, one without Qwen-VL's image and chat tokens, or no chat template.
    """
    if not (directory / "tokenizer_config.json").is_file():
        raise ValueError(f"{directory}: expected tokenizer files of a Qwen-VL checkpoint, found none")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for token in (IMAGE, VISION_START, VISION_END, START, END):
        if token not in tokenizer.get_vocab():
            raise ValueError(f"{directory}: expected a Qwen-VL tokenizer, its token {token} is missing")
    if (directory / "chat_template.json").is_file():
        tokenizer.chat_template = read_json(directory / "chat_template.json").get("chat_template")
    if not tokenizer.chat_template:
        raise ValueError(
            f"{directory}: expected a chat template in chat_template.jinja, chat_template.json or "
            "tokenizer_config.json, found none; copy the file published with the model"
        )
    return tokenizer


def load_image_processor(
    directory: Path, *, min_pixels: int | None, max_pixels: int | None
) -> Qwen2VLImageProcessorPil:
    """Image processor of a checkpoint; a limit that is given goes before the published one.

    Raises:
        ValueError: no preprocessor file there, or limits that exclude each other.
    """
    names = ("preprocessor_config.json", "processor_config.json")
    if not any((directory / name).is_file() for name in names):
        raise ValueError(f"{directory}: expected {' or '.join(names)}, found neither; copy the whole checkpoint")
    try:
        images = Qwen2VLImageProcessorPil.from_pretrained(directory)
    except OSError as error:  # a processor_config.json that says nothing about images
        raise ValueError(f"{directory}: expected settings of the image processor, found none: {error}") from error
    low = images.size["shortest_edge"] if min_pixels is None else min_pixels
    high = images.size["longest_edge"] if max_pixels is None else max_pixels
    if low > high:
        raise ValueError(
            f"{directory}: expected max_pixels of at least min_pixels, got {high} and {low}, where what the config "
            "leaves out is the checkpoint's; set both"
        )
    images.size = {"shortest_edge": low, "longest_edge": high}
    return images


def tokens_of_largest_image(images: Qwen2VLImageProcessorPil) -> int:
    """Image tokens of an image as large as the limits let it be; each stands for merge_size^2 patches."""
    return images.size["longest_edge"] // (images.patch_size * images.merge_size) ** 2
