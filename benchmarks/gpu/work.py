"""Shared by the sections: models with random weights on the card, prompts and engines."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from checkpoint import SIZE, VOCABULARY, published_3b, random_policy
from checkpoint import prompt as prompt_of_noise
from gpu.runner import Setting
from replays import Replays
from torch import Tensor
from transformers import PretrainedConfig

from capo.packing import Layout, pack, report_logps
from capo.rollout import Engine, Request
from capo.sampling import SamplingConfig
from capo.static_decode import CudaGraphs, Recorder, Step
from capo.types import Rollout
from radflow.models.lora import cast_once
from radflow.models.processing import Prompt, ReportProcessor, prompt_texts
from radflow.models.qwen_vl import ATTENTION, QwenVL
from radflow.models.tiny import TinyConfig, architecture, train_tokenizer

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
    setting: Setting,
    *,
    layers: int | None = None,
    tied: bool = True,
    dtype: torch.dtype = torch.float32,
    attention: str | dict[str, str] = ATTENTION,
    pixels: int = 1036,
    vocabulary: int = VOCABULARY,
) -> Model:
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
    options = {"dtype": dtype, "device": device_of(setting), "attention": attention, "max_pixels": pixels**2}
    return Model(*random_policy(tokenizer, config, vocabulary=config.text_config.vocab_size, tied=tied, **options))


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
    return CudaGraphs if device.type == "cuda" else Replays


def engine(
    policy: QwenVL, *, slots: int, new_recorder: Callable[[], Recorder] | None, tokens: int, temperature: float
) -> Callable[[Sequence[Request]], list[Rollout]]:
    """From requests to their reports, in the order (study, sample), by one engine; nothing ends a report early."""
    never, nothing = -1, torch.zeros(policy.vocab_size, dtype=torch.bool, device=policy.device)
    sampling = SamplingConfig(temperature=temperature, max_new_tokens=tokens)
    kept = Engine(policy, sampling=sampling, eos_id=never, suppressed=nothing, slots=slots, new_recorder=new_recorder)

    def write(requests: Sequence[Request]) -> list[Rollout]:
        with cast_once(policy):
            return sorted(kept.rollout(requests), key=lambda report: (report.study_id, report.sample))

    return write


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
