"""Decoding through CUDA graphs against the same steps launched kernel by kernel."""

from collections.abc import Callable, Sequence

import torch
from checkpoint import requests
from gpu import work
from gpu.report import Bar, Report, exactly
from gpu.runner import Setting
from replays import Replays

from capo.rollout import Request
from capo.static_decode import Recorder
from capo.types import Rollout
from radflow.models.qwen_vl import QwenVL

GROUP = 2


def compare(setting: Setting, report: Report) -> None:
    device = work.start(setting)
    tokens = 12 if setting.small else 48
    made = work.model(setting, layers=4, tied=False, pixels=784)
    # The second batch needs more room per slot than the first: buffers are replaced, graphs recorded anew.
    sides = (56, 448) if setting.small else (392, 784)
    batches = [
        requests([made.prompt(number, pixels=side) for number in range(count)], GROUP)
        for count, side in zip((6, 3), sides, strict=True)
    ]
    report.ran(
        f"{made.policy.num_layers} layers, reports of {tokens} tokens: 6 studies of "
        f"{batches[0][0].prompt.num_tokens} tokens in 8 slots, then 3 of {batches[1][0].prompt.num_tokens}; greedy, "
        "and sampled at temperature 1"
    )
    for dtype, bar in ((torch.float32, exactly(1.0)), (torch.bfloat16, Bar(at_least=0.99))):
        # Both sides decode all slots, busy or not: other shapes are other kernels, and in bfloat16 other tokens. On a
        # CPU in float32 the plain side decodes the busy ones only: there is no recording to be compared with.
        plain = None if setting.small and dtype == torch.float32 else Replays
        policy, name = work.cast(made.policy, dtype), str(dtype).removeprefix("torch.")
        for temperature, how in ((0.0, "greedy"), (1.0, "sampled")):
            recorder = work.Watched(work.graphs(device))
            expected = write_batches(policy, batches, plain, tokens, temperature)
            found = write_batches(policy, batches, recorder, tokens, temperature)
            report.figure(f"{name}, {how}: equal tokens", agreement(found, expected), bar)
            report.figure(f"{name}, {how}: different tokens in a report", variety(found))
        report.figure(f"{name}: recordings", recorder.recordings, Bar(at_least=2))
        report.figure(f"{name}: steps", len(recorder.steps), Bar(at_least=2 * tokens))


def write_batches(
    policy: QwenVL,
    batches: Sequence[list[Request]],
    new_recorder: Callable[[], Recorder] | None,
    tokens: int,
    temperature: float,
) -> list[Rollout]:
    """The reports of all batches, decoded one after another by one engine."""
    write = work.engine(policy, slots=8, new_recorder=new_recorder, tokens=tokens, temperature=temperature)
    return [report for batch in batches for report in write(batch)]


def agreement(found: Sequence[Rollout], expected: Sequence[Rollout]) -> float:
    """Share of equal tokens; after the first difference a report rarely agrees again."""
    pairs = [(a.response_ids, b.response_ids) for a, b in zip(found, expected, strict=True)]
    return float(torch.cat([(a == b).float() for a, b in pairs]).mean())


def variety(reports: Sequence[Rollout]) -> float:
    """Mean number of different tokens; low for a model that repeats itself."""
    return sum(len(report.response_ids.unique()) for report in reports) / len(reports)
