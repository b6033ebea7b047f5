"""What of a model is trained, as the table that a run prints before it starts."""

from collections import Counter

from torch import nn

from models.lora import LoraLinear
from models.qwen_vl import QwenVL

GROUPS = (
    ("vision attention", "visual.blocks", ".attn"),
    ("vision MLP", "visual.blocks", ".mlp"),
    ("merger", "visual", "merger"),
    ("language attention", "language_model.layers", ".self_attn"),
    ("language MLP", "language_model.layers", ".mlp"),
    ("embeddings", "embed_tokens", ""),
    ("head", "lm_head", ""),
)
REST = "patch embedding, norms"


def group_of(name: str) -> str:
    """The row of a module or parameter of transformers' model."""
    return next((group for group, where, part in GROUPS if where in name and part in name), REST)


def trainable_table(policy: QwenVL) -> str:
    """For each part of the model: its linear layers, those with an adapter, its parameters, those trained and their
    share; in Markdown, without the parts that the model lacks. A tied head counts as embeddings."""
    layers, adapted, base, trained = Counter(), Counter(), Counter(), Counter()
    for name, module in policy.model.named_modules():
        layers[group_of(name)] += isinstance(module, nn.Linear)
        adapted[group_of(name)] += isinstance(module, LoraLinear)
    for name, parameter in policy.model.named_parameters():
        group = group_of(name)
        trained[group] += parameter.numel() if parameter.requires_grad else 0
        base[group] += 0 if ".lora_" in name else parameter.numel()
    lines = [
        "| part | linear layers | with adapter | parameters | trained | % |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for group in [name for name, *_ in GROUPS] + [REST]:
        if base[group]:
            lines.append(_row(group, layers[group], adapted[group], base[group], trained[group]))
    lines.append(_row("all", *(sum(counter.values()) for counter in (layers, adapted, base, trained))))
    return "\n".join(lines)


def _row(title: str, layers: int, adapted: int, base: int, trained: int) -> str:
    return f"| {title} | {layers} | {adapted} | {base:,} | {trained:,} | {100 * trained / base:.3f} |"
