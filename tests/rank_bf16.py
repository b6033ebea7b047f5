"""Ranks that train in bfloat16, for test_capo_ranks_bf16.py: what they compute and save, by the first rank."""

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import save_file

from capo.config import OptimizerConfig, RlConfig
from capo.fsdp import ParallelConfig, gathered, shard_policy, sharded_modules
from capo.packing import pack, report_logps
from capo.ranks import Ranks
from capo.rollout import Request, rollout
from capo.sampling import SamplingConfig, sample_seed
from capo.trainer import Trainer
from capo.types import Case
from radflow.data.phantoms import make_studies
from radflow.models.lora import LoraConfig, adapters, add_lora, merge_lora
from radflow.models.processing import ProcessorConfig, ReportProcessor
from radflow.models.qwen_vl import load, whole
from radflow.pipeline.generation import build_prompt, suppressed_mask

CPU, BF16, GROUP = torch.device("cpu"), torch.bfloat16, 3


def logps_of(policy, prompts, reports):
    layout = pack(prompts, reports)
    with torch.no_grad():
        return policy(lambda: report_logps(policy, layout))[0]


def adapted(folder, sharding, ranks):
    """Log-probabilities of a policy in bfloat16 whose adapters have moved."""
    policy = load(folder, dtype=BF16)
    add_lora(policy, LoraConfig(rank=4), seed=2)
    drawn = torch.Generator().manual_seed(0)
    for adapter in adapters(policy).values():
        adapter.lora_b.data.normal_(generator=drawn).mul_(0.03)
    shard_policy(policy, ParallelConfig(sharding=sharding), ranks, CPU, frozen_dtype=BF16)
    return policy


def trained(folder, sharding, ranks, processor, studies):
    """Two CAPO steps on all weights: float32 masters, bfloat16 copies that compute."""
    policy, frozen = load(folder), load(folder, dtype=BF16).requires_grad_(False)
    shard_policy(policy, ParallelConfig(sharding=sharding), ranks, CPU, frozen_dtype=torch.float32, gathered_dtype=BF16)
    trainer = Trainer(
        policy,
        OptimizerConfig(lr=1e-3, max_grad_norm=1e6),
        num_steps=100,
        reference=lambda: nullcontext(frozen),
        ranks=ranks,
    )
    for group in trainer.optimizer.param_groups:
        group["eps"] = 1e-3  # far above rounding: an element of the gradient that is 0 up to it moves nothing
    prompts = [build_prompt(processor, study) for study in studies]
    requests = [Request(p, tuple(sample_seed(0, "rl", 0, p.study_id, i) for i in range(GROUP))) for p in prompts]
    suppressed = suppressed_mask(policy, processor)
    with gathered(policy):
        options = {"sampling": SamplingConfig(max_new_tokens=12), "eos_id": processor.eos_id, "suppressed": suppressed}
        reports = sorted(rollout(policy, requests, **options), key=lambda r: (r.study_id, r.sample))
    grouped = [tuple(r for r in reports if r.study_id == p.study_id) for p in prompts]
    advantages = torch.tensor([1.0, -0.5, -0.5])
    cases = [
        Case(p, g, advantages, critical=n % 2 == 0, clip=0.2 if n % 2 else 0.05)
        for n, (p, g) in enumerate(zip(prompts, grouped, strict=True))
    ]
    config = RlConfig(studies_per_step=4, group_size=GROUP, inner_epochs=1, beta=0.1)
    rows = [trainer.capo_step(cases, config, temperature=1.0, suppressed=suppressed) for _ in range(2)]
    return policy, rows, [r.response_ids.tolist() for r in reports]


def main(folder, out):
    torch.set_num_threads(1)
    ranks = Ranks.from_environment(timeout_s=120)
    processor = ReportProcessor.load(folder, ProcessorConfig())
    studies = make_studies("chest", num_train=4, num_val=0, num_test=0, seed=5, size=112)
    prompts = [build_prompt(processor, study) for study in studies]
    texts = [[processor.encode_report(study.report)] for study in studies]
    for sharding in ("replicate", "full")[: ranks.size]:
        policy = adapted(folder, sharding, ranks)
        found = {"lora": logps_of(policy, prompts, texts)}
        merge_lora(policy)
        found["merged"] = logps_of(policy, prompts, texts)
        policy, rows, sampled = trained(folder, sharding, ranks, processor, studies)
        for name, parameter in policy.named_parameters():
            assert parameter.dtype == torch.float32
            found[f"weights/{name}"] = whole(parameter.detach())
        found |= {
            f"{key}/{step}": torch.tensor(float(row[key]))
            for step, row in enumerate(rows)
            for key in ("kl_before", "loss", "grad_norm", "sampler_gap_max")
        }
        found["sampled"] = torch.tensor([token for report in sampled for token in report])
        found["modules"] = torch.tensor(len(sharded_modules(policy)))
        policy.save(Path(out) / f"{ranks.size}-{sharding}.model", processor, write=ranks.is_main)
        if ranks.is_main:
            save_file({n: t.contiguous().clone() for n, t in found.items()}, Path(out) / f"{ranks.size}-{sharding}")
    ranks.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
