"""Decoding steps of fixed shape for GPUs, recorded once and replayed, so that no kernel waits for Python."""

from collections.abc import Callable

import torch
from torch import Tensor

REACH = 256  # the cache is read up to a multiple of this: one recording for each

Step = Callable[[], tuple[Tensor, Tensor]]
SlotStep = Callable[[Tensor, int], tuple[Tensor, Tensor]]
Recorder = Callable[[Step], Step]  # records a step over fixed buffers; the result repeats it on their current contents


class CudaGraphs:
    """Records steps as CUDA graphs that share a pool of memory."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        # Libraries initialise on first use, which cannot be recorded. A replay writes to the same addresses, so that
        # running the step twice does no harm.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # By default, CUDA calls of other threads would break the recording.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            outputs = step()

        def replay() -> tuple[Tensor, Tensor]:
            graph.replay()
            return outputs

        return replay


class RecordedSteps:
    """Decoding steps of all `slots`, busy or idle, with the reach rounded up.

    An idle slot decodes token 0 at position 0 of its own cache; the next report in that slot overwrites it.

    Args:
        step: (state [4, slots] float64, reach) -> tokens and logps, [slots] each; must not read a tensor's value on
            the host.
        new_recorder: called at the start, and again after the buffers that recordings point to were replaced, which
            the caller tells by another version.
    """

    def __init__(self, step: SlotStep, slots: int, device: torch.device, new_recorder: Callable[[], Recorder]) -> None:
        self.step, self.new_recorder = step, new_recorder
        self.state = torch.zeros(4, slots, dtype=torch.float64, device=device)
        self.version = 0
        self._forget()

    def __call__(self, state: Tensor, reach: int, version: int) -> tuple[Tensor, Tensor]:
        """State of the busy slots, [4, S] -> their next tokens and logps, [S] each; `version` is of the buffers."""
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
        # A memory pool must not be used again after its last recording is gone.
        self.record = self.new_recorder()
