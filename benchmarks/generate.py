"""Reports of 64 studies, four each, of ragged lengths: ours against transformers' generate.

Reports end at random after 45 tokens on average, at 160 at the latest. A batch waits for its longest report; slots are
refilled.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from checkpoint import build, prompt, requests
from harness import arguments, compare

STUDIES, GROUP, LIMIT = 64, 4, 160  # the limit of configs/iu_xray_tiny.yaml
ENDS = 24  # gives about 45 tokens on average: in some contexts EOS is less likely than where it is calibrated


def load_policy(folder: Path, studies: int):
    from radflow.models.processing import ProcessorConfig, ReportProcessor
    from radflow.models.qwen_vl import load

    processor = ReportProcessor.load(folder, ProcessorConfig())
    return load(folder), processor, [prompt(processor, number, pixels=224) for number in range(studies)]


def ours(folder: Path, studies: int) -> Callable[[], float]:
    """Number of tokens, with slots for 32 reports."""
    from capo.rollout import rollout
    from capo.sampling import SamplingConfig

    policy, processor, prompts = load_policy(folder, studies)
    # The rows of the embedding that no token uses are sampled in both: suppressing them would slow generate.
    sampling, suppressed = SamplingConfig(max_new_tokens=LIMIT), torch.zeros(policy.vocab_size, dtype=torch.bool)
    suppressed[list(processor.suppressed_ids)] = True

    def work() -> float:
        options = {"sampling": sampling, "eos_id": processor.eos_id, "suppressed": suppressed, "slots": 32}
        reports = rollout(policy, requests(prompts, GROUP), **options)
        return float(sum(len(report.response_ids) for report in reports))

    return work


def generate(folder: Path, studies: int, batch: int) -> Callable[[], float]:
    """`num_return_sequences=4`; prompts are of one length, so that no padding is needed."""
    policy, processor, prompts = load_policy(folder, studies)
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
        compare(
            "generate",
            {
                "RadFlow, 32 slots": functools.partial(ours, path, STUDIES),
                "RadFlow, 32 slots, a quarter": functools.partial(ours, path, STUDIES // 4),
                "generate, 8 studies x 4": functools.partial(generate, path, STUDIES, 8),
                # its rate does not depend on how many studies there are, so a quarter of them is enough
                "generate, 1 study x 4, a quarter": functools.partial(generate, path, STUDIES // 4, 1),
            },
            setting=f"{STUDIES} x {GROUP} reports, ragged, at most {LIMIT} tokens",
            unit="tokens",
            rounds=options.rounds,
            threads=options.threads,
        )
