"""The rollout and the update of the demo's RL steps, and an SFT step, and how near they come to a large matrix product.

The model has the demo's sizes and random weights, so that no report ends: each has as many tokens as the demo's have on
average. Studies, batch sizes and passes are those of configs/demo.yaml.
"""

import functools
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from checkpoint import requests
from flops import gflop
from harness import arguments, compare

from capo.advantages import group_advantages
from capo.config import OptimizerConfig, RlConfig
from capo.sampling import SamplingConfig
from capo.sft import sft_step
from capo.trainer import Trainer
from capo.types import Case
from radflow.data.phantoms import make_studies
from radflow.models.processing import ProcessorConfig, ReportProcessor
from radflow.models.qwen_vl import load
from radflow.models.tiny import TinyConfig, build_tiny
from radflow.pipeline.generation import build_prompt, with_features
from radflow.pipeline.rollouts import LocalEngine

STUDIES, GROUP, TOKENS, SLOTS = 16, 4, 36, 64
CORPUS = {"num_train": 200, "num_val": 0, "num_test": 0, "seed": 0, "size": 112}


def start(folder: Path) -> tuple:
    """Policy, processor, prompts with features, and the studies' reports."""
    policy, processor = load(folder), ReportProcessor.load(folder, ProcessorConfig())
    policy.vision.requires_grad_(False)
    studies = make_studies("chest", **CORPUS)[:STUDIES]
    prompts = with_features(policy, [build_prompt(processor, study) for study in studies])
    return policy, processor, prompts, [processor.encode_report(study.report) for study in studies]


def rollout(folder: Path) -> Callable[[], float]:
    policy, _, prompts, _ = start(folder)
    suppressed = torch.zeros(policy.vocab_size, dtype=torch.bool)
    sampling = SamplingConfig(max_new_tokens=TOKENS)
    engine = LocalEngine(policy, sampling=sampling, eos_id=-1, suppressed=suppressed, slots=SLOTS)

    def work() -> float:
        return float(sum(len(report.response_ids) for report in engine.rollout(requests(prompts, GROUP))))

    work()  # as in all steps but the first, the cache is there
    return work


def update(folder: Path) -> Callable[[], float]:
    policy, _, prompts, _ = start(folder)
    frozen, *_ = start(folder)
    suppressed = torch.zeros(policy.vocab_size, dtype=torch.bool)
    engine = LocalEngine(
        policy, sampling=SamplingConfig(max_new_tokens=TOKENS), eos_id=-1, suppressed=suppressed, slots=SLOTS
    )
    groups: dict[str, list] = {prompt.study_id: [] for prompt in prompts}
    for report in engine.rollout(requests(prompts, GROUP)):
        groups[report.study_id].append(report)
    config = OptimizerConfig(lr=1e-5, token_budget=2400)
    trainer = Trainer(policy, config, num_steps=100, reference=lambda: nullcontext(frozen), frozen_vision=True)
    advantages = group_advantages(torch.rand(GROUP), torch.zeros(GROUP, dtype=torch.int64)).advantages
    cases = [Case(p, tuple(groups[p.study_id]), advantages, critical=False, clip=0.2) for p in prompts]
    rl = RlConfig(studies_per_step=STUDIES, group_size=GROUP, beta=0.1, inner_epochs=2)

    def work() -> float:
        return float(trainer.capo_step(cases, rl, temperature=1.0, suppressed=suppressed)["tokens"])

    work()
    return work


def sft(folder: Path) -> Callable[[], float]:
    policy, _, prompts, reports = start(folder)
    trainer = Trainer(policy, OptimizerConfig(lr=1e-5, token_budget=2048), num_steps=100)

    def work() -> float:
        return float(sft_step(trainer, prompts, reports)["tokens"])

    work()
    return work


VARIANTS = {"rollout": rollout, "update": update, "SFT step": sft}

if __name__ == "__main__":
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        build_tiny(path, [study.report for study in make_studies("chest", **CORPUS)], TinyConfig(), seed=0)
        torch.set_num_threads(options.threads)
        rows = {name: functools.partial(prepare, path) for name, prepare in VARIANTS.items()}
        compare(
            "demo_step",
            rows,
            setting=f"{STUDIES} studies, {GROUP} reports of {TOKENS} tokens; the demo's model",
            rounds=options.rounds,
            threads=options.threads,
            against={name: name for name in rows},
            unit="tokens",
            gflop={name: gflop(prepare()) for name, prepare in rows.items()},
        )
