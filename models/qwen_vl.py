"""A Qwen-VL checkpoint as the few operations that the algorithm calls."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.logging import disable_progress_bar

from radflow.models.layers import ATTENTION_NAME, rebuild_decoder, rebuild_tower, tower_inputs
from radflow.models.loading import architecture, check_weights, locate, refuse_damaged, write_folder
from radflow.models.processing import Prompt, ReportProcessor

disable_progress_bar()  # they cover a second's work; those of the stages are what people want to see

T = TypeVar("T")
ATTENTION = {"": "sdpa", "text_config": ATTENTION_NAME, "vision_config": "sdpa"}
FAMILIES: dict[str, Any] = {
    "qwen2_vl": transformers.Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": transformers.Qwen3VLForConditionalGeneration,
}


class QwenVL(nn.Module):
    """transformers' model, driven from embeddings, positions, a mask and a cache of the caller's.

    Qwen3-VL also adds image features to the states after its first layers (DeepStack). They are further channels of the
    features and of a prompt's embeddings, 0 at text; only `decoder` splits them off.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model
        rebuild_tower(self.vision)
        rebuild_decoder(model.model.language_model)
        text = model.config.text_config
        self.hidden_size, self.vocab_size = text.hidden_size, text.vocab_size
        self.num_layers, self.num_kv_heads = text.num_hidden_layers, text.num_key_value_heads
        self.head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self._recomputed: list[Any] = []
        self._device: torch.device | None = None
        self.decode: Callable[..., Tensor] | None = None  # `decoder` for one token per report (models/decoding.py)

    @property
    def device(self) -> torch.device:
        """Where the policy computes; set if its weights are offloaded, that is elsewhere between passes."""
        return self._device or self.output_weight().device

    @device.setter
    def device(self, device: torch.device) -> None:
        self._device = device

    @property
    def vision(self) -> Any:
        return self.model.model.visual

    def forward(self, compute: Callable[[], T]) -> T:
        """`compute()`, with the parameters outside the blocks gathered if the policy is sharded."""
        return compute()

    def blocks(self) -> list[nn.Module]:
        """Vision blocks and decoder layers, which are sharded and gathered one at a time."""
        return [*self.vision.blocks, *self.model.model.language_model.layers]

    def recompute_activations(self) -> None:
        """From now on a training pass keeps each layer's input only and recomputes the rest in its backward pass."""
        self._recomputed = [m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer)]
        # What transformers' own switch does, whose name differs between versions.
        for layer in self._recomputed:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def _mark(self, recompute: bool) -> None:
        # transformers reads `training`, and drops a cache if it is set; modules inside the layer stay in eval mode.
        for layer in self._recomputed:
            layer.training = recompute

    def features(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Image features of each prompt, [image tokens, W]; one run of the vision tower for all that have none yet."""
        new = [prompt for prompt in prompts if prompt.features is None]
        computed = iter(self._features(new) if new else [])
        return [next(computed) if p.features is None else p.features.to(self.device) for p in prompts]

    def _features(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        # In the tower's type, which need not be that of the language model.
        dtype = self.vision.patch_embed.proj.weight.dtype
        pixels = torch.cat([prompt.pixel_values for prompt in prompts]).to(self.device, dtype)
        grids = torch.cat([prompt.image_grid_thw for prompt in prompts])
        self._mark(torch.is_grad_enabled())
        output = self.vision(pixels, grid_thw=grids, **tower_inputs(self.vision, grids, self.device))
        merged = torch.cat([output.pooler_output, *(getattr(output, "deepstack_features", None) or ())], -1)
        shapes = [self.feature_shapes(prompt) for prompt in prompts]
        return list(merged.split([sum(height * width for height, width in images) for images in shapes]))

    def feature_shapes(self, prompt: Prompt) -> list[tuple[int, int]]:
        """Rows and columns of the features of each image of a prompt: neighbouring patches are merged into one."""
        merge = self.vision.spatial_merge_size
        return [(int(h) // merge, int(w) // merge) for _, h, w in prompt.image_grid_thw]

    def embed(self, prompts: Sequence[Prompt], features: Sequence[Tensor]) -> list[Tensor]:
        """Input embeddings of each prompt, [P, W], with its image features at the image tokens."""
        # At once: with a gradient, each call of the embedding fills one as large as its whole table.
        ids = torch.cat([prompt.input_ids for prompt in prompts]).to(self.device)
        tokens, images = self.embed_tokens(ids), torch.cat(list(features))
        tokens = nn.functional.pad(tokens, (0, images.shape[-1] - tokens.shape[-1]))
        is_image = ids.eq(self.model.config.image_token_id)[:, None]
        embedded = tokens.masked_scatter(is_image, images.to(tokens.dtype))
        return list(embedded.split([len(prompt.input_ids) for prompt in prompts]))

    def embed_tokens(self, ids: Tensor) -> Tensor:
        return self.model.get_input_embeddings()(ids)

    def decoder(
        self,
        embeds: Tensor,
        positions: Tensor,
        mask: Tensor | BlockMask | None,
        cache: object | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """[B, L, D or W], [3, B, L], mask [B, 1, L, S] or of blocks or None (causal) -> hidden [B, L, D], normed.

        Of `wanted`, [N] indices into B x L, if given: [N, D].
        """
        if self.decode is not None and cache is not None and mask is not None:
            return self.decode(embeds, positions, mask, cache)
        embeds, *deeper = embeds.split(self.hidden_size, -1)
        extra: dict[str, Any] = {}
        if deeper:
            # At every position: the channels are 0 at text.
            extra["visual_pos_masks"] = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
            extra["deepstack_visual_embeds"] = [part.flatten(0, 1) for part in deeper]
        self._mark(torch.is_grad_enabled() and cache is None)
        if wanted is not None:
            extra["wanted"] = wanted
        hidden = self.model.model.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            # In the form in which each family takes a mask without building a causal one of its own.
            attention_mask=mask if self.model.config.model_type == "qwen3_vl" else {"full_attention": mask},
            past_key_values=cache,
            use_cache=cache is not None,
            **extra,
        ).last_hidden_state
        return hidden if wanted is None else hidden[0]

    def output_weight(self) -> Tensor:
        return self.model.get_output_embeddings().weight

    def save(self, directory: Path, processor: ReportProcessor, *, write: bool = True) -> None:
        """Write the published layout, complete or not at all, in place of an earlier one there.

        Args:
            write: of several ranks one writes; all must call this, because a sharded policy is put together here.
        """
        weights = {}
        for name, value in self.model.state_dict().items():
            if write:
                weights[name] = whole(value).cpu()
            else:
                whole(value)  # not assigned, so that it is freed at once
        if not write:
            return
        if self.model.config.tie_word_embeddings:
            weights.pop("lm_head.weight", None)
        with write_folder(directory) as folder:
            self.model.save_pretrained(folder, state_dict=weights, max_shard_size="5GB")  # as published
            processor.save(folder)


def whole(tensor: Tensor) -> Tensor:
    """A tensor, put together from the ranks if it is sharded; all of them must call this."""
    if not isinstance(tensor, DTensor):
        return tensor
    sharded: Any = tensor
    if dist.get_backend(tensor.device_mesh.get_group("shard")) == "gloo":
        sharded = sharded.cpu()  # gloo would read the memory of a GPU from the host here
    return sharded.full_tensor()


def local(tensor: Tensor) -> Tensor:
    """The piece of a tensor that this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def load(path_or_id: Path | str, *, dtype: torch.dtype | None = torch.float32) -> QwenVL:
    """Load a Qwen-VL checkpoint (config.json and safetensors, one or several), with old or new names of weights.

    Weights whose type on disk is `dtype` stay mapped from their files: processes of one machine share them.

    Args:
        path_or_id: as `radflow.models.loading.locate` takes it.
        dtype: of the weights; None keeps the type on disk.

    Raises:
        ValueError: no such checkpoint, another kind of model, or weights that are damaged or not the model's.
    """
    path = locate(path_or_id)
    config = architecture(path)
    check_weights(path)
    options = {"attn_implementation": ATTENTION, "use_safetensors": True, "output_loading_info": True}
    with refuse_damaged("the config of these weights", path / "config.json", path / "generation_config.json"):
        model, info = FAMILIES[config.model_type].from_pretrained(
            path, config=config, dtype=dtype or "auto", ignore_mismatched_sizes=True, **options
        )
    _refuse_other_weights(path, info)
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if config.tie_word_embeddings and head is not embeddings:
        raise ValueError(
            f"{path}: config.json says that the head is the embedding (tie_word_embeddings), the weights hold two "
            "that differ; set tie_word_embeddings to false if the head is meant to be its own"
        )
    return QwenVL(model.eval())


def _refuse_other_weights(path: Path, info: Mapping[str, Collection[Any]]) -> None:
    """Nothing is left at its random start, and nothing of the file unused; `info` is transformers' on loading."""
    shapes = {name: f"{name} has {list(held)}, not {list(wanted)}" for name, held, wanted in info["mismatched_keys"]}
    for what, names in (
        ("are missing", sorted(info["missing_keys"])),
        ("do not belong to a model of this config", sorted(info["unexpected_keys"])),
        ("have another shape than config.json says", sorted(shapes.values())),
    ):
        if names:
            raise ValueError(
                f"{path}: {len(names)} weights {what}, for example {names[0]}; "
                "copy config.json and weights from one checkpoint"
            )
