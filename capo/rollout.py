"""Continuous batching: prefill each study once, copy its KV cache to G slots, refill slots as reports finish."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from capo.logprobs import product, working_dtype
from capo.packing import bucket_by_length
from capo.sampling import SamplingConfig, choose, pack_linear, uniforms
from capo.static_decode import REACH, CudaGraphs, RecordedSteps, Recorder
from capo.stopping import StopRequested, StopSignal
from capo.types import Policy, Prompt, Rollout

LEAST_TOKENS = 256  # of padding that one more prefill must save; in the demo a prefill costs about 100


@dataclass(frozen=True)
class Request:
    """A study, and a seed for each report to sample."""

    prompt: Prompt
    seeds: tuple[int, ...]  # from `capo.sampling.sample_seed`


class SlotCache:
    """Preallocated keys and values, [layers] of [slots, kv heads, length, head dim]; each slot at its own length.

    The model's attention layers call `update`, as on any cache of transformers.
    """

    def __init__(self, slots: int) -> None:
        self.slots, self.version = slots, 0  # the version changes when the tensors are replaced
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.rows = torch.zeros(0, dtype=torch.int64)
        self.lengths = torch.zeros(0, dtype=torch.int64)
        self.reach = 0

    def reserve(self, length: int, prefill: "PrefillCache") -> None:
        """Make room for `length` tokens per slot, keeping what is cached; types and sizes as in `prefill`."""
        length = -(-length // REACH) * REACH
        if not self.keys:
            _, heads, _, size = prefill.keys[0].shape
            shape = (self.slots, heads, length, size)
            self.keys, self.values = ([key.new_zeros(shape) for key in prefill.keys] for _ in range(2))
        missing = length - self.keys[0].shape[2]
        if missing <= 0:
            return
        self.version += 1
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):  # one at a time: only one layer exists in both sizes
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
        for target, source in zip(self.keys + self.values, prefill.keys + prefill.values, strict=True):
            target[slot, :, :length] = source[row, :, :length]

    def move(self, source: int, target: int, length: int) -> None:
        for tensor in self.keys + self.values:
            tensor[target, :, :length] = tensor[source, :, :length]


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
    """A report being decoded."""

    prompt: Prompt
    sample: int
    uniform: list[float]  # one number in [0, 1) for each token
    cached: int  # keys in the cache
    tokens: list[int]
    logps: list[float]


class _Queue:
    """Requests, taken from an iterable only when there is room for them."""

    def __init__(self, requests: Iterable[Request], slots: int) -> None:
        self.requests, self.slots = iter(requests), slots
        self.head = self._advance()

    @property
    def next_size(self) -> int:
        """Reports of the next request; 0 when there is none."""
        return len(self.head.seeds) if self.head else 0

    def take(self, free: int, tokens: int) -> list[Request]:
        """The next requests that fit into `free` slots and, padded, into `tokens`; one whatever its length."""
        taken: list[Request] = []
        longest = 0
        while self.head and self.next_size <= free:
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
                f"study {request.prompt.study_id}: expected 1 to {self.slots} reports per study (the slots), got "
                f"{len(request.seeds)}; raise the slots or lower the group size"
            )
        return request


class Engine:
    """Samples reports from a policy; keeps its KV cache and recorded steps from one `rollout` to the next.

    Recorded steps hold the addresses of the weights: between calls weights may change in place but not be replaced. A
    sharded policy gathers its weights into new memory each time and needs a new engine each time.

    In float32 a report depends on its prompt and seed only, not on other requests, slots or ranks. In bfloat16, matrix
    products of another shape round differently, which may change a token.

    Args:
        suppressed: [V] bool, tokens never sampled (vision and chat tokens); score with the same mask.
        slots: reports decoded concurrently; memory is slots x (longest prompt + max_new_tokens).
        new_recorder: makes the recorder that replays decoding steps; by default CUDA graphs on a GPU, else none.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        sampling: SamplingConfig,
        eos_id: int,
        suppressed: Tensor,
        slots: int = 64,
        new_recorder: Callable[[], Recorder] | None = None,
    ) -> None:
        if new_recorder is None and policy.device.type == "cuda":
            new_recorder = CudaGraphs
        self.policy, self.sampling, self.eos_id, self.suppressed = policy, sampling, eos_id, suppressed
        self.slots, self.cache = slots, SlotCache(slots)
        self.recorded = RecordedSteps(self._step, slots, policy.device, new_recorder) if new_recorder else None

    @torch.no_grad()
    def rollout(self, requests: Iterable[Request], *, stop: StopSignal | None = None) -> Iterator[Rollout]:
        """Sample every requested report; yield each as it ends.

        Args:
            requests: consumed lazily, so that the prompts of thousands of studies need not be in memory together.
            stop: checked before each token.

        Raises:
            StopRequested: `stop` was set.
            ValueError: a request for more reports than there are slots.
        """
        self.head = _head(self.policy.output_weight(), self.suppressed)
        try:
            yield from self._rollout(_Queue(requests, self.slots), stop)
        finally:
            del self.head  # on a CPU a copy of the largest weight

    def _rollout(self, waiting: "_Queue", stop: StopSignal | None) -> Iterator[Rollout]:
        active: list[_Slot] = []
        while active or waiting.next_size:
            if stop is not None and stop.requested:
                raise StopRequested(f"stopped on request with {len(active)} reports unfinished")
            # Prefilling one study at a time is slow: wait until an eighth of the slots is free.
            if not active or self.slots - len(active) >= max(waiting.next_size, self.slots // 8):
                while admitted := waiting.take(self.slots - len(active), self.sampling.prefill_tokens):
                    sizes = [(1, request.prompt.num_tokens) for request in admitted]
                    for bucket in bucket_by_length(sizes, LEAST_TOKENS):
                        active += self._admit([admitted[i] for i in bucket], len(active))
            yield from _retire(active, self.cache, self.eos_id, self.sampling.max_new_tokens)
            if active:
                self._decode(active)

    def _admit(self, requests: Sequence[Request], first: int) -> list[_Slot]:
        """Fill slots with the reports of `requests`, from slot `first` on, and choose the first token of each."""
        hidden, prefill = _prefill(self.policy, [request.prompt for request in requests])
        length = max(len(request.prompt.input_ids) for request in requests) + self.sampling.max_new_tokens
        self.cache.reserve(length, prefill)
        filled: list[_Slot] = []
        for row, request in enumerate(requests):
            cached = len(request.prompt.input_ids)
            for sample, seed in enumerate(request.seeds):
                self.cache.admit(first + len(filled), prefill, row, cached)
                uniform = uniforms(seed, self.sampling.max_new_tokens).tolist()
                filled.append(_Slot(request.prompt, sample, uniform, cached, [], []))
        # The last hidden state of a prompt predicts the first token of all of its reports.
        repeats = torch.tensor([len(request.seeds) for request in requests], device=hidden.device)
        start = torch.tensor([slot.uniform[0] for slot in filled], dtype=torch.float64, device=hidden.device)
        _append(filled, *self._choose(hidden.repeat_interleave(repeats, 0), start))
        return filled

    def _decode(self, active: Sequence[_Slot]) -> None:
        """Feed each busy slot its last token and choose its next."""
        state, reach = _state(active).to(self.policy.device), max(slot.cached for slot in active) + 1
        if self.recorded:
            tokens, logps = self.recorded(state, reach, self.cache.version)
        else:
            tokens, logps = self._step(state, reach)
        for slot in active:
            slot.cached += 1
        _append(active, tokens, logps)

    def _step(self, state: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        tokens, lengths, positions = state[:3].long()
        visible = torch.arange(reach, device=state.device) <= lengths[:, None]
        # Added to the scores, as attention kernels need it: computed once here instead of once per layer.
        mask = self.cache.keys[0].new_zeros(visible.shape).masked_fill(~visible, -torch.inf)
        embeds, axes = self.policy.embed_tokens(tokens)[:, None], positions.expand(3, -1)[..., None]
        hidden = self.policy.decoder(embeds, axes, mask[:, None, None], self.cache.at(lengths, reach))
        return self._choose(hidden[:, 0], state[3])

    def _choose(self, hidden: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        return choose(self.head(hidden), uniform, self.sampling)


def rollout(
    policy: Policy, requests: Iterable[Request], *, stop: StopSignal | None = None, **options: Any
) -> Iterator[Rollout]:
    """The reports of an `Engine` that is used once; `options` are its arguments."""
    return Engine(policy, **options).rollout(requests, stop=stop)


def _head(weight: Tensor, suppressed: Tensor) -> Callable[[Tensor], Tensor]:
    """Hidden states [S, D] -> logits [S, V], -inf where suppressed.

    They are accumulated as in training, so that rounding does not widen the gap between sampler and trainer.
    """
    dtype = working_dtype(weight)
    if weight.is_cuda:
        return lambda hidden: product(hidden, weight.t(), dtype).masked_fill_(suppressed, -torch.inf)
    bias = weight.new_zeros(len(weight), dtype=dtype).masked_fill_(suppressed, -torch.inf)
    multiply = pack_linear(weight.to(dtype), bias)  # only a GPU multiplies half precision into float32
    return lambda hidden: multiply(hidden.to(dtype))


def _prefill(policy: Policy, prompts: Sequence[Prompt]) -> tuple[Tensor, PrefillCache]:
    """Hidden state of each prompt's last token, [B, D], and the keys and values of all of them."""
    embeds = policy.embed(prompts, policy.features(prompts))
    lengths = torch.tensor([len(e) for e in embeds], device=embeds[0].device)
    length = int(lengths.max())
    padded = torch.stack([torch.nn.functional.pad(e, (0, 0, 0, length - len(e))) for e in embeds])
    positions = [torch.nn.functional.pad(p.positions, (0, length - p.positions.shape[1])) for p in prompts]
    cache = PrefillCache()
    # Padding lies to the right of every prompt, where causal attention cannot see it.
    last = torch.arange(len(prompts), device=lengths.device) * length + lengths - 1
    return policy.decoder(padded, torch.stack(positions, 1).to(padded.device), None, cache, last), cache


def _state(active: Sequence[_Slot]) -> Tensor:
    """Last token, cached keys, position and uniform number of each slot, [4, S] float64 (exact for all of them)."""
    rows = [
        [slot.tokens[-1] for slot in active],
        [slot.cached for slot in active],
        [slot.prompt.next_position + len(slot.tokens) - 1 for slot in active],
        [slot.uniform[len(slot.tokens)] for slot in active],
    ]
    return torch.tensor(rows, dtype=torch.float64)


def _append(active: Sequence[_Slot], tokens: Tensor, logps: Tensor) -> None:
    for slot, token, logp in zip(active, tokens.tolist(), logps.tolist(), strict=True):
        slot.tokens.append(token)
        slot.logps.append(logp)


def _retire(active: list[_Slot], cache: SlotCache, eos_id: int, max_new_tokens: int) -> Iterator[Rollout]:
    """Yield the reports that ended; the last slot moves into the gap, so that active slots stay contiguous."""
    for index in range(len(active) - 1, -1, -1):
        slot = active[index]
        ended = slot.tokens[-1] == eos_id
        if not ended and len(slot.tokens) < max_new_tokens:
            continue
        last = active.pop()
        if index < len(active):
            cache.move(len(active), index, last.cached)
            active[index] = last
        tokens, logps = torch.tensor(slot.tokens), torch.tensor(slot.logps)
        yield Rollout(slot.prompt.study_id, slot.sample, tokens, logps, truncated=not ended)
