"""What the stages hand to one another: frozen, each field with its shape and meaning."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor, device, nn
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
    """All that rollouts, packing and `Trainer` need of a model: any class with these members works.

    `docs/library/policy.md` has one for a text-only model. W is at least D: channels of an image feature beyond the
    hidden size are for models that add features in several layers. Prompts are of the kind that the policy's own
    processor makes, with at least the members of `Prompt`.
    """

    device: device

    def parameters(self) -> Iterable[nn.Parameter]:
        """Those that require a gradient are trained."""

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """The same with the names that checkpoints use."""

    def __call__(self, compute: Callable[[], T]) -> T:
        """`compute()`, which uses the operations below; a sharded policy gathers its parameters for that time."""

    def features(self, prompts: Sequence[Any]) -> list[Tensor]:
        """Image features of each prompt, [image tokens, W]; one run of the vision tower for all prompts."""

    def embed(self, prompts: Sequence[Any], features: Sequence[Tensor]) -> list[Tensor]:
        """Input embeddings of each prompt, [P, W], features at the image tokens; channels beyond D are 0 at text."""

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """[...] int64 -> [..., D]."""

    def decoder(
        self,
        embeds: Tensor,
        positions: Tensor,
        mask: Tensor | BlockMask | None,
        cache: object | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """[B, L, D or W], [3, B, L], mask [B, 1, L, S] -> hidden [B, L, D] after the last norm.

        Args:
            mask: bool (True: may attend) or added to the scores; None is causal. A training pass gets a
                `SharedPrefixMask`, which is bool, or on a GPU a block mask of FlexAttention.
            cache: `cache.update(key, value, layer)` returns the keys and values to attend to, [B, kv heads, S, head
                dim]; each layer calls it once, as with a cache of transformers.
            wanted: [N] int64, indices into B x L, which may repeat: only these states are returned, [N, D]. The last
                layer need not compute others. Select with `embedding(wanted, hidden)`: on a CPU the gradients of
                `hidden[wanted]` race.
        """

    def output_weight(self) -> Tensor:
        """[V, D] of the language-model head."""


@dataclass(frozen=True)
class Rollout:
    """One sampled report, with everything later stages need and cannot recompute; or an edited copy of one."""

    study_id: str
    sample: int  # index among the reports of its study; of a copy, that of the report that it was made of
    response_ids: Tensor  # [T] int64; ends in EOS unless truncated
    behaviour_logps: Tensor  # [T] float32, of the distribution sampled from, NaN if unknown; of a copy, 0
    truncated: bool  # the token limit came before EOS
    edited: str | None = None  # of a copy: what was changed


@dataclass(frozen=True)
class Case:
    """One study of an optimiser batch: its prompt, its G reports and copies, and what the loss needs of them."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    advantages: Tensor  # [G] float32, or [G, T] of each token, T at least that of the longest report; 0 if missing
    critical: bool  # the reference report describes an abnormal finding; splits the metrics
    clip: float  # eps_i, the clip range of its reports (eq. 9, `capo.clipping.critical_clip`)
