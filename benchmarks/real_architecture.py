"""One whole RL step of Qwen2.5-VL-3B on the CPU: published sizes, random weights in bfloat16, LoRA rank 8.

One phantom study of 1024 x 1024 pixels, scaled as a run scales it (324 image tokens), two reports of 16 tokens, a
reward, two inner epochs. Needs 13 GB of memory and no network. Every part is run once, in one process; the
peak memory of the process is compared with what `train.py plan` says.
"""

from dataclasses import dataclass

import rl_step
import torch
from breakdown import Stopwatch, time_parts
from checkpoint import SIZE, published_3b, random_policy, requests
from harness import arguments, machine, peak_memory, start_watching_memory, write

from capo.advantages import group_advantages
from capo.config import OptimizerConfig, RlConfig
from capo.rollout import rollout
from capo.sampling import SamplingConfig
from capo.trainer import Trainer
from capo.types import Case
from radflow.data.phantoms import make_studies
from radflow.models.lora import LoraConfig, add_lora, reference, trainable_table
from radflow.models.processing import ReportProcessor, prompt_texts
from radflow.models.qwen_vl import QwenVL
from radflow.models.start import ModelConfig
from radflow.models.tiny import train_tokenizer
from radflow.pipeline.generation import build_prompt, suppressed_mask
from radflow.pipeline.memory_plan import GB, SPARE, Load, Sizes, memory, total

GROUP, TOKENS, EPOCHS = 2, 16, 2


@dataclass(frozen=True)
class Started:
    """What a step needs."""

    policy: QwenVL
    processor: ReportProcessor
    study: object
    sizes: Sizes


def start() -> Started:
    """Weights are drawn in bfloat16: a float32 copy would take as much memory as the whole step."""
    studies = make_studies("chest", num_train=200, num_val=0, num_test=0, seed=0, size=56)
    tokenizer = train_tokenizer([s.report for s in studies] + prompt_texts() * 20, SIZE.vocab_size)
    config = published_3b(tokenizer)
    policy, processor = random_policy(tokenizer, config, tied=True, dtype=torch.bfloat16, max_pixels=512 * 512)
    sizes = Sizes.of(config, ModelConfig(path="published"))
    add_lora(policy, LoraConfig(rank=8), seed=0)
    print(trainable_table(policy), flush=True)
    (study,) = make_studies("chest", num_train=1, num_val=0, num_test=0, seed=1, size=1024)
    return Started(policy, processor, study, sizes)


def step(started: Started, watch: Stopwatch) -> tuple[int, dict[str, float], dict[str, float]]:
    """Rollout, reward, update: tokens of the prompt, the trainer's metrics, GB at the peak of each phase."""
    policy, processor, study = started.policy, started.processor, started.study
    trainer = Trainer(policy, OptimizerConfig(), num_steps=100, reference=lambda: reference(policy), frozen_vision=True)
    suppressed = suppressed_mask(policy, processor)
    with watch.part("image processing and tokenizer"):
        prompt = build_prompt(processor, study)
    options = {"sampling": SamplingConfig(max_new_tokens=TOKENS), "eos_id": processor.eos_id, "suppressed": suppressed}
    start_watching_memory()
    reports = sorted(
        rollout(policy, requests([prompt], GROUP), slots=GROUP, **options), key=lambda report: report.sample
    )
    peaks = {"rollout": peak_memory()}
    with watch.part("reward and advantages"):
        rewards = [rl_step.reward_of(processor.decode(report.response_ids)) for report in reports]
        advantages = group_advantages(torch.tensor(rewards), torch.zeros(GROUP, dtype=torch.int64)).advantages
    case = Case(prompt, tuple(reports), advantages, critical=True, clip=0.05)
    config = RlConfig(studies_per_step=1, group_size=GROUP, inner_epochs=EPOCHS)
    start_watching_memory()
    metrics = trainer.capo_step([case], config, temperature=1.0, suppressed=suppressed)
    peaks["update"] = peak_memory()
    return prompt.num_tokens, metrics, {phase: round(mb * 2**20 / GB, 2) for phase, mb in peaks.items()}


if __name__ == "__main__":
    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    libraries = start_watching_memory() * 2**20 / GB
    watch = Stopwatch()
    with time_parts(watch), watch.part("everything else"):
        with watch.part("random weights"):
            started = start()
        length, metrics, peaks = step(started, watch)
    load = Load(micro_batch=length + GROUP * TOKENS, slots=GROUP, cached=length + TOKENS, prefill=length)
    estimate = memory(started.sizes, ModelConfig(path="published"), load, sharding="replicate", world=1, local=1)
    facts = {
        "parameters": started.sizes.parameters,
        "trained": started.sizes.trained,
        "prompt_tokens": length,
        "metrics": metrics,
        "peak_gb": peaks,
        "libraries_gb": round(libraries, 2),
        # On a CPU there is no CUDA context and no fragmentation, but the libraries count.
        "planned_gb": round(total(estimate) - SPARE + libraries, 2),
        "plan": {name: round(value, 3) for name, value in estimate.items()},
    }
    print(facts)
    setting = (
        f"one step of Qwen2.5-VL-3B, random weights in bfloat16, LoRA rank 8: 1 study of {length} prompt tokens, "
        f"{GROUP} reports of {TOKENS} tokens, {EPOCHS} inner epochs"
    )
    content = {"setting": setting, "rounds": 1, "machine": machine(options.threads), "parts": dict(watch.seconds)}
    write("real_architecture", {**content, **facts})
