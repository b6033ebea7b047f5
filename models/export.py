"""Exports of a run: a merged model in the published layout, and an adapter in PEFT's format.

Weights go from file to file, so that exporting a large model needs the memory of one shard.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import AutoConfig, GenerationConfig

from radflow.models.adapter_files import read_config, read_weights, stack, write_adapter
from radflow.models.loading import INDEX, read_json, read_tensors
from radflow.models.processing import ProcessorConfig, ReportProcessor


def export_merged(model: Path, folder: Path, *, dtype: torch.dtype | None, max_new_tokens: int) -> None:
    """Write the checkpoint in `model` as it is served, with a generation config that decodes as the evaluation did.

    Args:
        dtype: of the weights; None keeps theirs, and their files are then hard links if the disk allows it.
    """
    folder.mkdir(parents=True)
    for path in tqdm(sorted(model.iterdir()), "export", unit="file", disable=None, leave=False):
        if path.suffix == ".safetensors" and dtype is not None:
            tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in read_tensors(path).items()}
            save_file(tensors, folder / path.name, metadata={"format": "pt"})
        else:
            _link(path, folder / path.name)
    if dtype is not None:
        _set_dtype(folder, dtype)
    generation_config(model, max_new_tokens=max_new_tokens).save_pretrained(folder)


def generation_config(model: Path, *, max_new_tokens: int) -> GenerationConfig:
    """Greedy, up to the end of the turn, without the tokens that no report of the run could hold; the published
    configs sample, with a repetition penalty, and so write other reports than those that were evaluated."""
    processor = ReportProcessor.load(model, ProcessorConfig())
    vocabulary = AutoConfig.from_pretrained(model).text_config.vocab_size
    return GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=processor.eos_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=[*processor.suppressed_ids, *range(len(processor.tokenizer), vocabulary)],
    )


def export_adapter(chain: Sequence[Path], folder: Path, *, dtype: torch.dtype | None) -> str:
    """Write adapters, each trained on the model with those before it merged in, as one adapter of the first one's base;
    returns the name of that base.

    Args:
        dtype: of A and B; None keeps float32, in which they were trained.
    """
    assert 1 <= len(chain) <= 2, "SFT, or SFT and RL"
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        source = chain[0]
        if len(chain) == 2:
            source = Path(scratch) / "stacked"
            stack(chain[0], chain[1], source)
        config, base = read_config(source)
        weights = {name: tensor.to(dtype or tensor.dtype) for name, tensor in read_weights(source).items()}
        write_adapter(folder, weights, config, base=base)
    return base


def _link(source: Path, target: Path) -> None:
    if source.suffix == ".safetensors":
        with suppress(OSError):  # another disk, or one without hard links
            os.link(source, target)  # a checkpoint is never changed in place
            return
    shutil.copyfile(source, target)


def _set_dtype(folder: Path, dtype: torch.dtype) -> None:
    """Bring the type and size of the weights in config.json and the index up to date."""
    config = read_json(folder / "config.json")
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = str(dtype).removeprefix("torch.")
        part.pop("torch_dtype", None)
    changed = {folder / "config.json": config}
    index = folder / INDEX
    if index.exists():
        changed[index] = read_json(index)
        sizes = (t.nbytes for file in folder.glob("*.safetensors") for t in read_tensors(file).values())
        changed[index]["metadata"]["total_size"] = sum(sizes)
    for path, content in changed.items():
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
