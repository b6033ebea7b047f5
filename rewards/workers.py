"""The reward in workers: while one group is scored, the reports of others are still being decoded."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from radflow.rewards.config import RewardConfig
from radflow.rewards.editing import Editing, GroupScorer
from radflow.rewards.faults import RewardError
from radflow.rewards.judge.config import JudgeConfig
from radflow.rewards.measure import Table
from radflow.rewards.registry import METRICS, Backends, build_reward
from radflow.rewards.types import Parser, Scored
from radflow.rewards.watched import WatchedWorkers

T = TypeVar("T")
LOOK_S = 0.2  # between looks whether the run is to stop
TRIAL = "Findings: No effusion. Impression: No acute disease."
SINGLES = 3  # reports of a table for which a metric may hang, each for reward.timeout_s, until it is given up


class RewardWorkers:
    """Scores groups and tables of reports; a context manager, whose processes end with it.

    A part that raises, answers no number or hangs is missing, and named in `faults`: for the report, or for its group
    if it hung. A worker that hangs or dies is replaced. Models are loaded by the workers that need them.

    Args:
        config: of the reward; `config.workers` processes, with 0 a thread of this one.
        parse: section parser, a function that can be imported by name.
        judge: the language model that is asked, if the config asks one.
        editing: which copies of the reports of groups are made and scored too; None makes none.
        explore, also: further metrics of tables, as of `build_reward`.
        look: called again and again while an answer is waited for; what it raises ends the wait.

    Raises:
        ValueError: as `build_reward`.
    """

    def __init__(
        self,
        config: RewardConfig,
        parse: Parser,
        *,
        judge: JudgeConfig | None = None,
        editing: Editing | None = None,
        explore: Sequence[str] = (),
        also: Sequence[str] = (),
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self.config, self.parse, self.look = config, parse, look
        reward = build_reward(config, parse, judge=judge, explore=explore, also=also)  # what cannot be loaded is said
        self.weights, self.labeler = reward.weights, reward.labeler
        load = _Scorers(config, parse, judge, editing, tuple(explore), tuple(also)).load
        self._workers = WatchedWorkers(config.workers, load, limit_s=config.timeout_s, option="reward.timeout_s")

    def submit(self, candidates: Sequence[str], references: Sequence[str]) -> "Future[Scored]":
        """Begin to score the reports of one group, which are compared with one another; `scores_of` waits for them."""
        return self._workers.submit("group", list(candidates), list(references), patience=0)

    def table(self, candidates: Sequence[str], references: Sequence[str]) -> Table:
        """The total reward and every metric of reports, each a group of its own; RewardError if that is impossible."""
        return _result(self._workers.submit("table", list(candidates), list(references), patience=SINGLES), self.look)

    def __enter__(self) -> "RewardWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()


def scores_of(future: "Future[Scored]", *, study_id: str, look: Callable[[], None] = lambda: None) -> Scored:
    """Scores of one group; RewardError if they cannot be had, other than for a metric that failed.

    Args:
        look: as of `RewardWorkers`.
    """
    try:
        return _result(future, look)
    except RewardError as error:
        raise RewardError(f"study {study_id}: its reports could not be scored: {error}") from None


def _result(future: "Future[T]", look: Callable[[], None]) -> T:
    while not wait([future], timeout=LOOK_S).done:
        look()
    return future.result()


@dataclass(frozen=True)
class _Scorers:
    """What a worker does; each kind of task loads its metrics when the first comes."""

    config: RewardConfig
    parse: Parser
    judge: JudgeConfig | None
    editing: Editing | None
    explore: tuple[str, ...]
    also: tuple[str, ...]

    def load(self, kind: str) -> Callable[[list[str], list[str]], Scored | Table]:
        explore, also = ((), ()) if kind == "group" else (self.explore, self.also)
        reward = build_reward(self.config, self.parse, explore=explore, also=also, backends=self._backends)
        # What metrics import, and the first pass of a model, is part of loading. Only what is free is asked.
        free = [name for name in reward.metrics.metrics if name in METRICS and METRICS[name].model != "judge"]
        reward.metrics.only(free)([TRIAL], [TRIAL])
        return GroupScorer(reward, self.editing) if kind == "group" else reward.table

    @cached_property
    def _backends(self) -> Backends:
        return Backends(self.config, self.parse, self.judge)
