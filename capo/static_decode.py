"""Decoding for GPUs: steps of fixed shape, recorded once and replayed, so that no kernel waits for Python."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

REACH = 256  # the cache is read up to a multiple of this: one recording for each

Step = Callable[[], tuple[Tensor, Tensor]]


class Recorder(Protocol):
    """Takes a step over fixed buffers; what it returns repeats the step on what the buffers then hold."""

    def __call__(self, step: Step) -> Step: ...


class CudaGraphs:
    """Records steps as CUDA graphs that share a pool of memory."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        # Libraries set themselves up on first use, which a recording cannot hold. The step writes where it will write
        # again when it is replayed, so running it twice does no harm.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use CUDA meanwhile: by default that would break the recording.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            outputs = step()

        def replay() -> tuple[Tensor, Tensor]:
            graph.replay()
            return outputs

        return replay


class StaticDecoder:
    """Steps of all `slots`, busy or idle, at a reach rounded up.

    An idle slot decodes token 0 at position 0 of its own cache, which the next report to take the slot overwrites.

    Args:
        step: (state [4, slots] float64, reach) -> tokens and logps, [slots] each; it may not read a tensor's value on
            the host.
        new_recorder: called at the start, and again when the buffers that recordings point to were replaced.
    """

    def __init__(
        self,
        step: Callable[[Tensor, int], tuple[Tensor, Tensor]],
        slots: int,
        device: torch.device,
        new_recorder: Callable[[], Recorder],
    ) -> None:
        self.step, self.new_recorder = step, new_recorder
        self.state = torch.zeros(4, slots, dtype=torch.float64, device=device)
        self.version = 0
        self._forget()

    def __call__(self, state: Tensor, reach: int, version: int) -> tuple[Tensor, Tensor]:
        """State of the busy slots, [4, S] -> their next tokens and logps, [S] each.

        Args:
            version: of the buffers that recordings point to; changes when they are replaced.
        """
        busy = state.shape[1]
        self.state.zero_()
        self.state[:, :busy] = state
        rounded = -(-reach // REACH) * REACH
        if version != self.version:
            self.version = version
            self._forget()
        if rounded not in self.recorded:
            self.recorded[rounded] = self.record(lambda: self.step(self.state, rounded))
        tokens, logps = self.recorded[rounded]()
        return tokens[:busy], logps[:busy]

    def _forget(self) -> None:
        self.recorded: dict[int, Step] = {}
        # A pool whose last recording is gone may not be used again.
        self.record = self.new_recorder()
