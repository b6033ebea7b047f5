"""A random Qwen2.5-VL with the published vocabulary, wide enough for a step to be arithmetic and not overhead.

Its reports end: every embedding shares a direction that survives to the last hidden state, and the head's row of EOS
points there, so that EOS is about as likely after every token. Lengths are then ragged as those of real reports are.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration

from capo.rollout import Request
from capo.sampling import sample_seed
from radflow.models.processing import ProcessorConfig, Prompt, ReportProcessor, prompt_texts
from radflow.models.qwen_vl import ATTENTION, QwenVL
from radflow.models.tiny import TinyConfig, architecture, image_processor, train_tokenizer

VOCABULARY = 151_936
SIZE = TinyConfig(hidden_size=512, layers=8, heads=8, kv_heads=2, vision_hidden=256, vision_depth=4)


def small(tokenizer) -> PretrainedConfig:
    """0.2 B parameters with the published vocabulary."""
    return architecture(SIZE, tokenizer)


def published_3b(tokenizer) -> PretrainedConfig:
    """The sizes of Qwen2.5-VL-3B-Instruct and the scale of its random weights, as its config.json has them."""
    config = architecture(SIZE, tokenizer)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 2048, 11008, 36
    text.num_attention_heads, text.num_key_value_heads = 16, 2
    text.rope_parameters = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text.layer_types = ["full_attention"] * 36
    vision.depth, vision.hidden_size, vision.num_heads, vision.intermediate_size = 32, 1280, 16, 3420
    vision.out_hidden_size, vision.fullatt_block_indexes = 2048, [7, 15, 23, 31]
    # What suits a width of 192 makes attention over these widths so sharp that rounding changes what is attended to.
    text.initializer_range = vision.initializer_range = 0.02
    return config


def build(
    directory: Path,
    *,
    sizes: Callable[[PreTrainedTokenizerFast], PretrainedConfig] = small,
    vocabulary: int = VOCABULARY,
    mean_length: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the checkpoint.

    Args:
        mean_length: of a report in tokens, until it is cut; None makes EOS as unlikely as any other token.
        device: where the random weights are made.
    """
    tokenizer = train_tokenizer(prompt_texts() * 20, SIZE.vocab_size)
    # The small model's head is its own, so that EOS can be given a direction; the published one is tied.
    options = {"vocabulary": vocabulary, "tied": sizes is published_3b, "dtype": dtype, "device": device}
    policy, processor = random_policy(tokenizer, sizes(tokenizer), **options)
    if mean_length is not None:
        _make_reports_end(policy, processor, mean_length)
    policy.save(directory, processor)


def random_policy(
    tokenizer: PreTrainedTokenizerFast,
    config: PretrainedConfig,
    *,
    vocabulary: int = VOCABULARY,
    tied: bool,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    attention: str | dict[str, str] = ATTENTION,
    max_pixels: int | None = None,
) -> tuple[QwenVL, ReportProcessor]:
    """The policy with random weights, drawn in `dtype` on the device, and its processor.

    Args:
        vocabulary: rows of the embedding; those without a token are padding.
        tied: the head is the embedding.
        max_pixels: of the largest image that keeps its size.
    """
    config.text_config.vocab_size, config.dtype = vocabulary, dtype
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation=attention)
    processor = ReportProcessor(tokenizer, image_processor(SIZE), ProcessorConfig())
    if max_pixels is not None:
        processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": max_pixels}
    return QwenVL(model.eval()), processor


def requests(prompts: Iterable[Prompt], group: int) -> list[Request]:
    """`group` reports of each."""
    return [Request(p, tuple(sample_seed(0, "bench", 0, p.study_id, i) for i in range(group))) for p in prompts]


def prompt(processor: ReportProcessor, study: int, *, pixels: int = 448) -> Prompt:
    """One square image of noise and the usual request: 256 image tokens for 448 pixels."""
    from PIL import Image

    noise = torch.randint(
        0, 256, (pixels, pixels, 3), generator=torch.Generator().manual_seed(study), dtype=torch.uint8
    )
    return processor.prompt(f"study{study}", [Image.fromarray(noise.numpy())])


@torch.no_grad()
def _make_reports_end(policy: QwenVL, processor: ReportProcessor, mean_length: int) -> None:
    """Set the head's row of EOS so that reports have this length in the mean, after a prompt and random tokens."""
    embedding = policy.model.get_input_embeddings().weight
    embedding.add_(torch.randn(policy.hidden_size))
    head, eos = policy.model.get_output_embeddings().weight, processor.eos_id
    head.div_(10)  # near-uniform over the rest of the vocabulary
    before, rows, length = prompt(processor, 0, pixels=224), 16, 160
    start = policy.embed([before], policy.features([before]))[0].expand(rows, -1, -1)
    report = policy.embed_tokens(torch.randint(len(head), (rows, length)))
    positions = torch.cat([before.positions, before.next_position + torch.arange(length).expand(3, -1)], 1)
    whole = torch.cat([start, report], 1)
    causal = torch.ones(whole.shape[1], whole.shape[1], dtype=torch.bool).tril().expand(rows, 1, -1, -1)
    hidden = policy.decoder(whole, positions[:, None].expand(-1, rows, -1), causal)[:, -length:].flatten(0, 1)
    along, rest = hidden.mean(0), (hidden @ head.t()).logsumexp(-1)
    # Some contexts make EOS less likely than others, and reports stay longer in those: solve for the length itself.
    low, high = 0.0, 2 * float(rest.mean())
    for _ in range(30):
        middle = (low + high) / 2
        goes_on = 1 - (hidden @ along * middle / (hidden @ along).mean() - rest).exp().clamp(max=1)
        longer = float(goes_on.view(rows, length).cumprod(1).sum(1).mean()) + 1 > mean_length
        low, high = (middle, high) if longer else (low, middle)
    head[eos] = along * high / (hidden @ along).mean()
