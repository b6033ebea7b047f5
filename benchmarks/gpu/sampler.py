"""The sampler against the training path, with LoRA in bfloat16, and the KL before the first update."""

from collections.abc import Sequence

import torch
from checkpoint import requests
from gpu import work
from gpu.report import Bar, Report, exactly
from gpu.runner import Setting
from torch import Tensor

from capo.kl import k3
from capo.packing import report_logps
from capo.types import Rollout
from radflow.models.lora import LoraConfig, adapters, add_lora, reference
from radflow.models.qwen_vl import QwenVL

GROUP = 4
MEAN_GAP = Bar(at_most=0.005)


def compare(setting: Setting, report: Report) -> None:
    device = work.start(setting)
    tokens, side = (12, 56) if setting.small else (128, 448)
    made = work.model(setting, layers=4, dtype=torch.bfloat16, pixels=448)
    add_lora(made.policy, LoraConfig(rank=8), seed=0)
    prompts = [made.prompt(number, pixels=side) for number in range(4)]
    report.ran(
        f"{made.policy.num_layers} layers in bfloat16, LoRA rank 8, 4 studies of {prompts[0].num_tokens} tokens, "
        f"{GROUP} reports of {tokens} each, temperature 1; gaps of log-probabilities in nats"
    )
    for trained in (False, True):
        if trained:
            _train(made.policy)
        write = work.engine(made.policy, slots=8, new_recorder=work.graphs(device), tokens=tokens, temperature=1.0)
        reports = write(requests(prompts, GROUP))
        gap, divergence = _gap_and_kl(made.policy, prompts, reports, device)
        name = "trained adapters" if trained else "fresh adapters"
        report.figure(f"{name}: sampler gap, mean", float(gap.mean()), MEAN_GAP)
        report.figure(f"{name}: sampler gap, 99th percentile", float(gap.quantile(0.99)))
        report.figure(f"{name}: sampler gap, largest", float(gap.max()))
        if not trained:
            report.figure("KL before the first update, largest of a token", float(divergence.abs().max()), exactly(0.0))


def _train(policy: QwenVL) -> None:
    """Sets B of each adapter to values other than 0, as after training."""
    for number, adapter in enumerate(adapters(policy).values()):
        generator = torch.Generator().manual_seed(number)
        adapter.lora_b.data.copy_(0.01 * torch.randn(adapter.lora_b.shape, generator=generator))


@torch.no_grad()
def _gap_and_kl(
    policy: QwenVL, prompts: Sequence, reports: Sequence[Rollout], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Gap of the sampler to the training path and KL to the policy without adapters, [N] each."""
    groups = [[r for r in reports if r.study_id == prompt.study_id] for prompt in prompts]
    layout = work.layout_of(prompts, [[r.response_ids for r in group] for group in groups], device)
    logps, _ = report_logps(policy, layout)
    with reference(policy) as before:
        frozen, _ = report_logps(before, layout)
    sampled = torch.cat([r.behaviour_logps for group in groups for r in group])
    divergence = k3(logps, frozen, layout.mask)[layout.mask]
    return (logps[layout.mask].cpu() - sampled).abs(), divergence.cpu()
