"""Leave when asked to: a signal is noted, and the run stops at the next place where nothing is lost."""

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequested(Exception):
    """The run was asked to stop, and did so where it can go on."""


class StopSignal:
    """Notes SIGTERM and SIGUSR1: what schedulers send before they take a machine away."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
