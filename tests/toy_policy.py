"""A policy of a few hundred weights with every member of `capo.types.Policy`, and prompts of text for it: a step of it
takes milliseconds, and what it computes can be computed again in a few lines."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, scaled_dot_product_attention

from capo.trainer import Trainer
from capo.types import Rollout


@dataclass(frozen=True)
class TextPrompt:
    """A prompt without images; as after an image, positions go on from another number than the prompt's length."""

    study_id: str
    input_ids: Tensor
    next_position: int

    @classmethod
    def of(cls, study_id: str, length: int, *, ahead: int = 0, vocabulary: int = 97) -> "TextPrompt":
        return cls(study_id, torch.arange(length) % vocabulary, length + ahead)

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def positions(self) -> Tensor:
        return torch.arange(self.num_tokens).expand(3, -1)


class ToyPolicy(nn.Module):
    """One attention layer over token and position; `bias` is its only vector."""

    num_layers, num_kv_heads, head_dim = 1, 2, 4

    def __init__(self, vocab_size: int = 11) -> None:
        super().__init__()
        generator, width = torch.Generator().manual_seed(0), self.num_kv_heads * self.head_dim
        self.embedding = nn.Parameter(torch.randn(vocab_size, width, generator=generator))
        self.queries_keys_values = nn.Parameter(torch.randn(width, 3 * width, generator=generator) / 2)
        self.head = nn.Parameter(torch.randn(vocab_size, width, generator=generator) / 4)
        self.bias = nn.Parameter(torch.randn(width, generator=generator))
        self.device = torch.device("cpu")

    def forward(self, compute):
        return compute()

    def features(self, prompts):
        return [self.embedding.new_zeros(0, self.embedding.shape[1]) for _ in prompts]

    def feature_shapes(self, prompt):
        return []

    def embed(self, prompts, features):
        return [self.embed_tokens(prompt.input_ids) for prompt in prompts]

    def embed_tokens(self, ids):
        return self.embedding[ids]

    def decoder(self, embeds, positions, mask, cache=None, wanted=None):
        angles = positions[0, ..., None] * torch.arange(1, embeds.shape[-1] + 1) / 7
        inputs = embeds + angles.sin()
        heads = (inputs @ self.queries_keys_values).unflatten(-1, (3, self.num_kv_heads, self.head_dim))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # [B, heads, L, head dim] each
        if cache is not None:
            key, value = cache.update(key, value, 0)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        hidden = inputs + attended.transpose(1, 2).flatten(2) + self.bias
        return hidden if wanted is None else embedding(wanted, hidden.flatten(0, 1))

    def output_weight(self):
        return self.head

    def log_probabilities(
        self, prompt: TextPrompt, ids: Tensor, *, temperature: float = 1.0, suppressed: Tensor | None = None
    ) -> Tensor:
        """[T, V] for every token of one report, from all logits of the prompt with this report alone."""
        positions = torch.cat([prompt.positions[0], prompt.next_position + torch.arange(len(ids))])
        embeds = self.embed_tokens(torch.cat([prompt.input_ids, ids]))
        hidden = self.decoder(embeds[None], positions.expand(3, 1, -1), None)[0, prompt.num_tokens - 1 : -1]
        logits = hidden @ self.head.t() / temperature
        if suppressed is not None:
            logits = logits.masked_fill(suppressed, -torch.inf)
        return logits.log_softmax(-1)


def make_rollout(
    policy: ToyPolicy, prompt: TextPrompt, sample: int, ids: list[int], *, temperature: float = 1.0, suppressed=None
) -> Rollout:
    """These tokens, as if sampled from this policy."""
    report = torch.tensor(ids)
    with torch.no_grad():
        every = policy.log_probabilities(prompt, report, temperature=temperature, suppressed=suppressed)
    logps = every.gather(1, report[:, None])[:, 0]
    return Rollout(prompt.study_id, sample, report, logps, truncated=False)


def record_gradients(trainer: Trainer, *, learning_rate: float = 0.0) -> list[dict[str, Tensor]]:
    """Of every later update; the trainer then moves by plain gradient descent, since Adam magnifies round-off."""
    updates = []

    @torch.no_grad()
    def step():
        updates.append({n: p.grad.clone() for n, p in trainer.policy.named_parameters() if p.grad is not None})
        for parameter in trainer.parameters:
            if parameter.grad is not None:
                parameter -= learning_rate * parameter.grad
        trainer.optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": float(len(updates))}

    trainer.step = step
    return updates
