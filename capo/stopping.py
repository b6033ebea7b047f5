"""Signals that ask a program to stop: a run ends at the next point where nothing is lost, and Ctrl-C leaves no
traceback."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

# Ctrl-C, a scheduler's end, a closed terminal, a scheduler's warning; Windows has the first two.
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]
AGAIN_S = 1.0  # one Ctrl-C may come twice: to a group of processes, and passed on by the program that started them
INTERRUPTED = 130  # exit code, as of a shell


class StopRequested(Exception):
    """The run stopped on request and can be resumed."""


class StopSignal:
    """Records whether one of `STOP_SIGNALS` came."""

    def __init__(self) -> None:
        self.requested = False
        self._raises = False

    def listen(self) -> None:
        for number in STOP_SIGNALS:
            # nohup ignores SIGHUP, and a shell's script SIGINT in what it runs in the background.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._record)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it a signal raises StopRequested at any instruction: for work that loses nothing by it, as waiting."""
        self._raises = True
        try:
            if self.requested:
                raise StopRequested("stopped on request")
            yield
        finally:
            self._raises = False

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        _leave_closed_terminal()
        if self._raises:
            self._raises = False  # not again while this one unwinds
            raise StopRequested("stopped on request")


def _leave_closed_terminal() -> None:
    """Output to a terminal that is gone would raise an error instead of saving the run."""
    for output in (1, 2):
        try:
            os.write(output, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), output)


def expect_ctrl_c() -> None:
    """For a program, before its imports: Ctrl-C that no StopSignal records ends it with one line. The next Ctrl-C, or
    the SIGTERM that torchrun sends in its stead, ends it at once, even in a call that does not return."""
    sys.excepthook = _show_error
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_end_at_the_second, args=(reader,), daemon=True).start()


def _show_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped by Ctrl-C", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _end_at_the_second(signals: socket.socket) -> None:
    """Python's own handlers wait until the main thread is back from a library; this thread does not."""
    first: float | None = None
    while True:
        try:
            numbers = signals.recv(64)
        except TimeoutError:
            signals.settimeout(None)
            if os.environ.get("LOCAL_RANK", "0") == "0":
                print("stopping; Ctrl-C again ends the program at once", file=sys.stderr)
            continue
        now = time.monotonic()
        if first is not None and now - first >= AGAIN_S and {signal.SIGINT, signal.SIGTERM} & set(numbers):
            os._exit(INTERRUPTED)
        if first is None and signal.SIGINT in numbers:
            first = now
            signals.settimeout(AGAIN_S)
