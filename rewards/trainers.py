"""The reward as a function that other trainers call: TRL's `reward_funcs`, verl's `reward.custom_reward_function`."""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from radflow.rewards.types import Fault, Parser, Score

if TYPE_CHECKING:
    from radflow.rewards.config import RewardConfig
    from radflow.rewards.judge.config import JudgeConfig
    from radflow.rewards.workers import RewardWorkers

Trainer = Literal["trl", "verl", "verl_batch"]


def reward_function(
    config: "RewardConfig",
    parse: Parser,
    *,
    trainer: Trainer = "trl",
    judge: "JudgeConfig | None" = None,
    reference: str = "reference",
) -> Callable[..., Any]:
    """The reward that a config asks for, as a function of the signature that a trainer expects.

    Args:
        config: of the reward; `config.workers` processes score, with 0 the trainer's own.
        parse: section parser, `radflow.data.sections.parse_sections`.
        trainer: trl gives `TrainerReward.report_reward`; verl `TrainerReward.compute_score`, which verl's reward loop
            calls per report; verl_batch `TrainerReward.compute_scores`, for its BatchRewardManager.
        judge: the language model that is asked, if the config asks one.
        reference: TRL's dataset column of reference reports.

    Raises:
        ValueError: an unknown trainer, or a model of the reward is not there.
    """
    from radflow.rewards.workers import RewardWorkers  # brings every metric

    reward = TrainerReward(RewardWorkers(config, parse, judge=judge), reference)
    functions: dict[Trainer, Callable[..., Any]] = {
        "trl": reward.report_reward,
        "verl": reward.compute_score,
        "verl_batch": reward.compute_scores,
    }
    if trainer not in functions:
        raise ValueError(f"expected a trainer among {', '.join(functions)}, got {trainer!r}")
    return functions[trainer]


class TrainerReward:
    """A reward under the names that trainers call it by.

    Reports of one call that have the same reference are a group: a part that one of them lacks counts in the total of
    none (`radflow.rewards.hierarchy`). A reward that could not be computed is never 0.
    """

    def __init__(self, workers: "RewardWorkers", reference: str) -> None:
        self.workers, self.reference = workers, reference
        self.lock = threading.Lock()  # verl calls from several threads, and metrics are not made for that

    def report_reward(
        self, prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Any = None, **columns: Any
    ) -> list[float | None]:
        """TRL's signature: rewards of the completions, which are texts or messages; None if one could not be computed,
        which TRL leaves out of the group."""
        if self.reference not in columns:
            given = ", ".join(name for name, values in columns.items() if isinstance(values, Sequence))
            raise ValueError(
                f"expected the dataset column {self.reference!r} with the reference reports, got {given or 'none'}; "
                "name yours: reward_function(..., reference=...)"
            )
        scores = self._score(list(map(_text, completions)), columns[self.reference], f"column {self.reference!r}")
        return [score.total for score in scores]

    def compute_score(
        self, data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any
    ) -> float:
        """verl's signature for one report; NaN if any part of its reward could not be computed, as its group, which is
        not seen here, would be compared with another sum."""
        (score,) = self._score([solution_str], [ground_truth], "ground_truth")
        return math.nan if score.missing else _number(score)

    def compute_scores(
        self,
        data_sources: Sequence[str],
        solution_strs: Sequence[str],
        ground_truths: Sequence[str],
        extra_infos: Any = None,
        **_: Any,
    ) -> list[float]:
        """verl's signature for a batch; NaN, which verl cannot mask, if a reward could not be computed: so are the
        advantages of its group, and verl's optimizer skips an update whose gradient is not finite."""
        return list(map(_number, self._score(list(solution_strs), ground_truths, "ground_truths")))

    def _score(self, reports: Sequence[str], references: Sequence[str], where: str) -> list[Score]:
        """Scores in the order of the reports.

        Args:
            where: the references come from, for messages.
        """
        from radflow.rewards.faults import describe_faults
        from radflow.rewards.workers import scores_of

        if len(references) != len(reports):
            raise ValueError(f"{where}: expected one reference per report, {len(reports)}, got {len(references)}")
        groups: dict[str, list[int]] = {}
        for i, reference in enumerate(references):
            if not isinstance(reference, str) or not reference.strip():
                got = "blank text" if isinstance(reference, str) else type(reference).__name__
                raise ValueError(f"{where}: expected the text of a reference report in row {i}, got {got}")
            groups.setdefault(reference, []).append(i)
        with self.lock:
            pending = [
                self.workers.submit([reports[i] for i in rows], [reference] * len(rows))
                for reference, rows in groups.items()
            ]
        found: dict[int, Score] = {}
        faults: list[tuple[str, Fault]] = []
        for rows, future in zip(groups.values(), pending, strict=True):
            name = f"in row {rows[0]} of the batch"
            scored = scores_of(future, study_id=name)
            found |= zip(rows, scored.scores, strict=True)
            faults += [(name, fault) for fault in scored.faults]
        for line in describe_faults(faults, self.workers.config, num_reports=len(reports)):
            print(f"warning: {line}", flush=True)
        return [found[i] for i in range(len(reports))]


def _text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """A completion, or the last message in it that the model wrote; a message may hold its text in parts."""
    if isinstance(completion, str):
        return completion
    written = [message.get("content") or "" for message in completion if message["role"] == "assistant"]
    last = written[-1] if written else ""
    return last if isinstance(last, str) else "".join(part.get("text") or "" for part in last)


def _number(score: Score) -> float:
    return math.nan if score.total is None else score.total
