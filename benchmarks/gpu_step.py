"""On one GPU, the architecture of Qwen2.5-VL-3B with random weights in bfloat16: decoding against what the memory's
bandwidth allows, and a whole step against TRL's.

A prompt of about 1,400 tokens (one 1036 x 1036 image), reports of 256 tokens, LoRA rank 8. Nothing here
needs a network; TRL's variants need the peers' environment.
"""

import functools
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from checkpoint import build, prompt, published_3b
from harness import arguments, compare
from rl_step import Work, loaded, variants

SHOWN = Work(studies=1, group=4, tokens=256, pixels=1036)
DECODED = Work(studies=4, group=8, tokens=256, pixels=1036)


def decoding(folder: Path, work: Work) -> Callable[[], float]:
    """All reports of `work`: tower, prefill and decoding."""
    from capo.rollout import Request, rollout
    from capo.sampling import SamplingConfig, sample_seed

    policy, processor = loaded(folder, work, recompute=False)
    banned = torch.zeros(policy.vocab_size, dtype=torch.bool, device=work.device)
    options = {"sampling": SamplingConfig(max_new_tokens=work.tokens), "eos_id": -1, "banned": banned}

    def write() -> float:
        prompts = [prompt(processor, number, pixels=work.pixels) for number in range(work.studies)]
        requests = [
            Request(p, tuple(sample_seed(0, "bench", 0, p.study_id, i) for i in range(work.group))) for p in prompts
        ]
        reports = rollout(policy, requests, slots=work.studies * work.group, **options)
        return float(sum(len(report.response_ids) for report in reports))

    write()  # kernels are chosen and compiled once in a run of days
    return write


def bandwidth(folder: Path, work: Work) -> Callable[[], float]:
    """The least that decoding the same tokens must read: all weights and the cache so far, once a step.

    As reads of as many bytes, timed; what comes out is the bound, on this GPU and not on its data sheet.
    """
    policy, processor = loaded(folder, work, recompute=False)
    trunk = policy.model.model.language_model
    weights = sum(p.numel() * p.element_size() for p in trunk.parameters())  # tied: the embedding is the head
    length = len(prompt(processor, 0, pixels=work.pixels).input_ids) + work.tokens // 2
    a_token = policy.num_layers * 2 * policy.num_kv_heads * policy.head_dim * 2
    read = weights + work.studies * work.group * length * a_token
    buffer = torch.zeros(read // 2, dtype=torch.bfloat16, device=work.device)
    buffer.amax()

    def steps() -> float:
        for _ in range(work.tokens):
            buffer.amax()
        return float(work.studies * work.group * work.tokens)

    return steps


if __name__ == "__main__":
    options = arguments(__doc__)
    if not torch.cuda.is_available():
        sys.exit("this program measures a GPU, and torch sees none; benchmarks/rl_step.py measures on a CPU")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        build(path, sizes=published_3b, device="cuda", dtype=torch.bfloat16)
        compare(
            "gpu_decode",
            {
                "read weights and cache once a token": functools.partial(bandwidth, path, DECODED),
                "RadFlow, tower and prefill included": functools.partial(decoding, path, DECODED),
            },
            setting=f"{DECODED.studies} x {DECODED.group} reports of {DECODED.tokens} tokens, bfloat16",
            unit="tokens",
            rounds=options.rounds,
            threads=options.threads,
        )
        steps = variants(path, SHOWN)
        if importlib.util.find_spec("trl") is None:
            print("trl is not installed here: its variants are left out")
            steps = {name: step for name, step in steps.items() if name.startswith("RadFlow")}
        compare("gpu_step", steps, setting=str(SHOWN), rounds=options.rounds, threads=options.threads)
