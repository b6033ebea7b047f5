"""Leave a failing server alone for a while."""

import time
from collections.abc import Callable


class Breaker:
    """Open after `failures` failed requests in a row. After each rest one request tries whether the server is back.

    Args:
        rest_s: seconds between such tries.
        clock: seconds, never going back.
    """

    def __init__(self, failures: int, rest_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._rest_s, self._clock = failures, rest_s, clock
        self._failed, self._tried = 0, 0.0

    @property
    def open(self) -> bool:
        return self._failed >= self._limit

    def allows(self) -> bool:
        """May a request be sent now? While open, True for the first that asks after each rest."""
        if not self.open:
            return True
        if self._clock() - self._tried < self._rest_s:
            return False
        self._tried = self._clock()  # the others wait for the outcome of this one
        return True

    def succeeded(self) -> None:
        self._failed = 0

    def failed(self) -> None:
        self._failed += 1
        if self.open:
            self._tried = self._clock()
