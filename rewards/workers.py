"""Rewards in processes of their own: while one group is scored, the reports of others are still being decoded."""

import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import loky

from radflow.rewards.config import RewardConfig
from radflow.rewards.hierarchy import HierarchicalReward
from radflow.rewards.judge.config import JudgeConfig
from radflow.rewards.registry import build_reward
from radflow.rewards.types import Parser, Scored


class RewardWorkers:
    """Scores groups of reports; a context manager, whose processes end with it.

    Args:
        config: of the reward; `config.workers` processes, with 0 each group is scored at once in this process.
        parse: section parser, a function that can be imported by name.
        judge: the language model that is asked, if the config asks one.
    """

    def __init__(self, config: RewardConfig, parse: Parser, *, judge: JudgeConfig | None = None) -> None:
        self._executor: loky.ProcessPoolExecutor | None = None
        if config.workers:
            # loky's processes import what they need and not the program that started them, which loads a model library.
            # One thread each: they are many, and the cores are wanted for decoding too.
            self._executor = loky.ProcessPoolExecutor(
                config.workers, initializer=_prepare, initargs=(config, parse, judge), env={"OMP_NUM_THREADS": "1"}
            )
        else:
            self._reward: HierarchicalReward = build_reward(config, parse, judge=judge)

    def submit(self, candidates: Sequence[str], references: Sequence[str]) -> "Future[Scored]":
        """Begin to score the reports of one group, which are compared with one another; `scores_of` waits for them."""
        if self._executor is not None:
            return self._executor.submit(_score, list(candidates), list(references))
        done: Future[Scored] = Future()
        try:
            done.set_result(self._reward.scored(candidates, references, groups=[0] * len(candidates)))
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


_reward: HierarchicalReward  # of a worker process, built by `_prepare`


def _prepare(config: RewardConfig, parse: Parser, judge: JudgeConfig | None) -> None:
    global _reward
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    _reward = build_reward(config, parse, judge=judge)


def _end_with(parent: int) -> None:
    """A program that is killed cannot tell its workers; they would live on, and hold its output open."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _score(candidates: list[str], references: list[str]) -> Scored:
    return _reward.scored(candidates, references, groups=[0] * len(candidates))
