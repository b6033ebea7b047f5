"""Preemption: a signal is recorded, and the run stops at the next point where nothing is lost."""

import signal
from types import FrameType


class StopRequested(Exception):
    """The run stopped on request and can be resumed."""


class StopSignal:
    """Records SIGTERM and SIGUSR1, which schedulers send before preemption."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._record)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
