"""Rewards in processes of their own: while one group is scored, the reports of others are still being decoded."""

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import loky

from radflow.rewards.config import RewardConfig
from radflow.rewards.editing import Editing, GroupScorer
from radflow.rewards.judge.config import JudgeConfig
from radflow.rewards.registry import build_reward
from radflow.rewards.types import Parser, Scored


class RewardWorkers:
    """Scores groups of reports; a context manager, whose processes end with it.

    Args:
        config: of the reward; `config.workers` processes, with 0 each group is scored at once in this process.
        parse: section parser, a function that can be imported by name.
        judge: the language model that is asked, if the config asks one.
        editing: which copies of the reports are made and scored too; None makes none.
    """

    def __init__(
        self,
        config: RewardConfig,
        parse: Parser,
        *,
        judge: JudgeConfig | None = None,
        editing: Editing | None = None,
    ) -> None:
        self._executor: loky.ProcessPoolExecutor | None = None
        if config.workers:
            # loky's processes import what they need and not the program that started them, which loads a model library.
            # One thread each: they are many, and the cores are wanted for decoding too.
            self._executor = loky.ProcessPoolExecutor(
                config.workers,
                initializer=_prepare,
                initargs=(config, parse, judge, editing),
                env={"OMP_NUM_THREADS": "1"},
            )
        else:
            self._score = GroupScorer(build_reward(config, parse, judge=judge), editing)

    def submit(self, candidates: Sequence[str], references: Sequence[str]) -> "Future[Scored]":
        """Begin to score the reports of one group, which are compared with one another; `scores_of` waits for them."""
        if self._executor is not None:
            return self._executor.submit(_score_in_worker, list(candidates), list(references))
        done: Future[Scored] = Future()
        try:
            done.set_result(self._score(candidates, references))
        except Exception as error:  # waits in the future, as a worker's would
            done.set_exception(error)
        return done

    def __enter__(self) -> "RewardWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(kill_workers=True)


def scores_of(future: "Future[Scored]", *, study_id: str) -> Scored:
    """Scores of one group; RuntimeError if a worker process died, or the reward failed on these reports."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"study {study_id}: a reward worker died before it scored these reports, perhaps for want of memory; "
            "lower reward.workers, or set it to 0 to score in the main process"
        ) from error
    except Exception as error:
        raise RuntimeError(f"study {study_id}: its reports could not be scored: {error}") from error


_score: GroupScorer  # of a worker process, built by `_prepare`


def _prepare(config: RewardConfig, parse: Parser, judge: JudgeConfig | None, editing: Editing | None) -> None:
    global _score
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    _score = GroupScorer(build_reward(config, parse, judge=judge), editing)


def _end_with(parent: int) -> None:
    """A program that is killed cannot tell its workers; they would live on, and hold its output open."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _score_in_worker(candidates: list[str], references: list[str]) -> Scored:
    return _score(candidates, references)
