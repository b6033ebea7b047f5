"""Gap between the log-probabilities of sampler and training path in bfloat16, and the number of operations that a
decoding step launches, for four ways to sample from a policy with LoRA adapters.

The policy is the small one: 60 steps of SFT on phantoms in float32, cast to bfloat16, then 5 steps of its adapters.
Operations are counted on 36 layers with 252 adapters, as Qwen2.5-VL-3B has them, at a small width.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from checkpoint import requests
from harness import arguments, machine, write
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import capo.rollout
from capo.config import OptimizerConfig
from capo.packing import pack, report_logps
from capo.rollout import Engine, Request
from capo.sampling import SamplingConfig
from capo.sft import sft_step
from capo.trainer import Trainer
from radflow.data.phantoms import make_studies
from radflow.models.lora import LoraConfig, LoraLinear, add_lora, cast_once, merge_lora
from radflow.models.processing import ProcessorConfig, ReportProcessor
from radflow.models.qwen_vl import QwenVL, load
from radflow.models.tiny import TinyConfig, build_tiny
from radflow.pipeline.generation import build_prompt, suppressed_mask

GROUP, TOKENS = 3, 96
VIEWS = (
    "view",
    "reshape",
    "t.",
    "transpose",
    "permute",
    "expand",
    "slice",
    "select",
    "unsqueeze",
    "squeeze",
    "split",
    "detach",
    "alias",
    "unbind",
    "_unsafe_view",
    "as_strided",
    "lift_fresh",
)


@contextmanager
def float32_adapters(_: QwenVL) -> Iterator[None]:
    """Adapters multiplied in float32 and added afterwards, as in earlier versions."""

    def forward(layer: LoraLinear, x: Tensor) -> Tensor:
        out = layer.base(x)
        added = x.to(layer.lora_a.dtype) @ layer.lora_a.t() @ layer.lora_b.t()
        return out + (layer.scale * added).to(out.dtype)

    with patch.object(LoraLinear, "forward", forward):
        yield


@contextmanager
def rounded_logits(policy: QwenVL) -> Iterator[None]:
    def head(weight: Tensor, suppressed: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda hidden: (hidden @ weight.t()).masked_fill_(suppressed, -torch.inf)

    with patch.object(capo.rollout, "_head", head), cast_once(policy):
        yield


@contextmanager
def merged(policy: QwenVL) -> Iterator[None]:
    kept = policy.model
    policy.model = copy.deepcopy(kept)
    try:
        merge_lora(policy)
        yield
    finally:
        policy.model = kept


WAYS: dict[str, Callable[[QwenVL], AbstractContextManager]] = {
    "adapters in float32": float32_adapters,
    "adapters in the base's type, logits rounded to it": rounded_logits,
    "adapters merged into a copy of the base": merged,
    "RadFlow: adapters in the base's type, cast once, float32 logits": cast_once,
}


class Counter(TorchDispatchMode):
    """Counts the operations that launch a kernel; views do not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not str(func).removeprefix("aten.").startswith(VIEWS)
        return func(*args, **(kwargs or {}))


def train_policy(folder: Path, studies: list) -> tuple[QwenVL, ReportProcessor]:
    build_tiny(folder, [study.report for study in studies], TinyConfig(), seed=0)
    processor = ReportProcessor.load(folder, ProcessorConfig())
    policy = load(folder)
    prompts = [build_prompt(processor, study) for study in studies]
    reports = [processor.encode_report(study.report) for study in studies]
    fine_tune(policy, prompts, reports, steps=60, lr=1e-3)
    policy = policy.to(torch.bfloat16)
    add_lora(policy, LoraConfig(), seed=0)
    fine_tune(policy, prompts, reports, steps=5, lr=1e-3)
    return policy, processor


def fine_tune(policy: QwenVL, prompts: list, reports: list, *, steps: int, lr: float) -> None:
    trainer = Trainer(policy, OptimizerConfig(lr=lr), num_steps=steps)
    for step in range(steps):
        rows = [(16 * step + i) % len(prompts) for i in range(16)]
        sft_step(trainer, [prompts[i] for i in rows], [reports[i] for i in rows])


def gaps(policy: QwenVL, processor: ReportProcessor, studies: list, way: Callable) -> Tensor:
    """|sampler - training path| per token, in nats."""
    suppressed, prompts = suppressed_mask(policy, processor), [build_prompt(processor, study) for study in studies]
    options = {"sampling": SamplingConfig(max_new_tokens=TOKENS), "eos_id": processor.eos_id, "suppressed": suppressed}
    with way(policy):
        reports = list(Engine(policy, **options).rollout(requests(prompts, GROUP)))
    found = []
    for prompt in prompts:
        group = [report for report in reports if report.study_id == prompt.study_id]
        layout = pack([prompt], [[report.response_ids for report in group]])
        # Adapters that sample in float32 are trained in float32 too.
        with torch.no_grad(), way(policy) if way is float32_adapters else nullcontext():
            logps, _ = report_logps(policy, layout, suppressed=suppressed)
        found += [(logps[i, : len(r.response_ids)] - r.behaviour_logps).abs() for i, r in enumerate(group)]
    return torch.cat(found)


def launches(folder: Path, processor: ReportProcessor, studies: list, way: Callable) -> int:
    """Operations of one decoding step of the decoder of 36 layers, 8 slots."""
    policy = load(folder, dtype=torch.bfloat16)
    add_lora(policy, LoraConfig(), seed=0)
    nn.Module.requires_grad_(policy, False)
    prompts = [build_prompt(processor, study) for study in studies[:8]]
    options = {
        "sampling": SamplingConfig(max_new_tokens=3),
        "eos_id": -1,
        "suppressed": suppressed_mask(policy, processor),
    }
    with way(policy):
        engine, counted = Engine(policy, slots=8, **options), []
        step = engine._step

        def watched(*state: object) -> tuple[Tensor, Tensor]:
            with Counter() as counter:
                chosen = step(*state)
            counted.append(counter.count)
            return chosen

        with patch.object(engine, "_step", watched):
            list(engine.rollout([Request(prompt, (number,)) for number, prompt in enumerate(prompts)]))
    return counted[-1]


if __name__ == "__main__":
    options = arguments(__doc__)
    torch.set_num_threads(options.threads)
    studies = make_studies("chest", num_train=200, num_val=0, num_test=0, seed=7, size=112)
    with tempfile.TemporaryDirectory() as folder:
        policy, processor = train_policy(Path(folder) / "model", studies)
        deep = TinyConfig(hidden_size=64, layers=36, vision_hidden=64)
        build_tiny(Path(folder) / "deep", [study.report for study in studies], deep, seed=0)
        deep_processor = ReportProcessor.load(Path(folder) / "deep", ProcessorConfig())
        rows = []
        for name, way in WAYS.items():
            gap = gaps(policy, processor, studies[:32], way)
            cells = [f"{float(value):.5f}" for value in (gap.mean(), gap.quantile(0.99), gap.max())]
            rows.append([name, *cells, str(launches(Path(folder) / "deep", deep_processor, studies, way))])
    content = {"setting": f"{32 * GROUP} sampled reports, {len(gap)} tokens, nats per token"}
    content |= {"machine": machine(options.threads), "rows": rows}
    columns = ["sampling", "mean gap", "99th percentile", "largest", "operations per token"]
    write("sampler_gap", {**content, "columns": columns})
