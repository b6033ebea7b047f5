"""One RL step, ours against TRL's GRPOTrainer: same model, images, LoRA, group size, tokens, inner epochs and KL.

A step is two studies of one 448 x 448 image (256 image tokens), four reports of 96 tokens each, a reward, and two
updates on them. `make bench` runs it in the environment that has the peers.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from checkpoint import build, prompt
from harness import arguments, compare
from PIL import Image

STUDIES, GROUP, TOKENS, BETA, STEPS = 2, 4, 96, 0.02, 1
TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


def reward_of(text: str) -> float:
    """Any number that differs between reports."""
    return len(text) % 17 / 17


def touch(model: torch.nn.Module) -> None:
    """Read every weight: a checkpoint is mapped from its file, and reading it is not part of a step."""
    for parameter in model.parameters():
        parameter.sum()


def ours(folder: Path, *, recompute: bool) -> Callable[[], float]:
    from capo.advantages import group_advantages
    from capo.rollout import Request, rollout
    from capo.sampling import SamplingConfig, sample_seed
    from capo.trainer import OptimizerConfig, RlConfig, Trainer
    from capo.types import Case
    from models.lora import LoraConfig, adapters_off, add_lora
    from models.processing import ProcessorConfig, ReportProcessor
    from models.qwen_vl import load

    policy, processor = load(folder), ReportProcessor.load(folder, ProcessorConfig())
    if recompute:
        policy.recompute_activations()
    touch(policy.model)
    add_lora(policy, LoraConfig(rank=8, targets=TARGETS), seed=0)
    trainer = Trainer(
        policy, OptimizerConfig(lr=1e-5), num_steps=100, reference=lambda: adapters_off(policy), frozen_vision=True
    )
    config = RlConfig(studies_per_step=STUDIES, group_size=GROUP, beta=BETA, inner_epochs=2)
    # Nothing is banned and nothing ends a report, as in TRL's run: every report has its 96 tokens.
    sampling, banned, never = (
        SamplingConfig(max_new_tokens=TOKENS),
        torch.zeros(policy.vocab_size, dtype=torch.bool),
        -1,
    )

    def step(number: int) -> float:
        prompts = [prompt(processor, number * STUDIES + i) for i in range(STUDIES)]
        requests = [
            Request(p, tuple(sample_seed(0, "bench", number, p.study_id, i) for i in range(GROUP))) for p in prompts
        ]
        groups: dict[str, list] = {p.study_id: [None] * GROUP for p in prompts}
        for report in rollout(policy, requests, sampling=sampling, eos_id=never, banned=banned):
            groups[report.study_id][report.sample] = report
        rewards = [reward_of(processor.decode(r.response_ids)) for group in groups.values() for r in group]
        numbers = torch.arange(STUDIES).repeat_interleave(GROUP)
        advantages = group_advantages(torch.tensor(rewards), numbers).advantages.split(GROUP)
        cases = [
            Case(p, tuple(groups[p.study_id]), a, critical=False) for p, a in zip(prompts, advantages, strict=True)
        ]
        return trainer.improve(cases, config, temperature=1.0, banned=banned)["tokens"]

    return lambda: float(sum(step(number) for number in range(STEPS)))


def trl(folder: Path, *, checkpointing: bool) -> Callable[[], float]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from trl import GRPOConfig, GRPOTrainer

    class Processor(Qwen2_5_VLProcessor):
        """Without torchvision there is no video processor to check for."""

        def check_argument_for_proper_class(self, argument_name, argument):
            return type(argument)

    class NoVideos:
        merge_size, temporal_patch_size, model_input_names = 2, 2, ()

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    processor = Processor(
        Qwen2VLImageProcessorPil.from_pretrained(folder), tokenizer, NoVideos(), chat_template=tokenizer.chat_template
    )
    noise = torch.Generator().manual_seed(0)
    images = [
        Image.fromarray(torch.randint(0, 256, (448, 448, 3), generator=noise, dtype=torch.uint8).numpy())
        for _ in range(STUDIES * STEPS * 2)
    ]
    question = [{"role": "user", "content": "Report this chest radiograph: Findings and Impression."}]
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    touch(model)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [reward_of(c[0]["content"]) for c in completions],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=STUDIES * GROUP,
            num_generations=GROUP,
            num_iterations=2,
            max_completion_length=TOKENS,
            max_steps=2 * STEPS,
            learning_rate=1e-5,
            beta=BETA,
            loss_type="grpo",
            gradient_checkpointing=checkpointing,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        processing_class=processor,
        train_dataset=Dataset.from_dict({"prompt": [question] * len(images), "image": images}),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS),
    )

    def work() -> float:
        trainer.train()
        return float(2 * STEPS * STUDIES * GROUP * TOKENS)

    return work


if __name__ == "__main__":
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        build(path)
        compare(
            "rl_step",
            {
                "RadFlow": functools.partial(ours, path, recompute=False),
                "RadFlow, activations recomputed": functools.partial(ours, path, recompute=True),
                "TRL 1.16": functools.partial(trl, path, checkpointing=False),
                "TRL 1.16, activations recomputed (its default)": functools.partial(trl, path, checkpointing=True),
            },
            setting=f"one step of {STUDIES} studies x {GROUP} reports x {TOKENS} tokens, LoRA rank 8, float32",
            rounds=options.rounds,
            threads=options.threads,
        )
