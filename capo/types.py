"""What the stages hand to one another: frozen, each field with its shape and meaning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor, device
from torch.nn.attention.flex_attention import BlockMask

T = TypeVar("T")


class Prompt(Protocol):
    """Everything the model reads before the report. Built once, unpadded, never truncated."""

    study_id: str
    num_tokens: int  # P
    input_ids: Tensor  # [P] int64, image tokens included
    positions: Tensor  # [3, P] int64, mRoPE (temporal, height, width)
    next_position: int  # position of the first report token; each further token is one more


class Policy(Protocol):
    """The few operations the algorithm needs of a Qwen-VL-style model."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    device: device

    def __call__(self, compute: Callable[[], T]) -> T:
        """`compute()`, which uses the operations below; a sharded policy gathers what they need for its duration."""

    def features(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Image features of each prompt, [image tokens, W]; one run of the vision tower for all."""

    def feature_shapes(self, prompt: Prompt) -> list[tuple[int, int]]:
        """Rows and columns of the features of each image of a prompt; their products add up to its image tokens."""

    def embed(self, prompts: Sequence[Prompt], features: Sequence[Tensor]) -> list[Tensor]:
        """Input embeddings of each prompt, [P, W], image features in place; channels beyond D are 0 at text tokens."""

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """[...] int64 -> [..., D]."""

    def trunk(
        self, embeds: Tensor, positions: Tensor, mask: Tensor | BlockMask | None, cache: object | None = None
    ) -> Tensor:
        """[B, L, D or W], [3, B, L], mask [B, 1, L, S] -> hidden [B, L, D] after the last norm.

        The mask is bool (True: may attend) or added to the scores; None is causal. On a GPU that of a training pass is
        a block mask of FlexAttention.
        """

    def output_weight(self) -> Tensor:
        """[V, D] of the language-model head."""


@dataclass(frozen=True)
class Rollout:
    """One sampled report, with everything later stages need and cannot recompute."""

    study_id: str
    sample: int  # index among the reports of its study
    response_ids: Tensor  # [T] int64; ends in EOS unless truncated
    behaviour_logps: Tensor  # [T] float32, of the distribution sampled from
    truncated: bool  # the token limit came before EOS


@dataclass(frozen=True)
class Case:
    """One study of an optimiser batch: its prompt, its G reports, and what the loss needs of each."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    advantages: Tensor  # [G] float32, centred within the group; 0 where the reward is missing
    critical: bool  # the reference report describes an abnormal finding
