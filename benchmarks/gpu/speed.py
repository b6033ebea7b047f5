"""How fast the 3B architecture decodes, against the time that its bytes take to be read, and against transformers."""

import time
from dataclasses import dataclass

import torch
from checkpoint import requests
from gpu import card, work
from gpu.report import Bar, Report
from gpu.runner import Setting
from transformers import LogitsProcessor, LogitsProcessorList

from radflow.models.lora import LoraConfig, add_lora, merge_lora
from radflow.models.processing import Prompt
from radflow.models.qwen_vl import QwenVL

SLOTS, GROUPS = (4, 8, 16, 32, 64), (4, 8, 16)
SHOWN = 32  # slots of the goals
ROOFLINE, TIMES = Bar(at_least=0.6, goal=True), Bar(at_least=3.0, goal=True)
FILE = "tokens_per_second"  # what `transformers` reads of `decode`


def decode(setting: Setting, report: Report) -> None:
    """Tokens per second by slots and group size, all slots busy; one case with adapters too."""
    device = work.start(setting)
    tokens, side = (6, 56) if setting.small else (64, 1036)
    made = work.model(setting, dtype=torch.bfloat16, pixels=side)
    copied = card.bandwidth(device, size=2**20 if setting.small else 4 * 2**30)
    cases = [(slots, group) for slots in SLOTS for group in GROUPS if group <= slots]
    cases = cases[:2] if setting.small else sorted(cases, key=lambda case: case[0] != SHOWN)
    prompts = [made.prompt(number, pixels=side) for number in range(max(s // g for s, g in cases))]
    report.ran(
        f"{sum(p.numel() for p in made.policy.parameters()) / 1e9:.2f} B random weights in bfloat16, prompts of "
        f"{prompts[0].num_tokens} tokens, {tokens} tokens per report; a step's bytes are all weights of the language "
        f"model and the cache, at {copied / 1e12:.2f} TB/s"
    )
    speed = Speed(report, made, prompts, tokens, copied)
    for slots, group in cases:
        rate = speed.measure(f"{slots} slots, G {group}", slots, group, ROOFLINE if slots == SHOWN else None)
        if slots == SHOWN:
            (setting.folder / FILE).write_text(str(rate))
    add_lora(made.policy, LoraConfig(rank=8), seed=0)
    slots, group = cases[0]
    speed.measure(f"{slots} slots, G {group}, LoRA", slots, group, None)
    merge_lora(made.policy)
    speed.measure(f"{slots} slots, G {group}, LoRA merged", slots, group, None)


def compiled(setting: Setting, report: Report) -> None:
    """What torch.compile of the small operations would gain: norms and MLPs, the one shape of a decoding step each."""
    device = work.start(setting)
    tokens, side, slots = (6, 56, 4) if setting.small else (64, 1036, SHOWN)
    made = work.model(setting, dtype=torch.bfloat16, pixels=side)
    copied = card.bandwidth(device, size=2**20 if setting.small else 4 * 2**30)
    prompts = [made.prompt(number, pixels=side) for number in range(slots // 4)]
    report.ran(f"{slots} slots, G 4, tokens per second while all slots are busy, before and after")
    speed = Speed(report, made, prompts, tokens, copied)
    before = speed.measure("kernel by kernel", slots, 4, None)
    for layer in made.policy.model.model.language_model.layers:
        for module in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
            module.compile(backend="eager" if setting.small else "inductor")
    after = speed.measure("norms and MLPs compiled", slots, 4, None)
    report.figure("compiled to not", after / before, unit="times")


@dataclass(frozen=True)
class Speed:
    """Decoding of one model, measured case by case."""

    report: Report
    made: work.Model
    prompts: list[Prompt]
    tokens: int  # of a report
    bandwidth: float  # bytes per second

    def measure(self, name: str, slots: int, group: int, goal: Bar | None) -> float:
        """Tokens per second while all slots are busy."""
        policy, recorder = self.made.policy, work.Watched(work.graphs(self.made.policy.device))
        began = time.perf_counter()
        write = work.engine(policy, slots=slots, new_recorder=recorder, tokens=self.tokens, temperature=1.0)
        write(requests(self.prompts[: slots // group], group))
        whole, rate = time.perf_counter() - began, slots / recorder.seconds
        least = step_bytes(policy, slots, self.prompts[0].num_tokens + self.tokens / 2) / self.bandwidth
        self.report.figure(f"{name}: decoding", rate, unit="tokens/s")
        self.report.figure(f"{name}: share of the roofline", least / recorder.seconds, goal)
        self.report.figure(f"{name}: with tower, prefill and recording", slots * self.tokens / whole, unit="tokens/s")
        return rate


def step_bytes(policy: QwenVL, slots: int, length: float) -> float:
    """What a decoding step must read: the language model, whose embedding is the head, and the cache."""
    weights = sum(p.numel() * p.element_size() for p in policy.model.model.language_model.parameters())
    return weights + slots * length * policy.num_layers * 2 * policy.num_kv_heads * policy.head_dim * 2


class Clock(LogitsProcessor):
    """Notes when the logits of each step are there."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.times = device, []

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        work.wait(self.device)
        self.times.append(time.perf_counter())
        return scores

    def seconds(self) -> float:
        """Of one step: the median over the second half, when everything is compiled and recorded."""
        between = [b - a for a, b in zip(self.times, self.times[1:], strict=False)]
        late = sorted(between[len(between) // 2 :])
        return late[len(late) // 2]


def transformers(setting: Setting, report: Report) -> None:
    """The same prompts through transformers' generate, with its own attention: as it is, and with a static cache."""
    device = work.start(setting)
    tokens, side, slots, group = (6, 56, 4, 2) if setting.small else (40, 1036, SHOWN, 4)
    made = work.model(setting, dtype=torch.bfloat16, attention="sdpa", pixels=side)
    prompts = [made.prompt(number, pixels=side) for number in range(slots // group)]
    report.ran(f"{slots // group} studies of {prompts[0].num_tokens} tokens, {group} reports of {tokens} tokens each")
    rates = {}
    for name, cache in (("dynamic cache", {}), ("static cache, compiled", {"cache_implementation": "static"})):
        clock = Clock(device)
        _generate(made, prompts, group, tokens, clock, cache)
        rates[name] = slots / clock.seconds()
        report.figure(f"{slots} slots, generate, {name}", rates[name], unit="tokens/s")
    ours = setting.folder / FILE
    if ours.exists():
        times = float(ours.read_text()) / max(rates.values())
        report.figure("RadFlow's decoding (section decode) to the faster one", times, TIMES, unit="times")


@torch.no_grad()
def _generate(made: work.Model, prompts: list, group: int, tokens: int, clock: Clock, cache: dict[str, str]) -> None:
    device, config = made.policy.device, made.policy.model.config
    ids = torch.stack([p.input_ids for p in prompts]).to(device)
    made.policy.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == config.image_token_id).int(),
        pixel_values=torch.cat([p.pixel_values for p in prompts]).to(device, torch.bfloat16),
        image_grid_thw=torch.cat([p.image_grid_thw for p in prompts]).to(device),
        do_sample=True,
        top_k=0,
        top_p=1.0,
        num_return_sequences=group,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        pad_token_id=0,
        suppress_tokens=[config.image_token_id],
        logits_processor=LogitsProcessorList([clock]),
        **cache,
    )
