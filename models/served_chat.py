"""The prompt of a study as a chat for a server, whose own template and image processor make the same tokens of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from radflow.models.processing import ReportProcessor


def served_messages(
    processor: ReportProcessor, study_id: str, images: Sequence[Image.Image], context: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The chat of `ReportProcessor.prompt`; an image is {"type": "image", "image": ...}.

    Args:
        context: the other arguments of `ReportProcessor.prompt`.

    Raises:
        ValueError: a text names a control token, which the server would take for the token; names the study.
    """
    parts = processor.parts(study_id, images, **context)
    for text in (part for part in parts if isinstance(part, str)):
        if named := next((token for token in processor.control.values() if token in text), None):
            raise ValueError(
                f"study {study_id}: expected a text without control tokens, as a server takes the name of one for the "
                f"token, got {named}; take it out of the text or drop the study"
            )
    return processor.turns([part if isinstance(part, str) else scale(processor, part) for part in parts])


def scale(processor: ReportProcessor, image: Image.Image) -> Image.Image:
    """An image at the size of which the image processor cuts patches: another library scales to other pixels."""
    images = processor.image_processor
    side, limits = images.patch_size * images.merge_size, images.size
    least, most = limits["shortest_edge"], limits["longest_edge"]
    height, width = smart_resize(image.height, image.width, factor=side, min_pixels=least, max_pixels=most)
    return image.convert("RGB").resize((width, height), images.resample)
