"""A Qwen-VL checkpoint as the few operations that the algorithm calls."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar

from models import attention, vision
from models.folders import written_whole
from models.loading import architecture, check_weights, locate
from models.processing import Prompt, ReportProcessor

# Bars over a second's work; those of the stages are what people want to see.
disable_progress_bar()

T = TypeVar("T")
ATTENTION = {"": "sdpa", "text_config": attention.NAME, "vision_config": "sdpa"}
FAMILIES = {
    "qwen2_vl": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": Qwen3VLForConditionalGeneration,
}


class QwenVL(nn.Module):
    """transformers' model, driven from embeddings, positions, a mask and a cache of the caller's.

    Qwen3-VL adds image features to the states behind its first layers too (DeepStack). They travel as further channels
    of the features and of a prompt's embeddings, 0 at text, so that nobody but `trunk` has to know of them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        vision.rebuild(self.vision)
        text = model.config.text_config
        self.hidden_size, self.vocab_size = text.hidden_size, text.vocab_size
        self.num_layers, self.num_kv_heads = text.num_hidden_layers, text.num_key_value_heads
        self.head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self._recomputed: list[GradientCheckpointingLayer] = []
        self._device: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """Where the policy computes. Weights that are offloaded are elsewhere between its passes: then it is set."""
        return self._device or self.output_weight().device

    @device.setter
    def device(self, device: torch.device) -> None:
        self._device = device

    @property
    def vision(self) -> nn.Module:
        return self.model.model.visual

    def forward(self, compute: Callable[[], T]) -> T:
        """`compute()`, with the parameters outside the blocks gathered where the policy is sharded."""
        return compute()

    def blocks(self) -> list[nn.Module]:
        """What is sharded and gathered one at a time: vision blocks and decoder layers."""
        return [*self.vision.blocks, *self.model.model.language_model.layers]

    def recompute_activations(self) -> None:
        """From now on a training pass keeps each layer's input only and computes the rest again on its way back."""
        self._recomputed = [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        # As transformers' own switch does; its name differs between versions, and the older one warns in the newer.
        for layer in self._recomputed:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def _mark(self, recompute: bool) -> None:
        # transformers reads `training`, and drops a cache where it is set; modules inside the layer stay in eval mode.
        for layer in self._recomputed:
            layer.training = recompute

    def features(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Image features of each prompt, [image tokens, W]; one run of the vision tower for all images."""
        # In the tower's type, which need not be that of the language model.
        dtype = self.vision.patch_embed.proj.weight.dtype
        pixels = torch.cat([prompt.pixel_values for prompt in prompts]).to(self.device, dtype)
        grids = torch.cat([prompt.image_grid_thw for prompt in prompts])
        self._mark(torch.is_grad_enabled())
        output = self.vision(pixels, grid_thw=grids, **vision.tower_inputs(self.vision, grids, self.device))
        merged = torch.cat([output.pooler_output, *(getattr(output, "deepstack_features", None) or ())], -1)
        shapes = [self.feature_shapes(prompt) for prompt in prompts]
        return list(merged.split([sum(height * width for height, width in images) for images in shapes]))

    def feature_shapes(self, prompt: Prompt) -> list[tuple[int, int]]:
        """Rows and columns of the features of each image of a prompt: neighbouring patches are merged into one."""
        merge = self.vision.spatial_merge_size
        return [(int(h) // merge, int(w) // merge) for _, h, w in prompt.image_grid_thw]

    def embed(self, prompts: Sequence[Prompt], features: Sequence[Tensor]) -> list[Tensor]:
        """Input embeddings of each prompt, [P, W], with its image features at the image tokens."""
        embedded = []
        for prompt, images in zip(prompts, features, strict=True):
            ids = prompt.input_ids.to(self.device)
            is_image = (ids == self.model.config.image_token_id)[:, None]
            tokens = self.embed_tokens(ids)
            tokens = nn.functional.pad(tokens, (0, images.shape[-1] - tokens.shape[-1]))
            embedded.append(tokens.masked_scatter(is_image, images.to(tokens.dtype)))
        return embedded

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids)

    def trunk(
        self, embeds: Tensor, positions: Tensor, mask: Tensor | BlockMask | None, cache: object | None = None
    ) -> Tensor:
        """[B, L, D or W], [3, B, L], mask [B, 1, L, S] or of blocks or None (causal) -> hidden [B, L, D], normed."""
        embeds, *deeper = embeds.split(self.hidden_size, -1)
        extra = {}
        if deeper:
            # At every position: the channels are 0 where there is text.
            extra["visual_pos_masks"] = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
            extra["deepstack_visual_embeds"] = [part.flatten(0, 1) for part in deeper]
        self._mark(torch.is_grad_enabled() and cache is None)
        return self.model.model.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask=self._as_it_is(mask),
            past_key_values=cache,
            use_cache=cache is not None,
            **extra,
        ).last_hidden_state

    def _as_it_is(self, mask: Tensor | BlockMask | None) -> Tensor | BlockMask | dict[str, object] | None:
        """The form in which this family takes a mask without building a causal one of its own."""
        return mask if self.model.config.model_type == "qwen3_vl" else {"full_attention": mask}

    def output_weight(self) -> Tensor:
        return self.model.get_output_embeddings().weight

    def save(self, directory: Path, processor: ReportProcessor, *, write: bool = True) -> None:
        """Write the published layout whole, in place of an earlier one there.

        Args:
            write: of several ranks one writes; all must call this, because a sharded policy is put together here.
        """
        weights = {}
        for name, value in self.model.state_dict().items():
            if write:
                weights[name] = whole(value).cpu()
            else:
                whole(value)
        if not write:
            return
        if self.model.config.tie_word_embeddings:
            weights.pop("lm_head.weight", None)
        with written_whole(directory) as folder:
            self.model.save_pretrained(folder, state_dict=weights)
            processor.save(folder)


def whole(tensor: Tensor) -> Tensor:
    """A tensor, put together from the ranks if it is sharded; all of them must call this."""
    if not isinstance(tensor, DTensor):
        return tensor
    if dist.get_backend(tensor.device_mesh.get_group("shard")) == "gloo":
        tensor = tensor.cpu()  # gloo would read the memory of a GPU from the host here
    return tensor.full_tensor()


def local(tensor: Tensor) -> Tensor:
    """The piece of a tensor that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def load(path_or_id: Path | str, *, dtype: torch.dtype | None = torch.float32) -> QwenVL:
    """Load a Qwen-VL checkpoint (config.json and safetensors, one or several), old names of weights or new.

    Weights whose type on disk is `dtype` stay mapped from their files: processes of one machine share them.

    Args:
        path_or_id: a directory, or an id of the hub (see `models.loading.locate`).
        dtype: of the weights; None keeps the type on disk.

    Raises:
        ValueError: no such checkpoint, another kind of model, or weights that are damaged or not the model's.
    """
    path = locate(path_or_id)
    config = architecture(path)
    check_weights(path)
    options = {"attn_implementation": ATTENTION, "use_safetensors": True, "output_loading_info": True}
    model, report = FAMILIES[config.model_type].from_pretrained(
        path, config=config, dtype=dtype or "auto", ignore_mismatched_sizes=True, **options
    )
    _refuse_other_weights(path, report)
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if config.tie_word_embeddings and head is not embeddings:
        raise ValueError(
            f"{path}: config.json says that the head is the embedding (tie_word_embeddings), the weights hold two "
            "that differ; set tie_word_embeddings to false if the head is meant to be its own"
        )
    return QwenVL(model.eval())


def freeze_vision(policy: QwenVL) -> None:
    """Stop training the vision tower and its merger."""
    policy.vision.requires_grad_(False)


def _refuse_other_weights(path: Path, report: Mapping[str, Collection]) -> None:
    """Nothing is left at its random start, and nothing of the file unused.

    Args:
        report: what transformers found while loading.
    """
    shapes = {name: f"{name} has {list(held)}, not {list(wanted)}" for name, held, wanted in report["mismatched_keys"]}
    for what, names in (
        ("are missing", sorted(report["missing_keys"])),
        ("do not belong to a model of this config", sorted(report["unexpected_keys"])),
        ("have another shape than config.json says", sorted(shapes.values())),
    ):
        if names:
            raise ValueError(
                f"{path}: {len(names)} weights {what}, for example {names[0]}; "
                "copy config.json and weights from one checkpoint"
            )
