"""Decoding steps of fixed shape without CUDA graphs, for tests and benchmarks on a CPU."""

from torch import Tensor

from capo.static_decode import Step


class Replays:
    """A recorder that repeats the step on its buffers; outputs keep their memory, as those of a CUDA graph do."""

    def __init__(self) -> None:
        self.count = 0  # recordings

    def __call__(self, step: Step) -> Step:
        self.count += 1
        outputs = step()

        def replay() -> tuple[Tensor, Tensor]:
            for output, value in zip(outputs, step(), strict=True):
                output.copy_(value)
            return outputs

        return replay
