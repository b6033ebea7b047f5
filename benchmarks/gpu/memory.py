"""Peak memory of a tower run, an RL step and an SFT step, against what `train.py plan` says."""

import torch
from checkpoint import requests
from gpu import card, work
from gpu.report import Bar, Report
from gpu.runner import Setting

from capo import sft
from capo.advantages import group_advantages
from capo.config import OptimizerConfig, RlConfig
from capo.trainer import Trainer
from capo.types import Case, Rollout
from radflow.models.lora import LoraConfig, add_lora, reference
from radflow.models.processing import Prompt
from radflow.models.start import ModelConfig
from radflow.pipeline.memory_plan import Load, Sizes, memory

CAP = 24e9  # bytes
NEAR = Bar(at_least=1 / 1.15, at_most=1.15)
# Which parts of a plan are there all the time, and which in one phase only; the context is not in torch's allocator.
RESIDENT, CONTEXT = ("weights", "reference", "gradients and Adam"), "context and fragments"


def planned_peak(parts: dict[str, float], *, phase: str) -> float:
    """GB at the peak of `phase`, as far as torch's allocator sees it."""
    known = {*RESIDENT, CONTEXT, "training pass", "rollout"}
    assert set(parts) == known, f"the plan has other parts than {sorted(known)}: {sorted(parts)}"
    return sum(parts[name] for name in RESIDENT) + parts[phase]


def plan_of(made: work.Model, load: Load, *, recompute: bool) -> dict[str, float]:
    config = ModelConfig(path="published", recompute_activations=recompute)
    sizes = Sizes.of(made.policy.model.config, config)
    return memory(sizes, config, load, sharding="replicate", world=1, local=1)


def compare_phase(
    setting: Setting, report: Report, name: str, parts: dict[str, float], phase: str, *, held: float, most: float
) -> None:
    """Plan against measurement: the peak of a phase, and what it adds to what is held anyway.

    Args:
        held: GB before the phase.
        most: GB at its peak.
    """
    report.figure(f"{name}: peak", most, unit="GB")
    if setting.small:
        report.figure(f"{name}: planned peak", planned_peak(parts, phase=phase), unit="GB")
        return
    report.figure(f"{name}: planned to measured peak", planned_peak(parts, phase=phase) / most, NEAR)
    report.figure(f"{name}: planned to measured, what the phase adds", parts[phase] / (most - held), NEAR)


def tower(setting: Setting, report: Report) -> None:
    """The published vision tower alone: time and memory."""
    device = work.start(setting)
    made = work.model(setting, dtype=torch.bfloat16, pixels=1036)
    report.ran("the vision tower in bfloat16, images of noise")
    for count, side in ((1, 112), (2, 56)) if setting.small else ((1, 1036), (8, 1036), (8, 448)):
        prompts = [made.prompt(number, pixels=side) for number in range(count)]
        held = work.reset_peak(device)
        with torch.no_grad():
            features = made.policy.features(prompts)
            seconds = card.seconds_of(lambda prompts=prompts: made.policy.features(prompts), device, repeats=3)
        name = f"{count} image{'s' * (count > 1)} of {side} x {side}"
        report.figure(name, 1000 * seconds, unit="ms")
        report.figure(f"{name}: memory above the weights", work.peak(device) - held, unit="GB")
        bad = sum(int((~torch.isfinite(feature)).sum()) for feature in features)
        report.figure(f"{name}: values that are not finite", bad, Bar(at_most=0))


def rl_step(setting: Setting, report: Report) -> None:
    """A whole step of the published architecture on a card of 24 GB: the allocator may take no more."""
    device = work.start(setting)
    if not setting.small:
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / torch.cuda.mem_get_info()[1]))
    tokens, side, group = (8, 112, 2) if setting.small else (256, 1036, 4)
    empty = work.reset_peak(device)
    made = work.model(setting, dtype=torch.bfloat16, pixels=side)
    made.policy.recompute_activations()
    add_lora(made.policy, LoraConfig(rank=8), seed=0)
    prompt = made.prompt(0, pixels=side)
    cached = prompt.num_tokens + tokens
    load = Load(micro_batch=prompt.num_tokens + group * tokens, slots=group, cached=cached, prefill=prompt.num_tokens)
    parts = plan_of(made, load, recompute=True)
    report.ran(
        f"LoRA rank 8 in bfloat16, activations recomputed: a study of {prompt.num_tokens} tokens, {group} reports of "
        f"{tokens}, two inner epochs, at most {CAP / work.GB:.0f} GB"
    )
    weights = work.reset_peak(device) - empty
    report.figure("weights", weights, unit="GB")
    if not setting.small:
        report.figure("weights: planned to measured", parts["weights"] / weights, NEAR)
    trainer = Trainer(
        made.policy, OptimizerConfig(), num_steps=10, reference=lambda: reference(made.policy), frozen_vision=True
    )
    held = work.reset_peak(device)
    write = work.engine(made.policy, slots=group, new_recorder=work.graphs(device), tokens=tokens, temperature=1.0)
    reports = write(requests([prompt], group))
    compare_phase(setting, report, "rollout", parts, "rollout", held=held, most=work.peak(device))
    work.reset_peak(device)  # the engine and its caches stay: the plan counts them in both phases
    row = update(trainer, prompt, reports)
    compare_phase(setting, report, "update", parts, "training pass", held=held, most=work.peak(device))
    report.figure("gradient norm", row["grad_norm"], Bar(at_least=0))
    report.figure("updates skipped", row["updates_skipped"], Bar(at_most=0))


def update(trainer: Trainer, prompt: Prompt, reports: list[Rollout]) -> dict[str, float]:
    """Both inner epochs on one critical study; later reports have higher rewards."""
    rewards, group = torch.arange(len(reports), dtype=torch.float32), torch.zeros(len(reports), dtype=torch.int64)
    case = Case(prompt, tuple(reports), group_advantages(rewards, group).advantages, critical=True, clip=0.05)
    config = RlConfig(studies_per_step=1, group_size=len(reports))
    return trainer.capo_step([case], config, temperature=1.0, suppressed=None)


def sft_step(setting: Setting, report: Report) -> None:
    """One micro-batch of 4,096 tokens, activations kept."""
    device = work.start(setting)
    length, side = (64, 112) if setting.small else (2048, 1036)
    made = work.model(setting, dtype=torch.bfloat16, pixels=side)
    add_lora(made.policy, LoraConfig(rank=8), seed=0)
    prompts = [made.prompt(number, pixels=side) for number in range(2)]
    reports = work.random_reports(made.policy.vocab_size, [length - prompt.num_tokens for prompt in prompts])
    trainer = Trainer(made.policy, OptimizerConfig(token_budget=2 * length), num_steps=10)
    report.ran(f"LoRA rank 8 in bfloat16, 2 studies of {length} tokens in one micro-batch, two steps")
    parts = plan_of(made, Load(micro_batch=2 * length, slots=0, cached=length, prefill=0), recompute=False)
    held = work.reset_peak(device)
    rows = [sft.sft_step(trainer, prompts, reports) for _ in range(2)]
    compare_phase(setting, report, "step", parts, "training pass", held=held, most=work.peak(device))
    report.figure(
        "seconds of a step", card.seconds_of(lambda: sft.sft_step(trainer, prompts, reports), device, repeats=2)
    )
    report.figure("loss per token, first step", rows[0]["loss"], unit="nats")
    report.figure("updates skipped", rows[-1]["updates_skipped"], Bar(at_most=0))
