"""What a run needs of each GPU, as formulas: `train.py --plan` prints it without starting.

Sizes are counted on the model itself, built without memory on torch's meta device from its config.json.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig

from capo.fsdp import Sharding
from capo.static_decode import REACH
from models.loading import architecture
from models.lora import add_lora
from models.qwen_vl import FAMILIES, QwenVL
from models.start import ModelConfig

GB = 1e9
CARDS = (24, 48, 80, 141)  # GB
SPARE = 1.5  # GB that a CUDA context, kernels and the allocator's fragments take


@dataclass(frozen=True)
class Sizes:
    """Of one model; parameters, not bytes."""

    parameters: int
    trained: int
    largest_block: int
    layers: int
    hidden: int
    intermediate: int
    cache: int  # keys and values of one token, all layers

    @classmethod
    def of(cls, config: PretrainedConfig, model: ModelConfig) -> "Sizes":
        """Count the parameters of an architecture, with adapters where `model` trains adapters."""
        with torch.device("meta"):
            policy = QwenVL(FAMILIES[config.model_type](config))
        policy.model.tie_weights()
        base = sum(p.numel() for p in policy.parameters())
        largest = max(sum(p.numel() for p in block.parameters()) for block in policy.blocks())
        if model.training == "lora":
            add_lora(policy, model.lora, seed=0)
        elif model.rl_vision == "frozen":
            policy.vision.requires_grad_(False)
        text = config.text_config
        return cls(
            parameters=base,
            trained=sum(p.numel() for p in policy.parameters() if p.requires_grad),
            largest_block=largest,
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            cache=policy.num_layers * 2 * policy.num_kv_heads * policy.head_dim,
        )


def sizes_at(path: Path, model: ModelConfig) -> Sizes:
    """Of a checkpoint directory; only its config.json is read.

    Raises:
        ValueError: no config of a Qwen-VL model there.
    """
    return Sizes.of(architecture(path), model)


@dataclass(frozen=True)
class Load:
    """What is computed on one GPU at one time."""

    micro_batch: int  # tokens of a training pass
    slots: int  # reports decoded side by side
    cached: int  # tokens of a slot: prompt and report


def layer_bytes(sizes: Sizes, *, lora: bool, bf16: bool) -> int:
    """What autograd keeps of one token in one decoder layer, D and I being the widths of the layer and its MLP.

    float32 with frozen weights: input of each norm and its output, q, k, v, attention twice; gate, activation, up,
    product. Trained norms keep their normalised input too. In bfloat16 each adapter keeps its input in float32.
    """
    if bf16:
        return 40 * sizes.hidden + 10 * sizes.intermediate
    return 4 * ((8 if lora else 10) * sizes.hidden + 4 * sizes.intermediate)


def memory(
    sizes: Sizes, model: ModelConfig, load: Load, *, sharding: Sharding, world: int, local: int, bf16: bool = True
) -> dict[str, float]:
    """GB of each part on one GPU; a training pass and a rollout do not happen at one time, the larger counts."""
    lora = model.training == "lora"
    split = {"replicate": 1, "hybrid": min(local, world), "full": world}[sharding]
    stored = 2 if lora and bf16 else 4
    computed = 2 if bf16 and (lora or split > 1) else 4
    a_layer = layer_bytes(sizes, lora=lora, bf16=computed == 2) * load.micro_batch
    inputs = sizes.layers * computed * sizes.hidden * load.micro_batch
    kept = inputs + a_layer if model.recompute_activations else sizes.layers * a_layer
    gathered = 3 * sizes.largest_block * computed if split > 1 else 0  # in use, fetched ahead, its gradient
    slot = -(-load.cached // REACH) * REACH * sizes.cache * computed
    rollout = load.slots * slot + (sizes.parameters * computed if split > 1 else 0)
    return {
        "weights": sizes.parameters * stored / split / GB,
        "reference": 0.0 if lora else sizes.parameters * stored / split / GB,
        "gradients and Adam": sizes.trained * 12 / split / GB,
        "training pass": (kept + gathered) / GB,
        "rollout": rollout / GB,
        "context and fragments": SPARE,
    }


def total(parts: dict[str, float]) -> float:
    """Of `memory`: everything, and the larger of the two phases."""
    phases = parts["training pass"], parts["rollout"]
    return sum(parts.values()) - sum(phases) + max(phases)


def table(sizes: Sizes, model: ModelConfig, load: Load, *, local: int = 8, worlds: tuple[int, ...] = (1, 8, 64)) -> str:
    """GB on each GPU by sharding and number of GPUs, as Markdown, with the smallest card that holds it."""
    lines = [
        f"{sizes.parameters / 1e9:.2f} B parameters, {sizes.trained / 1e6:.1f} M trained; a training pass of "
        f"{load.micro_batch} tokens, {load.slots} slots of {load.cached} tokens",
        "",
        "| sharding | GPUs | weights | reference | gradients, Adam | training pass | rollout | total GB | card |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for sharding in ("replicate", "hybrid", "full"):
        for world in worlds:
            if world == 1 and sharding != "replicate":
                continue
            parts = memory(sizes, model, load, sharding=sharding, world=world, local=local)
            whole = total(parts)
            card = next((f"{size} GB" for size in CARDS if whole <= size), "none")
            cells = [f"{parts[name]:.1f}" for name in list(parts)[:-1]]
            lines.append(f"| {sharding} | {world} | {' | '.join(cells)} | {whole:.1f} | {card} |")
    return "\n".join(lines)
