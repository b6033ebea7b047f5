"""LoRA adapters in PEFT's format: adapter_config.json and adapter_model.safetensors."""

import json
import math
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from radflow.models.loading import read_json, read_tensors, write_folder
from radflow.models.lora import LoraConfig, adapters, add_lora, linear_layers, match_layers
from radflow.models.qwen_vl import QwenVL, whole

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # what PEFT puts before the names of transformers' model
# Keys of adapter_config.json that are read here, and those that say nothing about what a trained adapter computes.
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "init_lora_weights", "bias"}
IGNORED = {"auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "megatron_core"}
IGNORED |= {"peft_version", "qalora_group_size", "revision", "task_type"}
# Ways to draw the first A and B that leave the base as it was; others (PiSSA, OLoRA, CorDA) change its weights.
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")


def save_adapter(policy: QwenVL, directory: Path, config: LoraConfig, *, base: str, write: bool = True) -> None:
    """Write the adapters of a policy as PEFT does, complete or not at all, in place of an earlier adapter there.

    Args:
        base: the model that the adapters belong to, as PEFT will load it: a directory or a hub id.
        write: of several ranks one writes; all must call this, because sharded adapters are put together here.
    """
    weights = {}
    for name, adapter in adapters(policy).items():
        for key, value in (("lora_A", adapter.lora_a), ("lora_B", adapter.lora_b)):
            weights[f"{PREFIX}{name}.{key}.weight"] = whole(value).detach().cpu().contiguous()
    assert weights, "the policy has no adapters; add_lora puts them there"
    if write:
        write_adapter(directory, weights, config, base=base)


def write_adapter(directory: Path, weights: Mapping[str, Tensor], config: LoraConfig, *, base: str) -> None:
    """The two files, from tensors under PEFT's names; settings that are the same for all are in adapter_config.json."""
    settings = json.loads(Path(__file__).with_name(CONFIG).read_text(encoding="utf-8"))
    alpha = int(config.alpha) if config.alpha == int(config.alpha) else config.alpha
    settings |= {"base_model_name_or_path": base, "r": config.rank, "lora_alpha": alpha}
    settings["target_modules"] = config.pattern
    with write_folder(directory) as folder:
        save_file(dict(weights), folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def list_targets(directory: Path) -> None:
    """Name each layer of an adapter in its `target_modules`: SGLang refuses the regular expression that PEFT takes."""
    names = sorted({name.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for name in read_weights(directory)})
    settings = {**read_json(directory / CONFIG), "target_modules": names}
    (directory / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_adapter(policy: QwenVL, directory: Path) -> LoraConfig:
    """Put the adapters of a directory on a policy, ours or PEFT's own, and return their config.

    Raises:
        ValueError: no adapter there, a kind that computes something else than B A x, or one of another base model.
    """
    config, _ = read_config(directory)
    stored = read_weights(directory)
    weights = {_todays_name(name): tensor for name, tensor in stored.items()}
    if weights.keys() != stored.keys():
        config = _retarget(config, policy)
    linear, shapes = linear_layers(policy), {}
    for name in match_layers(linear, config.pattern):
        shapes[f"{PREFIX}{name}.lora_A.weight"] = [config.rank, linear[name].in_features]
        shapes[f"{PREFIX}{name}.lora_B.weight"] = [linear[name].out_features, config.rank]
    if weights.keys() != shapes.keys() or not shapes:
        raise ValueError(_describe_mismatch(directory, weights.keys(), shapes.keys()))
    for name, shape in shapes.items():
        if (found := list(weights[name].shape)) != shape:
            raise ValueError(
                f"{directory}: expected {name} to be {shape}, got {found}; the adapter belongs to another base model, "
                "or its r is wrong"
            )
    add_lora(policy, config, seed=0)
    with torch.no_grad():
        for name, adapter in adapters(policy).items():
            adapter.lora_a.copy_(weights[f"{PREFIX}{name}.lora_A.weight"])
            adapter.lora_b.copy_(weights[f"{PREFIX}{name}.lora_B.weight"])
    return config


def stack(first: Path, second: Path, directory: Path) -> None:
    """Two adapters, of which the second was trained on the model with the first merged in, as one of the first's base.

        s_1 B_1 A_1 + s_2 B_2 A_2 = s_1 [B_1, (s_2 / s_1) B_2] [A_1; A_2]

    with the ranks added up. Exact but for the rounding of the first merge.

    Raises:
        ValueError: one of them is no adapter, or they adapt different layers.
    """
    (one, base), (two, _) = read_config(first), read_config(second)
    lower, upper = read_weights(first), read_weights(second)
    if lower.keys() != upper.keys():
        raise ValueError(_describe_mismatch(second, upper.keys(), lower.keys()))
    ratio = (two.alpha / two.rank) / (one.alpha / one.rank)
    weights = {}
    for name in lower:
        added, axis = (upper[name] * ratio, 1) if name.endswith(".lora_B.weight") else (upper[name], 0)
        weights[name] = torch.cat([lower[name], added], axis)
    rank = one.rank + two.rank
    write_adapter(directory, weights, replace(one, rank=rank, alpha=one.alpha / one.rank * rank), base=base)


def read_config(directory: Path) -> tuple[LoraConfig, str]:
    """Config of an adapter, and the name of its base model ("" if it names none).

    Raises:
        ValueError: none there, or it asks for something that adapters here do not compute; names the key.
    """
    path = directory / CONFIG
    loaded = read_json(path)
    if (kind := loaded.get("peft_type")) != "LORA":
        raise ValueError(f"{path}: expected the config of a PEFT adapter with peft_type LORA, got {kind!r}")
    plain = loaded.get("bias", "none") == "none" and loaded.get("init_lora_weights", True) in PLAIN_STARTS
    others = {key: value for key, value in loaded.items() if key not in IGNORED | READ and value}
    if others or not plain:
        key = next(iter(others), "bias" if loaded.get("bias", "none") != "none" else "init_lora_weights")
        raise ValueError(
            f"{path}: {key} {loaded[key]!r} is not supported: adapters here are W x + scale B A x on whole linear "
            "layers, of one rank; train without it, or merge the adapter with PEFT and load the merged model"
        )
    missing = [key for key in ("r", "lora_alpha", "target_modules") if not loaded.get(key)]
    if missing:
        raise ValueError(f"{path}: expected the key {missing[0]}, found none")
    try:
        rank, alpha = operator.index(loaded["r"]), float(loaded["lora_alpha"])
        if loaded.get("use_rslora"):  # scaled by alpha / sqrt(r) there, by alpha / r here
            alpha *= math.sqrt(rank)
        targets = _pattern(loaded["target_modules"])
        if excluded := loaded.get("exclude_modules"):
            targets = rf"(?!(?:{_pattern(excluded)})\Z)(?:{targets})"
        re.compile(targets)
        config = LoraConfig(rank=rank, alpha=alpha, targets=targets)
    except (TypeError, ValueError, re.error) as error:
        raise ValueError(f"{path}: expected the config of a PEFT adapter, got {error}; copy it again") from error
    return config, str(loaded.get("base_model_name_or_path") or "")


def _pattern(modules: str | list[str]) -> str:
    """PEFT's rule: a regular expression of whole names; of a list, a name is one of them or ends in a dot and one."""
    return modules if isinstance(modules, str) else rf"(?:.*\.)?(?:{'|'.join(map(re.escape, sorted(modules)))})"


def _todays_name(name: str) -> str:
    """A tensor's name; before transformers 4.52 the decoder was model.layers and the tower visual."""
    name = re.sub(rf"^({re.escape(PREFIX)})visual\.", r"\1model.visual.", name)
    return re.sub(rf"^({re.escape(PREFIX)})model\.layers\.", r"\1model.language_model.layers.", name)


def _retarget(config: LoraConfig, policy: QwenVL) -> LoraConfig:
    """The config of an adapter with old names, its targets the layers that it chose by these."""
    names = linear_layers(policy)
    old = {name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): name for name in names}
    chosen = match_layers(old, config.pattern)
    return replace(config, targets="|".join(re.escape(old[name]) for name in chosen) or config.targets)


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Tensors of an adapter under PEFT's names, in float32."""
    return {name: tensor.float() for name, tensor in read_tensors(directory / WEIGHTS).items()}


def _describe_mismatch(directory: Path, found: Iterable[str], expected: Iterable[str]) -> str:
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    differing = ((missing, "missing"), (extra, "more"))
    parts = [f"{len(keys)} {what}, for example {keys[0]}" for keys, what in differing if keys]
    return (
        f"{directory}: expected A and B of {len(set(expected)) // 2} layers that target_modules names in this model, "
        f"got {len(set(found))} tensors; {'; '.join(parts) or 'target_modules names none'}; the adapter belongs to "
        "another model, or its files do not belong together"
    )
