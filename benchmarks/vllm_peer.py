"""vLLM's build for CPUs as a peer of generate.py: a program of its own environment (`make .venv-vllm/.installed`).

It loads a checkpoint, says so with one line, and for each line that it reads, a JSON list of [text, side of the image,
seed of its noise], writes a line with the number of tokens that it sampled.
"""

import argparse
import json
import os
import sys

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process, whose memory can be watched
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",  # by default it leaves cores to a server
    "OMP_NUM_THREADS": str(os.cpu_count() or 1),
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

import torch
from PIL import Image


def noise(side: int, seed: int) -> Image.Image:
    """As `checkpoint.prompt` draws it."""
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8).numpy())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="of the checkpoint")
    parser.add_argument("--dtype", default="float32", help="(default: %(default)s)")
    parser.add_argument("--slots", type=int, default=32, help="reports decoded concurrently (default: %(default)s)")
    parser.add_argument("--group", type=int, default=4, help="reports per study (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=160, help="tokens of a report (default: %(default)s)")
    options = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    from vllm import LLM, SamplingParams

    model = LLM(
        options.folder,
        dtype=options.dtype,
        max_num_seqs=options.slots,
        max_model_len=512,
        limit_mm_per_prompt={"image": 1},
        mm_processor_cache_gb=0,
    )
    sampling = SamplingParams(n=options.group, temperature=1.0, top_p=1.0, top_k=0, max_tokens=options.limit, seed=None)

    def generate(wanted: list) -> int:
        prompts = [{"prompt": text, "multi_modal_data": {"image": noise(*image)}} for text, *image in wanted]
        written = model.generate(prompts, sampling, use_tqdm=False)
        return sum(len(report.token_ids) for request in written for report in request.outputs)

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(generate(json.loads(line)), file=answers, flush=True)
