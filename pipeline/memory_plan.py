"""What a run needs of each GPU, as formulas over the sizes of the model: `train.py plan` prints it."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from capo.fsdp import Sharding
from capo.logprobs import TILE_BYTES
from capo.ranks import BUCKET
from capo.static_decode import REACH
from radflow.models.loading import architecture, load_image_processor, locate, tokens_of_largest_image
from radflow.models.lora import add_lora
from radflow.models.qwen_vl import FAMILIES, QwenVL
from radflow.models.start import ModelConfig
from radflow.pipeline.run_config import Config

GB = 1e9
CARDS = (24, 48, 80, 141)  # GB
SPARE = 1.5  # GB that a CUDA context, kernels and the allocator's fragments take


@dataclass(frozen=True)
class Sizes:
    """Of one model; parameters, not bytes."""

    parameters: int
    trained: int
    head: int  # of the language model's head
    root: int  # outside the blocks: embeddings, head, norms
    largest_block: int
    layers: int
    hidden: int
    intermediate: int
    cache: int  # keys and values of one token, all layers
    vision_hidden: int
    vision_intermediate: int
    patch: int  # values of one patch of an image

    @classmethod
    def of(cls, config: PretrainedConfig, model: ModelConfig, *, train_vision: bool = False) -> "Sizes":
        """Counted on the model itself, built on torch's meta device, with adapters if `model` trains adapters."""
        with torch.device("meta"):
            policy: Any = QwenVL(FAMILIES[config.model_type](config))  # transformers' modules have no typed attributes
        policy.model.tie_weights()
        base = count(policy)
        blocks, tower = [count(block) for block in policy.blocks()], policy.vision.blocks[0]
        width = tower.norm1.weight.numel()
        if model.training == "lora":
            add_lora(policy, model.lora, seed=0)
        elif not train_vision:
            policy.vision.requires_grad_(False)
        text = config.text_config
        return cls(
            parameters=base,
            trained=sum(p.numel() for p in policy.parameters() if p.requires_grad),
            head=policy.output_weight().numel(),
            root=base - sum(blocks),
            largest_block=max(blocks),
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            intermediate=text.intermediate_size,
            cache=policy.num_layers * 2 * policy.num_kv_heads * policy.head_dim,
            vision_hidden=width,
            vision_intermediate=max(m.out_features for m in tower.mlp.modules() if isinstance(m, nn.Linear)),
            patch=policy.vision.patch_embed.proj.weight.numel() // width,
        )


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True)
class Load:
    """What is computed on one GPU at one time."""

    micro_batch: int  # tokens of a training pass
    slots: int  # reports decoded side by side
    cached: int  # tokens of a slot: prompt and report
    prefill: int  # prompt tokens of one prefill


def layer_bytes(sizes: Sizes, *, bf16: bool) -> int:
    """What autograd keeps of one token in one decoder layer: of each norm its normalised input and its output, q, k, v,
    attention twice (its heads may have to be put in order), gate, activation, up, product."""
    computed, cache = 2 if bf16 else 4, sizes.cache // sizes.layers
    return computed * (7 * sizes.hidden + cache + 4 * sizes.intermediate)


def tower_bytes(sizes: Sizes, *, bf16: bool) -> int:
    """What the vision tower holds of one patch without gradients: its pixels and the widest moment of a block: the
    rotary embedding of queries and keys in float32, or a wide MLP (gate, up, product, the input and its normalised
    copy)."""
    computed = 2 if bf16 else 4
    rotary = (30 if bf16 else 36) * sizes.vision_hidden
    mlp = computed * (2 * sizes.vision_hidden + 3 * sizes.vision_intermediate)
    return computed * sizes.patch + max(rotary, mlp)


def prefill_bytes(sizes: Sizes, *, bf16: bool) -> int:
    """What the decoder holds of one prompt token while it is read: its keys and values in all layers, gate, up and
    product of an MLP, and five states: embedding, its padded copy, input of the layer, residual and normalised."""
    return (2 if bf16 else 4) * (sizes.cache + 5 * sizes.hidden + 3 * sizes.intermediate)


def memory(
    sizes: Sizes, model: ModelConfig, load: Load, *, sharding: Sharding, world: int, local: int, bf16: bool = True
) -> dict[str, float]:
    """GB of each part on one GPU; a training pass and a rollout do not happen at one time, the larger counts."""
    lora, computed = model.training == "lora", 2 if bf16 else 4
    split = {"replicate": 1, "hybrid": min(local, world), "full": world}[sharding]
    gathers = split > 1 or (bf16 and not lora)
    stored = computed if lora else 4
    buffer = BUCKET if world > 1 and not gathers else 0  # of gradients on their way
    slots = load.slots * -(-load.cached // REACH) * REACH * sizes.cache * computed
    # The engine is kept from step to step, unless weights are gathered to new memory in each.
    training = training_bytes(sizes, model, load, gathers=gathers, bf16=bf16) + (0 if gathers else slots)
    rollout = rollout_bytes(sizes, load, gathers=gathers, bf16=bf16) + slots
    return {
        "weights": sizes.parameters * stored / split / GB,
        "reference": 0.0 if lora else sizes.parameters * computed / split / GB,
        "gradients and Adam": (sizes.trained * 12 / split + buffer) / GB,
        "training pass": training / GB,
        "rollout": rollout / GB,
        "context and fragments": SPARE,
    }


def training_bytes(sizes: Sizes, model: ModelConfig, load: Load, *, gathers: bool, bf16: bool) -> int:
    """Activations of a micro-batch, a tile of its logits, and what is gathered: the root for the whole pass, and of the
    blocks the one in use, the one fetched ahead and a gradient; with trained weights also a float32 gradient."""
    lora, computed = model.training == "lora", 2 if bf16 else 4
    a_layer = layer_bytes(sizes, bf16=bf16) * load.micro_batch
    inputs = sizes.layers * computed * sizes.hidden * load.micro_batch
    kept = inputs + a_layer if model.recompute_activations else sizes.layers * a_layer
    head = 0 if lora else 4 * sizes.head  # its gradient is added up in float32
    tile = TILE_BYTES["cuda"] if load.micro_batch else 0  # of logits
    gathered = computed * ((1 if lora else 2) * sizes.root + 3 * sizes.largest_block)
    gathered += 0 if lora else 4 * max(sizes.root, sizes.largest_block)
    return kept + head + tile + (gathered if gathers else 0)


def rollout_bytes(sizes: Sizes, load: Load, *, gathers: bool, bf16: bool) -> int:
    """Beyond the slots' caches: the weights if they are gathered, and the larger of the vision tower (4 patches make
    a token) and the decoder while prompts are read."""
    weights = (2 if bf16 else 4) * sizes.parameters if gathers else 0
    reading = max(4 * tower_bytes(sizes, bf16=bf16), prefill_bytes(sizes, bf16=bf16))
    return weights + load.prefill * reading


def total(parts: dict[str, float]) -> float:
    """Of `memory`: everything, and the larger of the two phases."""
    phases = parts["training pass"], parts["rollout"]
    return sum(parts.values()) - sum(phases) + max(phases)


def format_plan(sizes: Sizes, model: ModelConfig, load: Load, *, worlds: tuple[int, ...] = (1, 8, 64)) -> str:
    """GB on each GPU by sharding and number of GPUs, as Markdown, with the smallest card that holds it."""
    lines = [
        f"{sizes.parameters / 1e9:.2f} B parameters, {sizes.trained / 1e6:.1f} M trained; a training pass of "
        f"{load.micro_batch} tokens, {load.slots} slots of {load.cached} tokens, prefills of {load.prefill} tokens",
        "",
        "| sharding | GPUs | weights | reference | gradients, Adam | training pass | rollout | total GB | card |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    shardings: tuple[Sharding, ...] = ("replicate", "hybrid", "full")
    for sharding, world in itertools.product(shardings, worlds):
        if world == 1 and sharding != "replicate":
            continue
        parts = memory(sizes, model, load, sharding=sharding, world=world, local=8)
        whole = total(parts)
        card = next((f"{size} GB" for size in CARDS if whole <= size), "none")
        cells = [f"{parts[name]:.1f}" for name in list(parts)[:-1]]
        lines.append(f"| {sharding} | {world} | {' | '.join(cells)} | {whole:.1f} | {card} |")
    return "\n".join(lines)


def plan_memory(config: Config) -> str:
    """What the CAPO stage of a config needs of each GPU; ValueError if the checkpoint is not named or not there."""
    if config.model.path is None:
        raise ValueError("expected model.path, a checkpoint, got none; the small model fits everywhere")
    directory = locate(config.model.path, weights=False)
    sizes = Sizes.of(architecture(directory), config.model, train_vision=config.rl.vision == "trained")
    prompt = tokens_of_largest_image(load_image_processor(directory, **config.model.processor.limits)) + 64
    rl, rollout = config.rl, config.rollout
    load = Load(
        micro_batch=rl.optimizer.token_budget,
        slots=min(rollout.slots, rl.studies_per_step * rl.group_size),
        cached=prompt + rollout.max_new_tokens,
        prefill=max(prompt, min(rollout.prefill_tokens, rollout.slots * prompt)),
    )
    return format_plan(sizes, config.model, load)
