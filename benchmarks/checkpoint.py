"""A random Qwen2.5-VL with the published vocabulary, wide enough for a step to be arithmetic and not overhead.

Its reports end: every embedding shares a direction that survives to the last hidden state, and the head's row of EOS
points there, so that EOS is about as likely after every token. Lengths are then ragged as those of real reports are.
"""

from pathlib import Path

import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from models.processing import ProcessorConfig, Prompt, ReportProcessor, prompt_texts
from models.qwen_vl import QwenVL
from models.tiny import TinyConfig, architecture, image_processor, train_tokenizer

VOCABULARY = 151_936
SIZE = TinyConfig(hidden_size=512, layers=8, heads=8, kv_heads=2, vision_hidden=256, vision_depth=4)


def build(directory: Path, *, vocabulary: int = VOCABULARY, mean_length: int | None = None) -> None:
    """Write the checkpoint; 0.2 B parameters in float32 with the published vocabulary.

    Args:
        mean_length: of a report in tokens, until it is cut; None makes EOS as unlikely as any other token.
    """
    torch.manual_seed(0)
    tokenizer = train_tokenizer(prompt_texts() * 20, SIZE.vocab_size)
    config = architecture(SIZE, tokenizer)
    config.text_config.vocab_size = vocabulary
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    policy = QwenVL(Qwen2_5_VLForConditionalGeneration(config).eval())
    processor = ReportProcessor(tokenizer, image_processor(SIZE), ProcessorConfig())
    if mean_length is not None:
        _make_reports_end(policy, processor, mean_length)
    policy.save(directory, processor)


def prompt(processor: ReportProcessor, study: int, *, pixels: int = 448) -> Prompt:
    """One square image of noise and the usual request: 256 image tokens for 448 pixels."""
    from PIL import Image

    noise = torch.randint(
        0, 256, (pixels, pixels, 3), generator=torch.Generator().manual_seed(study), dtype=torch.uint8
    )
    return processor.prompt(f"study{study}", [Image.fromarray(noise.numpy())])


@torch.no_grad()
def _make_reports_end(policy: QwenVL, processor: ReportProcessor, mean_length: int) -> None:
    shared = torch.randn(policy.hidden_size)
    policy.model.get_input_embeddings().weight.add_(shared)
    head, eos = policy.model.get_output_embeddings().weight, processor.eos_id
    head.div_(10)  # near-uniform over the rest of the vocabulary
    ids = torch.randint(len(processor.tokenizer), (4, 32))
    positions = torch.arange(32).expand(3, 4, 32)
    causal = torch.ones(32, 32, dtype=torch.bool).tril().expand(4, 1, 32, 32)
    hidden = policy.trunk(policy.embed_tokens(ids), positions, causal)[:, 8:].flatten(0, 1)
    along = hidden.mean(0)
    rest = (hidden @ head.t()).logsumexp(-1).mean()
    wanted = rest - torch.tensor(float(mean_length - 1)).log()
    head[eos] = along * wanted / (hidden @ along).mean()
