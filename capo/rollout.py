"""Continuous batching: encode and prefill each study once, copy its KV cache to G slots, refill slots as reports
finish."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from capo.sampling import SamplingConfig, choose, uniforms
from capo.static_decode import REACH, CudaGraphs, Recorder, StaticDecoder
from capo.stopping import StopRequested, StopSignal
from capo.types import Policy, Prompt, Rollout
from capo.vocabulary import product, working_dtype


@dataclass(frozen=True)
class Request:
    """One study to report, once for each seed."""

    prompt: Prompt
    seeds: tuple[int, ...]  # of `capo.sampling.sample_seed`; one report each


class SlotCache:
    """Preallocated keys and values, [layers] of [slots, kv heads, length, head dim]; each slot at its own length.

    The model's attention layers call `update` on it, as on any cache of transformers.
    """

    def __init__(self, policy: Policy, slots: int, length: int, like: Tensor) -> None:
        self.slots, self.version = slots, 0
        shape = (slots, policy.num_kv_heads, _rounded(length), policy.head_dim)
        self.keys = [like.new_zeros(shape) for _ in range(policy.num_layers)]
        self.values = [like.new_zeros(shape) for _ in range(policy.num_layers)]
        self.rows = torch.zeros(0, dtype=torch.int64)
        self.lengths = torch.zeros(0, dtype=torch.int64)
        self.reach = 0

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens a slot, keeping what is cached."""
        missing = _rounded(length) - self.keys[0].shape[2]
        if missing <= 0:
            return
        self.version += 1
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):  # one by one: both sizes exist of one layer only
                tensors[layer] = torch.nn.functional.pad(tensor, (0, 0, 0, missing))

    def at(self, lengths: Tensor, reach: int) -> "SlotCache":
        """Write the next token of slot i, for i < len(lengths), at position lengths[i]; read `reach` positions."""
        self.rows = torch.arange(len(lengths), device=lengths.device)
        self.lengths, self.reach = lengths, reach
        return self

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        active = len(self.rows)
        self.keys[layer][self.rows, :, self.lengths] = key[:, :, 0]
        self.values[layer][self.rows, :, self.lengths] = value[:, :, 0]
        return self.keys[layer][:active, :, : self.reach], self.values[layer][:active, :, : self.reach]

    def admit(self, slot: int, prefill: "PrefillCache", row: int, length: int) -> None:
        for mine, theirs in zip(self.keys + self.values, prefill.keys + prefill.values, strict=True):
            mine[slot, :, :length] = theirs[row, :, :length]

    def move(self, source: int, target: int, length: int) -> None:
        for tensor in self.keys + self.values:
            tensor[target, :, :length] = tensor[source, :, :length]


def _rounded(length: int) -> int:
    return -(-length // REACH) * REACH


class PrefillCache:
    """Keeps the keys and values of one prefill, [layers] of [studies, kv heads, P, head dim]."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(self, key: Tensor, value: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        self.keys.append(key)
        self.values.append(value)
        return key, value


@dataclass
class _Slot:
    """A report being written."""

    prompt: Prompt
    sample: int
    uniform: list[float]  # one number in [0, 1) for each token
    cached: int  # keys in the cache
    tokens: list[int]
    logps: list[float]


class _Queue:
    """Requests taken from an iterable only when there is room for them."""

    def __init__(self, requests: Iterable[Request], slots: int) -> None:
        self.requests, self.slots = iter(requests), slots
        self.head = self._advance()

    @property
    def next_size(self) -> int:
        """Reports of the next request; 0 when there is none."""
        return len(self.head.seeds) if self.head else 0

    def take(self, free: int, tokens: int) -> list[Request]:
        """The next requests that fit into `free` slots and, padded to the longest, `tokens`, in order; the first is
        never too long."""
        taken, longest = [], 0
        while 0 < self.next_size <= free:
            longest = max(longest, self.head.prompt.num_tokens)
            if taken and (len(taken) + 1) * longest > tokens:
                break
            free -= self.next_size
            taken.append(self.head)
            self.head = self._advance()
        return taken

    def _advance(self) -> Request | None:
        request = next(self.requests, None)
        if request is not None and not 0 < len(request.seeds) <= self.slots:
            raise ValueError(
                f"study {request.prompt.study_id}: expected 1 to {self.slots} reports a study (the slots), got "
                f"{len(request.seeds)}; raise evaluate.slots or lower rl.group_size"
            )
        return request


class Engine:
    """Writes the reports of a policy, and keeps its cache and its recorded steps from one `rollout` to the next.

    Recorded steps hold the addresses of the weights: between calls weights may change in place and not be replaced. A
    sharded policy gathers its weights to new memory each time, so it takes a new engine each time.

    A report depends on its prompt and its seed, not on the other requests, slots or ranks; in float32, because in
    bfloat16 products of another shape round so differently that the choice between two tokens may flip.

    Args:
        banned: [V] bool, tokens never sampled (vision and chat tokens); score with the same mask.
        slots: reports decoded concurrently; memory is slots x (longest prompt + max_new_tokens).
        new_recorder: makes what replays a decoding step instead of launching it kernel by kernel; by default CUDA
            graphs on a GPU.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        sampling: SamplingConfig,
        eos_id: int,
        banned: Tensor,
        slots: int = 64,
        new_recorder: Callable[[], Recorder] | None = None,
    ) -> None:
        if new_recorder is None and policy.device.type == "cuda":
            new_recorder = CudaGraphs
        self.policy, self.sampling, self.eos_id, self.banned, self.slots = policy, sampling, eos_id, banned, slots
        self.static = StaticDecoder(self._step, slots, policy.device, new_recorder) if new_recorder else None
        self.cache: SlotCache | None = None

    @torch.no_grad()
    def rollout(self, requests: Iterable[Request], *, stop: StopSignal | None = None) -> Iterator[Rollout]:
        """Write every requested report; yield each as it ends.

        Args:
            requests: consumed lazily, so that prompts of thousands of studies need not exist at one time.
            stop: asked before each token.

        Raises:
            StopRequested: `stop` said so.
            ValueError: a request for more reports than there are slots.
        """
        waiting = _Queue(requests, self.slots)
        active: list[_Slot] = []
        self.head = _head(self.policy)
        while active or waiting.next_size:
            if stop is not None and stop.requested:
                raise StopRequested(f"stopped with {len(active)} reports unfinished, as asked")
            # Prefilling study by study would waste the batch: wait until an eighth of the slots is free.
            if not active or self.slots - len(active) >= max(waiting.next_size, self.slots // 8):
                while admitted := waiting.take(self.slots - len(active), self.sampling.prefill_tokens):
                    active += self._admit(admitted, len(active))
            yield from _retire(active, self.cache, self.eos_id, self.sampling.max_new_tokens)
            if active:
                self._decode(active)

    def _admit(self, requests: Sequence[Request], first: int) -> list[_Slot]:
        """Slots for the reports of `requests`, from slot `first` on, each with its first token."""
        hidden, prefill = _prefill(self.policy, [request.prompt for request in requests])
        length = max(len(request.prompt.input_ids) for request in requests) + self.sampling.max_new_tokens
        if self.cache is None:
            self.cache = SlotCache(self.policy, self.slots, length, prefill.keys[0])
        self.cache.reserve(length)
        filled = _fill(requests, self.cache, prefill, first, self.sampling)
        # A prompt's last hidden state gives the first token of all of its reports.
        repeats = torch.tensor([len(request.seeds) for request in requests], device=hidden.device)
        uniform = torch.tensor([slot.uniform[0] for slot in filled], dtype=torch.float64, device=hidden.device)
        _append(filled, *self._choose(hidden.repeat_interleave(repeats, 0), uniform))
        return filled

    def _decode(self, active: Sequence[_Slot]) -> None:
        """Feed each busy slot its last token and choose its next."""
        state, reach = _state(active).to(self.policy.device), max(slot.cached for slot in active) + 1
        if self.static:
            tokens, logps = self.static(state, reach, self.cache.version)
        else:
            tokens, logps = self._step(state, reach)
        for slot in active:
            slot.cached += 1
        _append(active, tokens, logps)

    def _step(self, state: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        tokens, lengths, positions = state[:3].long()
        visible = torch.arange(reach, device=state.device) <= lengths[:, None]
        # Added to the scores, as attention kernels want it: made once here and not once per layer.
        mask = self.cache.keys[0].new_zeros(visible.shape).masked_fill(~visible, -torch.inf)
        hidden = self.policy.trunk(
            self.policy.embed_tokens(tokens)[:, None],
            positions.expand(3, -1)[..., None],
            mask[:, None, None],
            self.cache.at(lengths, reach),
        )
        return self._choose(hidden[:, 0], state[3])

    def _choose(self, hidden: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        # The product that training uses, so that rounding the logits adds nothing to the gap between the two. The head
        # first: with few slots a CPU multiplies it two to four times faster from this side.
        logits = product(self.head, hidden.t(), working_dtype(hidden)).t()
        return choose(logits, uniform, self.sampling, self.banned)


def rollout(
    policy: Policy, requests: Iterable[Request], *, stop: StopSignal | None = None, **options: Any
) -> Iterator[Rollout]:
    """The reports of an `Engine` that serves this once; `options` are its arguments."""
    return Engine(policy, **options).rollout(requests, stop=stop)


def _head(policy: Policy) -> Tensor:
    """[V, D], as the product of the logits needs it: only a GPU multiplies half precision to float32."""
    weight = policy.output_weight()
    return weight if weight.is_cuda else weight.to(working_dtype(weight))


def _prefill(policy: Policy, prompts: Sequence[Prompt]) -> tuple[Tensor, PrefillCache]:
    """Hidden state of each prompt's last token, [B, D], and the keys and values of all of them."""
    embeds = policy.embed(prompts, policy.features(prompts))
    lengths = torch.tensor([len(e) for e in embeds], device=embeds[0].device)
    length = int(lengths.max())
    padded = torch.stack([torch.nn.functional.pad(e, (0, 0, 0, length - len(e))) for e in embeds])
    positions = torch.stack(
        [torch.nn.functional.pad(p.positions, (0, length - p.positions.shape[1])) for p in prompts], 1
    )
    positions = positions.to(padded.device)
    cache = PrefillCache()
    # Padding lies to the right of every prompt, where causal attention cannot see it.
    hidden = policy.trunk(padded, positions, None, cache)
    return hidden[torch.arange(len(prompts), device=hidden.device), lengths - 1], cache


def _fill(
    admitted: Sequence[Request], cache: SlotCache, prefill: PrefillCache, first: int, sampling: SamplingConfig
) -> list[_Slot]:
    filled = []
    for row, request in enumerate(admitted):
        length = len(request.prompt.input_ids)
        for sample, seed in enumerate(request.seeds):
            cache.admit(first + len(filled), prefill, row, length)
            uniform = uniforms(seed, sampling.max_new_tokens).tolist()
            filled.append(_Slot(request.prompt, sample, uniform, length, [], []))
    return filled


def _state(active: Sequence[_Slot]) -> Tensor:
    """Last token, cached keys, position and uniform number of each slot, [4, S] float64 (exact for all of them)."""
    return torch.tensor(
        [
            [slot.tokens[-1] for slot in active],
            [slot.cached for slot in active],
            [slot.prompt.next_position + len(slot.tokens) - 1 for slot in active],
            [slot.uniform[len(slot.tokens)] for slot in active],
        ],
        dtype=torch.float64,
    )


def _append(active: Sequence[_Slot], tokens: Tensor, logps: Tensor) -> None:
    for slot, token, logp in zip(active, tokens.tolist(), logps.tolist(), strict=True):
        slot.tokens.append(token)
        slot.logps.append(logp)


def _retire(active: list[_Slot], cache: SlotCache, eos_id: int, max_new_tokens: int) -> Iterator[Rollout]:
    """Take out the reports that ended; the last slot moves into the gap, so that active slots stay contiguous."""
    for index in range(len(active) - 1, -1, -1):
        slot = active[index]
        ended = slot.tokens[-1] == eos_id
        if not ended and len(slot.tokens) < max_new_tokens:
            continue
        last = active.pop()
        if index < len(active):
            cache.move(len(active), index, last.cached)
            active[index] = last
        yield Rollout(
            study_id=slot.prompt.study_id,
            sample=slot.sample,
            response_ids=torch.tensor(slot.tokens),
            behaviour_logps=torch.tensor(slot.logps),
            truncated=not ended,
        )
