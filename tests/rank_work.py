"""What the processes of test_capo_ranks.py do: run under torchrun, results of the first rank go to a folder."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import save_file

from capo.advantages import group_advantages
from capo.config import OptimizerConfig, RlConfig
from capo.fsdp import ParallelConfig, gathered, shard_policy, sharded_modules
from capo.ranks import Ranks
from capo.rollout import Request, rollout
from capo.sampling import SamplingConfig, sample_seed
from capo.sft import sft_step
from capo.trainer import Trainer
from capo.types import Case
from radflow.data.phantoms import make_studies
from radflow.models.adapter_files import save_adapter
from radflow.models.lora import LoraConfig, add_lora, reference
from radflow.models.processing import ProcessorConfig, ReportProcessor
from radflow.models.qwen_vl import load
from radflow.pipeline.generation import build_prompt, suppressed_mask

STEPS, GROUP = 5, 3


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def build(folder, ranks, sharding, training):
    policy = load(folder)
    if training == "lora":
        add_lora(policy, LoraConfig(rank=4), seed=2)  # with 1 a draw lies on the edge of two tokens: rounding decides
    else:
        policy.vision.requires_grad_(True)
    frozen = load(folder).requires_grad_(False)
    for model in (policy, frozen):
        shard_policy(model, ParallelConfig(sharding=sharding), ranks, torch.device("cpu"))
    return policy, frozen


def cases_of(policy, processor, studies, step, ranks):
    """Reports of ragged lengths, each sampled by one rank and sent to all; rewards that every rank can compute."""
    prompts = {study.id: build_prompt(processor, study) for study in studies}
    own = [studies[i] for i in ranks.assign([1] * len(studies))]
    requests = [Request(prompts[s.id], tuple(sample_seed(0, "rl", step, s.id, i) for i in range(GROUP))) for s in own]
    options = {"sampling": SamplingConfig(max_new_tokens=24), "eos_id": processor.eos_id}
    with gathered(policy):
        reports = list(rollout(policy, requests, suppressed=suppressed_mask(policy, processor), **options))
    rows = [[r.study_id, r.sample, r.response_ids.tolist(), r.behaviour_logps.tolist()] for r in reports]
    everything = {(row[0], row[1]): row for part in ranks.all_gather(rows) for row in part}
    cases, sampled = [], {}
    for number, study in enumerate(studies):
        group = []
        for sample in range(GROUP):
            _, _, ids, logps = everything[study.id, sample]
            ids, logps = ids[: 3 + 5 * number + sample], logps[: 3 + 5 * number + sample]  # unequal by far
            group.append(type(reports[0])(study.id, sample, torch.tensor(ids), torch.tensor(logps), truncated=True))
            sampled[f"{study.id}/{sample}"] = ids
        rewards = torch.tensor([float(sum(r.response_ids.tolist()) % 7) for r in group])
        advantages = group_advantages(rewards, torch.zeros(GROUP, dtype=torch.int64)).advantages
        cases.append(
            Case(
                prompts[study.id], tuple(group), advantages, critical=number % 2 == 0, clip=0.2 if number % 2 else 0.05
            )
        )
    return cases, sampled


def train(folder, name, ranks, sharding, training, budget, objective):
    processor = ReportProcessor.load(folder, ProcessorConfig())
    studies = make_studies("chest", num_train=5, num_val=0, num_test=0, seed=5, size=112)
    policy, frozen = build(folder, ranks, sharding, training)
    # eps of Adam far above the rounding of gradients: elements that are 0 up to rounding must not be blown up to +-lr
    optimizer = OptimizerConfig(lr=1e-3, max_grad_norm=1e6, token_budget=budget)
    lora = training == "lora"
    before = (lambda: reference(policy)) if lora else (lambda: nullcontext(frozen))
    trainer = Trainer(policy, optimizer, num_steps=100, reference=before, frozen_vision=lora, ranks=ranks)
    trainer.optimizer.param_groups[0]["eps"] = trainer.optimizer.param_groups[1]["eps"] = 1e-4
    first_gradients = {}

    def keep_gradients(*_):
        if not first_gradients:
            for name, p in policy.named_parameters():
                if p.requires_grad:
                    first_gradients[name] = whole(p.grad).clone()

    trainer.optimizer.register_step_pre_hook(keep_gradients)
    config = RlConfig(studies_per_step=5, group_size=GROUP, inner_epochs=2, beta=0.1, objective=objective)
    rows, sampled = [], {}
    suppressed = suppressed_mask(policy, processor)
    for step in range(STEPS - 1):
        cases, sampled[step] = cases_of(policy, processor, studies, step, ranks)
        row = trainer.capo_step(cases, config, temperature=1.0, suppressed=suppressed)
        rows.append({name: value for name, value in row.items() if not name.startswith("sampler_gap")})
    own = ranks.assign([len(processor.encode_report(s.report)) for s in studies])
    reports = [processor.encode_report(s.report) for s in studies]
    prompts = [build_prompt(processor, studies[i]) for i in own]
    tokens = sum(map(len, reports))
    rows.append(sft_step(trainer, prompts, [reports[i] for i in own], num_tokens=tokens, suppressed=suppressed))
    weights = {name: whole(p.detach()).clone() for name, p in policy.named_parameters() if p.requires_grad}
    if lora:
        save_adapter(policy, Path(f"{name}.adapter"), LoraConfig(rank=4), base="base", write=ranks.is_main)
    local = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in policy.parameters())
    sizes = {"local": ranks.all_gather(local), "modules": len(sharded_modules(policy))}
    return first_gradients, weights, {"rows": rows, "sampled": sampled, **sizes}


def main(model, out, *settings):
    torch.set_num_threads(1)
    ranks = Ranks.from_environment(timeout_s=120)
    for setting in settings:
        sharding, training, budget, objective = setting.split(",")
        name = Path(out) / f"{ranks.size}-{setting}"
        gradients, weights, facts = train(Path(model), name, ranks, sharding, training, int(budget), objective)
        if ranks.is_main:
            save_file({n: t.contiguous() for n, t in gradients.items()}, f"{name}.gradients")
            save_file({n: t.contiguous() for n, t in weights.items()}, f"{name}.weights")
            Path(f"{name}.json").write_text(json.dumps(facts))
    ranks.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
