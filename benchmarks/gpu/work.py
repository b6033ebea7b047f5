"""What several sections need: models with random weights on the card, prompts, and the one function that makes an
engine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from checkpoint import SIZE, VOCABULARY, published_3b
from checkpoint import prompt as prompt_of_noise
from gpu.runner import Setting
from torch import Tensor
from transformers import PretrainedConfig, Qwen2_5_VLForConditionalGeneration

from capo.packing import Layout, pack, report_logps
from capo.rollout import Engine, Request
from capo.sampling import SamplingConfig, sample_seed
from capo.static_decode import CudaGraphs, Recorder, Step
from capo.types import Rollout
from models.lora import cast_once
from models.processing import ProcessorConfig, Prompt, ReportProcessor, prompt_texts
from models.qwen_vl import ATTENTION, QwenVL
from models.tiny import TinyConfig, architecture, image_processor, train_tokenizer

TINY = TinyConfig(hidden_size=64, layers=2, vision_hidden=64, vision_depth=1, vocab_size=400)
GB = 1e9


def device_of(setting: Setting) -> torch.device:
    return torch.device("cpu") if setting.small else torch.device("cuda", 0)


def start(setting: Setting) -> torch.device:
    """The device, with float32 as float32: by default cuDNN rounds the inputs of convolutions to TF32."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if setting.small:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    return device_of(setting)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Model:
    """A policy with what turns studies into its prompts."""

    policy: QwenVL
    processor: ReportProcessor

    def prompt(self, study: int, *, pixels: int) -> Prompt:
        return prompt_of_noise(self.processor, study, pixels=pixels)


def model(
    setting: Setting, *, layers: int | None = None, tied: bool = True, dtype: torch.dtype = torch.float32,
    attention: str | dict[str, str] = ATTENTION, pixels: int = 1036, vocabulary: int = VOCABULARY,
) -> Model:  # fmt: skip
    """Random weights, made on the card: Qwen2.5-VL-3B as published, or a few layers of it; under `small` a tiny model.

    Args:
        layers: of the language model and blocks of the tower; None leaves all.
        tied: the head is the embedding, as published. With random weights such a model repeats its last token.
        pixels: side of the largest image that keeps its size.
        vocabulary: rows of the embedding on a card.
    """
    tokenizer = train_tokenizer(prompt_texts() * 20, TINY.vocab_size if setting.small else SIZE.vocab_size)
    config = architecture(TINY, tokenizer) if setting.small else published_3b(tokenizer)
    if not setting.small:
        config.text_config.vocab_size = vocabulary
        _cut(config, layers)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    torch.manual_seed(0)
    with torch.device(device_of(setting)):
        made = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation=attention)
    processor = ReportProcessor(tokenizer, image_processor(SIZE), ProcessorConfig())
    processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": pixels**2}
    return Model(QwenVL(made.eval()), processor)


def _cut(config: PretrainedConfig, layers: int | None) -> None:
    if layers is not None:
        config.text_config.num_hidden_layers, config.text_config.layer_types = layers, ["full_attention"] * layers
        config.vision_config.depth, config.vision_config.fullatt_block_indexes = layers, [layers - 1]


def cast(policy: QwenVL, dtype: torch.dtype) -> QwenVL:
    """The policy with its parameters as they are loaded in `dtype`: buffers (the frequencies of rotary positions, which
    `policy.to` would round too) stay in float32."""
    for parameter in policy.parameters():
        parameter.data = parameter.data.to(dtype)
    return policy


class Repeated:
    """Instead of CUDA graphs: the same steps of fixed shape, launched kernel by kernel; outputs keep their memory."""

    def __call__(self, step: Step) -> Step:
        outputs = step()

        def replay() -> tuple[Tensor, Tensor]:
            for output, value in zip(outputs, step(), strict=True):
                output.copy_(value)
            return outputs

        return replay


class Watched:
    """Makes recorders; counts their recordings and notes when each step began."""

    def __init__(self, new_recorder: Callable[[], Recorder]) -> None:
        self.new_recorder, self.recordings, self.steps = new_recorder, 0, []

    def __call__(self) -> Recorder:
        return partial(self._record, self.new_recorder())

    def _record(self, recorder: Recorder, step: Step) -> Step:
        self.recordings += 1
        replay = recorder(step)

        def noted() -> tuple[Tensor, Tensor]:
            self.steps.append(time.perf_counter())
            return replay()

        return noted

    @property
    def seconds(self) -> float:
        """Of one step: the median over the steps, each of which waits for the one before it."""
        between = sorted(b - a for a, b in zip(self.steps, self.steps[1:], strict=False))
        return between[len(between) // 2]


def graphs(device: torch.device) -> Callable[[], Recorder]:
    """Makes CUDA graphs; on a CPU the same steps without recording."""
    return CudaGraphs if device.type == "cuda" else Repeated


def engine(
    policy: QwenVL, *, slots: int, new_recorder: Callable[[], Recorder] | None, tokens: int, temperature: float
) -> Callable[[Sequence[Request]], list[Rollout]]:
    """From requests to their reports, in the order (study, sample), by one engine; nothing ends a report early."""
    never, nothing = -1, torch.zeros(policy.vocab_size, dtype=torch.bool, device=policy.device)
    sampling = SamplingConfig(temperature=temperature, max_new_tokens=tokens)
    kept = Engine(policy, sampling=sampling, eos_id=never, banned=nothing, slots=slots, new_recorder=new_recorder)

    def write(requests: Sequence[Request]) -> list[Rollout]:
        with cast_once(policy):
            return sorted(kept.rollout(requests), key=lambda report: (report.study_id, report.sample))

    return write


def requests(prompts: Sequence[Prompt], group: int) -> list[Request]:
    return [Request(p, tuple(sample_seed(0, "proof", 0, p.study_id, i) for i in range(group))) for p in prompts]


def layout_of(prompts: Sequence[Prompt], groups: Sequence[Sequence[Tensor]], device: torch.device) -> Layout:
    return pack(prompts, groups).to(device)


def logps_of(policy: QwenVL, layout: Layout) -> Tensor:
    """[N] of the report tokens, in the order of `layout.targets`, on the CPU."""
    with torch.no_grad():
        logps, _ = policy(lambda: report_logps(policy, layout))
    return logps[layout.mask].float().cpu()


def random_reports(vocabulary: int, lengths: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(vocabulary, (length,), generator=generator) for length in lengths]


@dataclass(frozen=True)
class TextPrompt:
    """A prompt without images, of any length."""

    num_tokens: int
    study_id: str = "text"

    @property
    def input_ids(self) -> Tensor:
        return torch.arange(self.num_tokens) % 97

    @property
    def positions(self) -> Tensor:
        return torch.arange(self.num_tokens).expand(3, -1)

    @property
    def next_position(self) -> int:
        return self.num_tokens


def reset_peak(device: torch.device) -> float:
    """GB allocated now; the peak counts from here."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / GB


def peak(device: torch.device) -> float:
    """GB, the most that was allocated since `reset_peak`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() / GB if device.type == "cuda" else 0.0
