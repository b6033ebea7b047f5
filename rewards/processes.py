"""Worker processes leave it to the program that started them when to stop."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


@contextmanager
def signals_held() -> Iterator[None]:
    """Processes that are started within never get the signals that ask a program to stop.

    A terminal sends Ctrl-C to every process of a group, torchrun each of its signals to all processes of a rank. What
    a thread has blocked stays blocked in the processes and threads that it starts, from their first instruction on; it
    is given to this thread at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it would unblock them (Python 3.11)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in _NAMES])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
