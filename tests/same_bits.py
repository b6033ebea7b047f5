"""One step of each stage, many times from the same weights, on two threads next to two busy processes: the same bits.

    python tests/same_bits.py --times 20

The first time is before the busy processes start. Exits with 1 if a stage has more than one result.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from capo.config import OptimizerConfig, RlConfig
from capo.rollout import Request, rollout
from capo.sampling import SamplingConfig, sample_seed
from capo.sft import sft_step
from capo.trainer import Trainer
from capo.types import Case, Rollout
from capo.warmup import LabelReader, read_labels
from radflow.data.phantoms import make_studies
from radflow.models.lora import LoraConfig, add_lora, reference
from radflow.models.processing import ProcessorConfig, ReportProcessor
from radflow.models.qwen_vl import load
from radflow.models.tiny import TinyConfig, build_tiny
from radflow.pipeline.generation import build_prompt, suppressed_mask

OPTIMIZER = OptimizerConfig(lr=1e-3, token_budget=600)
BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with whoever started it


class Steps:
    """One step of each stage from the weights in `folder`; each returns all that it changes or makes.

    By default with many short reports per study: their gradients meet in the prompt's last hidden state.
    """

    def __init__(self, folder: Path, model: TinyConfig, *, studies: int = 3, group: int = 16, tokens: int = 24) -> None:
        self.folder, self.group, self.tokens = folder, group, tokens
        self.studies = make_studies("chest", num_train=studies, num_val=0, num_test=0, seed=0, size=112)
        build_tiny(folder, [study.report for study in self.studies], model, seed=0)
        self.processor = ReportProcessor.load(folder, ProcessorConfig())
        self.prompts = {study.id: build_prompt(self.processor, study) for study in self.studies}
        self.suppressed = suppressed_mask(load(folder), self.processor)
        self.named: dict[str, Callable[[], list[Tensor]]] = {
            "warm-up": self.warm_up,
            "SFT": self.sft,
            "rollout": lambda: [t for one in self.rollout() for t in (one.response_ids, one.behaviour_logps)],
            "CAPO, all weights": self.capo,
            "CAPO, LoRA": partial(self.capo, lora=True),
        }

    def warm_up(self) -> list[Tensor]:
        policy, labels = load(self.folder), torch.eye(len(self.prompts), 5)
        trainer = Trainer(LabelReader(policy, policy.vision, labels.mean(0), grid=3), OPTIMIZER, num_steps=1)
        read_labels(trainer, list(self.prompts.values()), labels)
        return list(trainer.state()[0].values())

    def sft(self) -> list[Tensor]:
        trainer = Trainer(load(self.folder), OPTIMIZER, num_steps=1)
        reports = [self.processor.encode_report(study.report) for study in self.studies]
        sft_step(trainer, list(self.prompts.values()), reports, suppressed=self.suppressed)
        return list(trainer.state()[0].values())

    def rollout(self) -> list[Rollout]:
        seeds = partial(sample_seed, 0, "rl", 0)
        requests = [Request(p, tuple(seeds(name, i) for i in range(self.group))) for name, p in self.prompts.items()]
        options = {"eos_id": self.processor.eos_id, "suppressed": self.suppressed}
        sampling = SamplingConfig(max_new_tokens=self.tokens)
        return list(rollout(load(self.folder), requests, sampling=sampling, **options))

    @cached_property
    def sampled(self) -> list[Rollout]:
        return self.rollout()

    def capo(self, *, lora: bool = False) -> list[Tensor]:
        policy, frozen = load(self.folder), load(self.folder).requires_grad_(False)
        if lora:
            add_lora(policy, LoraConfig(vision=True), seed=1)
        before = (lambda: reference(policy)) if lora else (lambda: nullcontext(frozen))
        trainer = Trainer(policy, OPTIMIZER, num_steps=2, reference=before)
        advantages = torch.linspace(-1, 1, self.group)
        cases = [
            Case(p, tuple(r for r in self.sampled if r.study_id == name), advantages, critical=False, clip=0.2)
            for name, p in self.prompts.items()
        ]
        trainer.capo_step(cases, RlConfig(beta=0.1), temperature=1.0, suppressed=self.suppressed)
        return list(trainer.state()[0].values())


def digest(tensors: Sequence[Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


@contextmanager
def busy(number: int) -> Iterator[None]:
    """Processes that compute without end."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="steps of each stage (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of this process (default: %(default)s)")
    parser.add_argument("--busy", type=int, default=2, help="processes next to it (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| step | times | distinct results | seconds per step, quiet | busy |\n| --- | --- | --- | --- | --- |")
    most = 0
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(Path(folder), TinyConfig())
        for name, step in steps.named.items():
            began = time.perf_counter()
            results = {digest(step())}
            quiet = time.perf_counter()
            with busy(options.busy):
                results |= {digest(step()) for _ in range(options.times - 1)}
            each = (time.perf_counter() - quiet) / max(1, options.times - 1)
            print(f"| {name} | {options.times} | {len(results)} | {quiet - began:.2f} | {each:.2f} |", flush=True)
            most = max(most, len(results))
    sys.exit(most > 1)


if __name__ == "__main__":
    main()
