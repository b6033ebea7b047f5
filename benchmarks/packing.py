"""One update on G reports of a study: packed, packed with a dense mask, and in one padded row per report.

The head's work is the same in all, so the vocabulary is as small relative to the layers as in a 3 B model.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from checkpoint import build
from flops import gflop
from harness import arguments, compare
from toy_policy import TextPrompt

SETTINGS = ((400, 80, 4), (400, 80, 8), (400, 80, 16), (400, 80, 32), (400, 200, 8), (400, 200, 16), (1400, 80, 8))
WAYS = ("packed", "dense mask", "padded")


def update(folder: Path, length: int, tokens: int, group: int, way: str) -> Callable[[], float]:
    """Forward and backward of LoRA matrices, log-probabilities summed."""
    from capo.packing import pack, report_logps
    from radflow.models.lora import LoraConfig, add_lora
    from radflow.models.qwen_vl import load

    policy = load(folder)
    add_lora(policy, LoraConfig(), seed=0)
    # Text alone: the vision tower is the same work in each and would only blur the ratio.
    ids = torch.randint(2000, 8000, (length,), generator=torch.Generator().manual_seed(length))
    prompt = TextPrompt("bench", ids, length)
    generator = torch.Generator().manual_seed(0)
    reports = [torch.randint(2000, 8000, (tokens,), generator=generator) for _ in range(group)]
    groups = [[report] for report in reports] if way == "padded" else [reports]
    layout = pack([prompt] * len(groups), groups)
    none = [torch.zeros(0, policy.hidden_size)] * len(groups)
    if way == "dense mask":
        decoder = policy.decoder
        policy.decoder = lambda embeds, positions, mask, **wanted: decoder(embeds, positions, mask.dense, **wanted)

    for parameter in policy.parameters():
        parameter.sum()  # the checkpoint is mapped from its file: read it before the clock starts

    def work() -> float:
        report_logps(policy, layout, features=none)[0].sum().backward()
        return float(sum(p.grad.norm() for p in policy.parameters() if p.grad is not None))

    return work


if __name__ == "__main__":
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        build(path, vocabulary=8192)
        variants, against = {}, {}
        for length, tokens, group in SETTINGS:
            setting = f"P {length}, T {tokens}, G {group}"
            for way in WAYS:
                variants[f"{setting}, {way}"] = functools.partial(update, path, length, tokens, group, way)
                against[f"{setting}, {way}"] = f"{setting}, {WAYS[0]}"
        torch.set_num_threads(options.threads)
        trained = {name: prepare for name, prepare in variants.items() if name.endswith(WAYS[0])}
        compare(
            "packing",
            variants,
            setting="forward and backward of one study, LoRA rank 8, float32; time ratio to packed",
            rounds=options.rounds,
            threads=options.threads,
            against=against,
            gflop={name: gflop(prepare()) for name, prepare in trained.items()},
        )
