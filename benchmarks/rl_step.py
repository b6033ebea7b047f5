"""One RL step, ours against TRL's GRPOTrainer: same model, images, LoRA, group size, tokens, inner epochs and KL.

A step is two studies of one 448 x 448 image (256 image tokens), four reports of 96 tokens each, a reward, and two
updates on them. `make bench` runs it in the environment that has the peers.
"""

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from checkpoint import build, prompt, requests
from flops import gflop
from harness import arguments, compare
from PIL import Image

TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


@dataclass(frozen=True)
class Work:
    """One step; on a GPU in bfloat16, elsewhere in float32."""

    studies: int = 2
    group: int = 4
    tokens: int = 96
    pixels: int = 448
    beta: float = 0.02

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"one step of {self.studies} studies x {self.group} reports x {self.tokens} tokens, LoRA rank 8, {kind}"


def reward_of(text: str) -> float:
    """A number that differs between reports."""
    return len(text) % 17 / 17


def touch(model: torch.nn.Module) -> None:
    """Read every weight: a checkpoint is mapped from its file, and reading it is not part of a step."""
    for parameter in model.parameters():
        parameter.sum()


def load_policy(folder: Path, work: Work, *, recompute: bool):
    """The policy with its adapters, the processor and the prompts of one step."""
    from radflow.models.lora import LoraConfig, add_lora
    from radflow.models.processing import ProcessorConfig, ReportProcessor
    from radflow.models.qwen_vl import load

    policy = load(folder, dtype=work.dtype).to(work.device)
    processor = ReportProcessor.load(folder, ProcessorConfig(max_pixels=work.pixels**2))
    if recompute:
        policy.recompute_activations()
    touch(policy.model)
    add_lora(policy, LoraConfig(rank=8, targets=TARGETS), seed=0)
    return policy, processor


def ours(folder: Path, work: Work, *, recompute: bool) -> Callable[[], float]:
    from capo.advantages import group_advantages
    from capo.config import OptimizerConfig, RlConfig
    from capo.sampling import SamplingConfig
    from capo.trainer import Trainer
    from capo.types import Case
    from radflow.models.lora import reference
    from radflow.pipeline.generation import with_features
    from radflow.pipeline.rollouts import LocalEngine

    policy, processor = load_policy(folder, work, recompute=recompute)
    trainer = Trainer(
        policy, OptimizerConfig(lr=1e-5), num_steps=100, reference=lambda: reference(policy), frozen_vision=True
    )
    config = RlConfig(studies_per_step=work.studies, group_size=work.group, beta=work.beta, inner_epochs=2)
    # Nothing is suppressed and nothing ends a report, as in TRL's run: every report has all its tokens.
    sampling, never = SamplingConfig(max_new_tokens=work.tokens), -1
    suppressed = torch.zeros(policy.vocab_size, dtype=torch.bool, device=work.device)
    slots = work.studies * work.group
    engine = LocalEngine(policy, sampling=sampling, eos_id=never, suppressed=suppressed, slots=slots)

    def step() -> float:
        images = [prompt(processor, number, pixels=work.pixels) for number in range(work.studies)]
        prompts = with_features(policy, images)
        groups: dict[str, list] = {p.study_id: [None] * work.group for p in prompts}
        for report in engine.rollout(requests(prompts, work.group)):
            groups[report.study_id][report.sample] = report
        rewards = [reward_of(processor.decode(r.response_ids)) for group in groups.values() for r in group]
        numbers = torch.arange(work.studies).repeat_interleave(work.group)
        advantages = group_advantages(torch.tensor(rewards), numbers).advantages.split(work.group)
        cases = [
            Case(p, tuple(groups[p.study_id]), a, critical=False, clip=config.eps_normal)
            for p, a in zip(prompts, advantages, strict=True)
        ]
        return trainer.capo_step(cases, config, temperature=1.0, suppressed=suppressed)["tokens"]

    return step


def trl(folder: Path, work: Work, *, checkpointing: bool, completions: bool = False) -> Callable[[], float]:
    """Without Triton, TRL puts every position of the prompt through the head too; with `completions` those of reports
    alone, as it does on a GPU."""
    import trl.trainer.utils
    from datasets import Dataset
    from peft import LoraConfig
    from qwen_processor import processor_without_videos
    from transformers import Qwen2_5_VLForConditionalGeneration
    from trl import GRPOConfig, GRPOTrainer

    if completions:
        trl.trainer.utils._use_triton = lambda _: True
    processor = processor_without_videos(folder, padding_side="left")
    noise = torch.Generator().manual_seed(0)
    shape = (work.pixels, work.pixels, 3)
    images = [
        Image.fromarray(torch.randint(0, 256, shape, generator=noise, dtype=torch.uint8).numpy())
        for _ in range(work.studies * 2)
    ]
    question = [{"role": "user", "content": "Report this chest radiograph: Findings and Impression."}]
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=work.dtype)
    touch(model)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [reward_of(c[0]["content"]) for c in completions],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=work.studies * work.group,
            num_generations=work.group,
            num_iterations=2,
            max_completion_length=work.tokens,
            max_steps=2,
            learning_rate=1e-5,
            beta=work.beta,
            loss_type="grpo",
            gradient_checkpointing=checkpointing,
            use_cpu=work.device.type == "cpu",
            bf16=work.dtype == torch.bfloat16,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        processing_class=processor,
        train_dataset=Dataset.from_dict({"prompt": [question] * len(images), "image": images}),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS),
    )

    def step() -> float:
        trainer.train()
        return float(2 * work.studies * work.group * work.tokens)

    return step


def variants(path: Path, work: Work) -> dict[str, Callable]:
    rows: dict[str, Callable] = {
        "RadFlow": functools.partial(ours, path, work, recompute=False),
        "RadFlow, activations recomputed": functools.partial(ours, path, work, recompute=True),
    }
    on_gpu = work.device.type == "cuda"
    for completions in [True] if on_gpu else [False, True]:
        name = "TRL 1.16" if on_gpu or not completions else "TRL 1.16, completions alone through the head"
        options = {"completions": completions and not on_gpu}
        rows[name] = functools.partial(trl, path, work, checkpointing=False, **options)
        rows[f"{name}, activations recomputed (its default)"] = functools.partial(
            trl, path, work, checkpointing=True, **options
        )
    return rows


if __name__ == "__main__":
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        path, work = Path(folder) / "model", Work()
        build(path)
        torch.set_num_threads(options.threads)
        rows = variants(path, work)
        # What one step of ours needs is what every variant is for.
        needed = gflop(ours(path, work, recompute=False))
        compare(
            "rl_step",
            rows,
            setting=str(work),
            rounds=options.rounds,
            threads=options.threads,
            gflop=dict.fromkeys(rows, needed),
        )
