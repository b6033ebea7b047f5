"""transformers' processor of Qwen2.5-VL without torchvision, for tests and benchmarks against other libraries."""

from pathlib import Path

from transformers import AutoTokenizer
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


class _NoVideos:
    """Instead of the video processor, which needs torchvision; without videos only these attributes are read."""

    merge_size, temporal_patch_size, model_input_names = 2, 2, ()


class _Processor(Qwen2_5_VLProcessor):
    def check_argument_for_proper_class(self, argument_name: str, argument: object) -> type:
        return type(argument)


def processor_without_videos(folder: str | Path, **options: object) -> Qwen2_5_VLProcessor:
    """Tokenizer, chat template and image processor of a checkpoint folder; `options` are those of the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    images = Qwen2VLImageProcessorPil.from_pretrained(folder)
    return _Processor(images, tokenizer, _NoVideos(), chat_template=tokenizer.chat_template)
