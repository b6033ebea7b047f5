"""One update on G reports of a study: the prompt once, followed by all reports, against one padded row per report.

The speed-up should come near the ratio of tokens, G (P + T) / (P + G T), which is part of each name. The head's work is
the same in both layouts, so the vocabulary is as small relative to the layers as in a 3 B model.
"""

import functools
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from checkpoint import build
from harness import arguments, compare
from toy_policy import TextPrompt

PROMPTS, REPORTS, GROUPS = (400, 700, 1400), (80, 200), (4, 8)


def update(folder: Path, length: int, tokens: int, group: int, *, packed: bool) -> Callable[[], float]:
    """Forward and backward of LoRA matrices, log-probabilities summed."""
    from capo.packing import pack, report_logps
    from radflow.models.lora import LoraConfig, add_lora
    from radflow.models.qwen_vl import load

    policy = load(folder)
    add_lora(policy, LoraConfig(), seed=0)
    # Text alone: the vision tower is the same work in both layouts and would only blur the ratio.
    ids = torch.randint(2000, 8000, (length,), generator=torch.Generator().manual_seed(length))
    prompt = TextPrompt("bench", ids, length)
    generator = torch.Generator().manual_seed(0)
    reports = [torch.randint(2000, 8000, (tokens,), generator=generator) for _ in range(group)]
    layout = pack([prompt], [reports]) if packed else pack([prompt] * group, [[report] for report in reports])
    none = [torch.zeros(0, policy.hidden_size)] * len(layout.prompts)

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
        for length, tokens, group in product(PROMPTS, REPORTS, GROUPS):
            tokens_ratio = group * (length + tokens) / (length + group * tokens)
            setting = f"P {length}, T {tokens}, G {group}: tokens {tokens_ratio:.2f}"
            variants[f"{setting}, packed"] = functools.partial(update, path, length, tokens, group, packed=True)
            variants[f"{setting}, padded"] = functools.partial(update, path, length, tokens, group, packed=False)
            against[f"{setting}, packed"] = against[f"{setting}, padded"] = f"{setting}, packed"
        compare(
            "packing",
            variants,
            setting="forward and backward of one study, LoRA rank 8, float32; time ratio of padded to packed",
            rounds=options.rounds,
            threads=options.threads,
            against=against,
        )
