"""Reports of 64 studies, four each, of ragged lengths: ours against vLLM's build for CPUs and transformers' generate.

Reports end at random after 45 tokens on average, at 160 at the latest. A batch waits for its longest report; slots are
refilled. vLLM has an environment of its own (`make .venv-vllm/.installed`); without it, its rows are left out.
"""

import functools
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from checkpoint import build, prompt, requests
from flops import gflop
from harness import arguments, compare

STUDIES, GROUP, LIMIT, SLOTS, SIDE = 64, 4, 160, 32, 224  # the limit is that of configs/iu_xray_tiny.yaml
ENDS = 24  # gives about 45 tokens on average: in some contexts EOS is less likely than where it is calibrated
VLLM = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"


def load_policy(folder: Path, studies: int, dtype: torch.dtype):
    from radflow.models.processing import ProcessorConfig, ReportProcessor
    from radflow.models.qwen_vl import load

    processor = ReportProcessor.load(folder, ProcessorConfig())
    prompts = [prompt(processor, number, pixels=SIDE) for number in range(studies)]
    return load(folder, dtype=dtype), processor, prompts


def ours(folder: Path, studies: int, dtype: torch.dtype) -> Callable[[], float]:
    """Number of tokens."""
    from capo.sampling import SamplingConfig
    from radflow.pipeline.rollouts import LocalEngine

    policy, processor, prompts = load_policy(folder, studies, dtype)
    # The rows of the embedding that no token uses are sampled in both: suppressing them would slow generate.
    sampling, suppressed = SamplingConfig(max_new_tokens=LIMIT), torch.zeros(policy.vocab_size, dtype=torch.bool)
    suppressed[list(processor.suppressed_ids)] = True

    def work() -> float:
        options = {"sampling": sampling, "eos_id": processor.eos_id, "suppressed": suppressed, "slots": SLOTS}
        reports = LocalEngine(policy, **options).rollout(requests(prompts, GROUP))
        return float(sum(len(report.response_ids) for report in reports))

    return work


def vllm(folder: Path, studies: int, dtype: torch.dtype) -> Callable[[], float]:
    """The same prompts, in vLLM's own process; it has seen two others before."""
    from radflow.models.processing import TASKS

    request = TASKS["chest_xray"][-1]
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    text = f"<|im_start|>user\n{image}{request}<|im_end|>\n<|im_start|>assistant\n"
    sizes = {"slots": SLOTS, "group": GROUP, "limit": LIMIT, "dtype": str(dtype).removeprefix("torch.")}
    options = [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
    program = [str(VLLM), str(Path(__file__).with_name("vllm_peer.py")), str(folder), *options]
    peer = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert peer.stdin is not None and peer.stdout is not None

    def ask(first: int, count: int) -> float:
        assert peer.stdin is not None and peer.stdout is not None
        print(json.dumps([[text, SIDE, first + number] for number in range(count)]), file=peer.stdin, flush=True)
        return float(peer.stdout.readline())

    if peer.stdout.readline() != "ready\n":
        raise RuntimeError("vLLM did not start; what it printed is above")
    ask(studies, 2)
    return lambda: ask(0, studies)


def generate(folder: Path, studies: int, batch: int) -> Callable[[], float]:
    """`num_return_sequences=4`; prompts are of one length, so that no padding is needed."""
    policy, processor, prompts = load_policy(folder, studies, torch.float32)
    model, image = policy.model, policy.model.config.image_token_id

    def work() -> float:
        tokens = 0
        torch.manual_seed(0)
        for start in range(0, studies, batch):
            part = prompts[start : start + batch]
            ids = torch.stack([p.input_ids for p in part])
            written = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == image).int(),
                pixel_values=torch.cat([p.pixel_values for p in part]),
                image_grid_thw=torch.cat([p.image_grid_thw for p in part]),
                do_sample=True,
                top_k=0,
                top_p=1.0,
                num_return_sequences=GROUP,
                max_new_tokens=LIMIT,
                eos_token_id=processor.eos_id,
                pad_token_id=processor.eos_id,
                suppress_tokens=list(processor.suppressed_ids),
            )[:, ids.shape[1] :]
            ended = (written == processor.eos_id).cumsum(1)
            tokens += int(((ended == 0) | ((ended == 1) & (written == processor.eos_id))).sum())
        return float(tokens)

    return work


if __name__ == "__main__":
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        build(path, mean_length=ENDS)
        variants = {
            "RadFlow": functools.partial(ours, path, STUDIES, torch.float32),
            "RadFlow, bfloat16": functools.partial(ours, path, STUDIES, torch.bfloat16),
            # its rate does not depend on how many studies there are, so a quarter of them is enough
            "generate, 8 studies x 4, a quarter": functools.partial(generate, path, STUDIES // 4, 8),
        }
        if VLLM.exists():
            variants["vLLM 0.32"] = functools.partial(vllm, path, STUDIES, torch.float32)
            variants["vLLM 0.32, bfloat16"] = functools.partial(vllm, path, STUDIES, torch.bfloat16)
        else:
            print("vLLM is left out; `make .venv-vllm/.installed` installs it")
        torch.set_num_threads(options.threads)
        compare(
            "generate",
            variants,
            setting=f"{STUDIES} x {GROUP} reports, ragged, at most {LIMIT} tokens, {SLOTS} slots",
            unit="tokens",
            rounds=options.rounds,
            threads=options.threads,
            # A product in bfloat16 has another limit, and a peer's reports have other lengths.
            gflop={"RadFlow": gflop(variants["RadFlow"]())},
        )
