"""Work in processes or a thread that are watched: one that hangs or dies is replaced, and its work is done again."""

import faulthandler
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from typing import Any

from loky.backend.process import LokyProcess
from loky.backend.utils import kill_process_tree

from radflow.rewards.faults import Caution, Question, RewardError, attempt, describe_error
from radflow.rewards.processes import signals_held

SLACK_S = 60.0  # after which a worker that nobody ends any more ends itself
Build = Callable[[str], Callable[..., Any]]


class WatchedWorkers:
    """Workers that do tasks, one of which may hang or end its process at any metric that it asks.

    Args:
        number: of processes; with 0 a thread of this one works, and is left to itself if it hangs. Code that keeps the
            interpreter to itself (a regular expression, say) hangs the whole program then.
        build: kind of task -> what does it, loaded when it is first asked for. Processes import it by name.
        limit_s: seconds that a metric may take for a question. Loading is not limited.
        option: what the limit is called, for messages.
    """

    def __init__(self, number: int, build: Build, *, limit_s: float, option: str) -> None:
        self._closing, closed = Pipe(duplex=False)
        self._start = partial(_Worker, build, limit_s, option, self._closing, in_process=number > 0)
        self._workers: dict[int, _Worker] = {}
        self._free: queue.PriorityQueue[int] = queue.PriorityQueue()  # the first worker does what comes one by one
        for slot in range(max(1, number)):
            self._free.put(slot)
        self._threads = ThreadPoolExecutor(max(1, number), thread_name_prefix="reward workers")
        # Before multiprocessing waits for its processes, when the program ends.
        self.close = Finalize(self, _close, (closed, self._threads, self._workers), exitpriority=1)

    def submit(self, kind: str, *arguments: Any, patience: int) -> "Future[Any]":
        """Begin a task. Its future raises RewardError if the task failed, or a worker hung or died outside of metrics.

        Args:
            patience: for how many single reports a metric may hang until it is given up for the whole task.
        """
        return self._threads.submit(self._finish, (kind, *arguments), patience)

    def _finish(self, task: tuple[Any, ...], patience: int) -> Any:
        caution, died = Caution(), False
        slot = self._free.get()
        try:
            while True:
                worker = self._workers.get(slot) or self._workers.setdefault(slot, self._start())
                try:
                    return worker.do(task, caution)
                except _Lost as lost:
                    self._workers.pop(slot).kill()
                    if lost.hung or died:
                        if lost.asked is None:
                            raise RewardError(str(lost)) from None
                        caution = caution.after(lost.asked, str(lost), patience=patience)
                    died = died or not lost.hung  # a first death may be an accident: the same once more
        finally:
            self._free.put(slot)


def _close(closed: Connection, threads: ThreadPoolExecutor, workers: "dict[int, _Worker]") -> None:
    closed.close()  # ends every wait for an answer
    threads.shutdown(cancel_futures=True)
    for worker in workers.values():
        worker.kill()


class _Lost(Exception):
    """A worker hung or died when a metric was asked `asked`."""

    def __init__(self, why: str, asked: Question | None, *, hung: bool) -> None:
        super().__init__(why)
        self.asked, self.hung = asked, hung


class _Worker:
    """A process that imports what it needs and not the program that started it, which loads a model library; or a
    thread. A process computes with one thread: they are many, and the cores are wanted for decoding too."""

    def __init__(self, build: Build, limit_s: float, option: str, closing: Connection, *, in_process: bool) -> None:
        self.limit_s, self.option, self.closing = limit_s, option, closing
        self.connection, theirs = Pipe()
        self.process: LokyProcess | None = None
        if in_process:
            arguments = theirs, build, os.getpid(), limit_s
            self.process = LokyProcess(target=_serve_program, args=arguments, env={"OMP_NUM_THREADS": "1"})
            with signals_held():
                self.process.start()
            theirs.close()  # so that the connection ends with the process
        else:
            threading.Thread(target=_serve, args=(theirs, build), daemon=True).start()

    def do(self, task: tuple[Any, ...], caution: Caution) -> Any:
        """What the task gives; `_Lost` if the worker does not answer."""
        asked: Question | None = None
        limit_s = None  # while it loads
        try:
            self.connection.send((task, caution))
            while ready := wait([self.connection, self.closing], limit_s):
                if self.closing in ready:
                    raise RewardError("the workers were closed")
                said, value = self.connection.recv()
                if said == "done":
                    return value
                if said == "failed":
                    raise RewardError(value)
                asked, limit_s = value, self.limit_s
        except (EOFError, OSError):
            raise _Lost(f"its worker died twice: {self._describe_end()}", asked, hung=False) from None
        raise _Lost(f"it took over {self.limit_s:g} s ({self.option})", asked, hung=True)

    def _describe_end(self) -> str:
        if self.process is None:
            return "its thread ended"
        self.process.join(10)
        code = self.process.exitcode
        if code == -signal.SIGKILL:
            return "it was killed, perhaps for want of memory; use fewer workers"
        return f"it was killed by signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def kill(self) -> None:
        self.connection.close()
        if self.process is not None:
            kill_process_tree(self.process)


def _serve_program(connection: Connection, build: Build, parent: int, limit_s: float) -> None:
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    # Code that keeps the interpreter to itself stops the thread above too.
    with open(os.devnull, "w") as nowhere:
        armed = -SLACK_S

        def limit() -> None:  # not for every question: it starts a thread
            nonlocal armed
            if time.monotonic() - armed > SLACK_S / 2:
                armed = time.monotonic()
                faulthandler.dump_traceback_later(limit_s + SLACK_S, exit=True, file=nowhere)

        _serve(connection, build, limit)


def _end_with(parent: int) -> None:
    """A program that is killed cannot tell its workers; they would live on, and hold its output open."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _serve(connection: Connection, build: Build, limit: Callable[[], None] = lambda: None) -> None:
    """Do tasks until nobody asks any more, and say which question each metric is asked."""

    def announce(asked: Question | None) -> None:
        limit()
        connection.send(("asks", asked))

    works: dict[str, Callable[..., Any]] = {}
    with suppress(EOFError, OSError):
        while True:
            (kind, *arguments), caution = connection.recv()
            try:
                work = works.get(kind) or works.setdefault(kind, build(kind))
                announce(None)
                with attempt(caution, announce):
                    answer = "done", work(*arguments)
            except (Exception, SystemExit) as error:
                answer = "failed", describe_error(error)
            connection.send(answer)
