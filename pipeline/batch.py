"""The reports of a step and what they scored: exchanged between ranks, made into cases, written down."""

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from capo.advantages import GroupAdvantages, variance_shares
from capo.ranks import Ranks
from capo.types import Case, Prompt, Rollout
from radflow.dashboard.archive import Archive
from radflow.data.studies import Study
from radflow.rewards.config import RewardConfig
from radflow.rewards.faults import describe_faults
from radflow.rewards.types import Fault, Score


@dataclass(frozen=True)
class Batch:
    """The studies of one step with G reports each, in the order of their sample index, then edited copies of some, and
    what these scored."""

    studies: tuple[Study, ...]
    prompts: tuple[Prompt, ...]
    groups: tuple[tuple[Rollout, ...], ...]
    texts: tuple[tuple[str, ...], ...]
    scores: tuple[tuple[Score, ...], ...]
    seconds_rollout: float
    seconds_reward: float  # spent waiting for rewards after the last report was there
    seconds_parts: Mapping[str, float]  # part of the reward -> seconds that all workers together spent on it
    resampled: int = 0  # groups that were sampled anew for want of spread
    faults: tuple[tuple[str, Fault], ...] = ()  # study id, and what failed for a report of its group

    @property
    def group_index(self) -> Tensor:
        """[N] int64, the number of each report's study in the batch."""
        return torch.tensor([number for number, group in enumerate(self.groups) for _ in group])

    @property
    def sampled(self) -> Tensor:
        """[N] bool, False for edited copies."""
        return torch.tensor([report.edited is None for group in self.groups for report in group])

    @property
    def part_names(self) -> list[str]:
        """Parts of the reward, in the order of the columns of `terms`."""
        scores = (score for group in self.scores for score in group)
        return list(dict.fromkeys(name for score in scores for name in (*score.terms, *score.missing)))

    @property
    def terms(self) -> Tensor:
        """[N, K] float64, what each part adds to the total of each report; NaN if it could not be computed."""
        return self._columns(Score.scaled)

    @property
    def objectives(self) -> Tensor:
        """[N, K + 1] float64, each part before truth scales it, then truth; all NaN for a report without any term."""
        scores = [score for group in self.scores for score in group]
        truth = [[score.truth if score.terms else math.nan] for score in scores]
        terms = self._columns(lambda score, name: score.terms.get(name, math.nan))
        return torch.cat([terms, torch.tensor(truth, dtype=torch.float64)], 1)

    def _columns(self, value: Callable[[Score, str], float]) -> Tensor:
        names, scores = self.part_names, [score for group in self.scores for score in group]
        rows = [[value(score, name) for name in names] for score in scores]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(scores), len(names))

    def flat_groups(self) -> list[int]:
        """Numbers of the groups whose sampled reports all have the same total."""
        flat = []
        for number, (group, scores) in enumerate(zip(self.groups, self.scores, strict=True)):
            totals = {score.total for report, score in zip(group, scores, strict=True) if report.edited is None}
            flat += [number] if len(totals - {None}) < 2 else []
        return flat

    def select(self, labels: Mapping[str, bool]) -> Tensor:
        """[studies] bool, the label of each study."""
        return torch.tensor([labels[study.id] for study in self.studies])

    def cases(self, advantages: Tensor, critical: Tensor, clip: Tensor, *, masked: bool = False) -> list[Case]:
        """What one optimiser batch trains on.

        Args:
            advantages: [N] of each report (paper eq. 1), or [N, T] of each of its tokens.
            critical: [studies] bool.
            clip: [studies], eps_i of each study (paper eq. 9).
            masked: truncated reports leave the loss.
        """
        per_study = advantages.float().split([len(group) for group in self.groups])
        columns = zip(self.prompts, self.groups, per_study, critical.tolist(), clip.tolist(), strict=True)
        cases = []
        for prompt, group, values, *rest in columns:
            kept = [i for i, report in enumerate(group) if not (masked and report.truncated)]
            cases.append(Case(prompt, tuple(group[i] for i in kept), values[kept], *rest))
        return cases

    def metrics(self, advantages: GroupAdvantages, critical: Tensor) -> dict[str, float | None]:
        """Means over the step's sampled reports: total, each known part, length, truncation; how many reports lack a
        part that could not be computed (keys only for parts that some lack); share of each part in the variance within
        groups; copies and what they gain; seconds; counts of groups, rewards and studies."""
        reports = [report for group in self.groups for report in group if report.edited is None]
        rows = zip(self.sampled.tolist(), (score for group in self.scores for score in group), strict=True)
        scores = [score for sampled, score in rows if sampled]
        totals = [score.total for score in scores if score.total is not None]
        row: dict[str, float | None] = {
            "reward": statistics.fmean(totals) if totals else None,
            "reward_std": statistics.pstdev(totals) if totals else None,
        }
        for name in scores[0].parts:
            known = [value for score in scores if (value := score.parts[name]) is not None]
            row[f"reward_{name}"] = statistics.fmean(known) if known else None
        lacking = Counter(name for score in scores for name in score.missing)
        row |= {f"reward_missing_{name}": count for name, count in sorted(lacking.items())}
        row["length"] = statistics.fmean(len(report.response_ids) for report in reports)
        row["truncated"] = statistics.fmean(report.truncated for report in reports)
        shares = variance_shares(self.terms[self.sampled], self.group_index[self.sampled]).tolist()
        row |= {f"variance_share_{name}": share for name, share in zip(self.part_names, shares, strict=True)}
        row |= self._copies() | {"seconds_rollout": self.seconds_rollout, "seconds_reward": self.seconds_reward}
        row |= {f"seconds_{name}": seconds for name, seconds in self.seconds_parts.items()}
        row |= {"zero_std_groups": advantages.num_zero_std, "missing_rewards": advantages.num_missing}
        return row | {"critical_studies": int(critical.sum()), "resampled_groups": self.resampled}

    def warn_of_faults(self, config: RewardConfig, *, shown: bool) -> None:
        """Say which parts failed, for which studies; RewardError if one did for more reports than it may."""
        for line in describe_faults(self.faults, config, num_reports=len(self.sampled)):
            if shown:
                print(f"warning: {line}", flush=True)

    def _copies(self) -> dict[str, float | None]:
        """How many edited copies there are, and by how much their total is above that of the report they were made of,
        on average."""
        gains, count = [], 0
        for group, scores in zip(self.groups, self.scores, strict=True):
            for report, score in zip(group, scores, strict=True):
                if report.edited is not None:
                    count += 1
                    before = scores[report.sample].total
                    gains += [] if before is None or score.total is None else [score.total - before]
        return {"edited_reports": count, "edit_gain": statistics.fmean(gains)} if gains else {"edited_reports": count}

    def replace_groups(self, other: "Batch") -> "Batch":
        """With the groups of another batch instead of its own for the same studies; times add up."""
        new = {study.id: i for i, study in enumerate(other.studies)}
        columns = {}
        for name in ("groups", "texts", "scores"):
            mine, theirs = getattr(self, name), getattr(other, name)
            columns[name] = tuple(
                theirs[new[study.id]] if study.id in new else one for study, one in zip(self.studies, mine, strict=True)
            )
        return replace(
            self,
            **columns,
            seconds_rollout=self.seconds_rollout + other.seconds_rollout,
            seconds_reward=self.seconds_reward + other.seconds_reward,
            faults=(*((study_id, fault) for study_id, fault in self.faults if study_id not in new), *other.faults),
            seconds_parts=sum_seconds((self.seconds_parts, other.seconds_parts)),
            resampled=self.resampled + len(other.studies),
        )


def sum_seconds(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Seconds by name, added up."""
    total: dict[str, float] = {}
    for seconds in parts:
        for name, value in seconds.items():
            total[name] = total.get(name, 0.0) + value
    return total


class LazyPrompt:
    """The prompt of a study that another rank wrote the reports of: built only if this rank comes to train on it."""

    def __init__(self, study_id: str, num_tokens: int, build: Callable[[], Prompt]) -> None:
        self.study_id, self.num_tokens, self._build = study_id, num_tokens, build

    @cached_property
    def _built(self) -> Prompt:
        return self._build()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._built, name)


def all_gather_batch(
    mine: Batch | None, studies: Sequence[Study], ranks: Ranks, build: Callable[[Study], Prompt]
) -> Batch:
    """The batch of all ranks, the same on each, from the share that each sampled.

    Args:
        mine: None when this rank was stopped before it was done.
        studies: of the whole batch, in order.
        build: makes the prompt of a study.

    Raises:
        StopRequested: some rank was stopped.
    """
    shares = ranks.all_gather_or_stop(None if mine is None else _to_json(mine))
    assert mine is not None
    if ranks.size == 1:
        return mine
    prompts: dict[str, Any] = dict(zip((study.id for study in mine.studies), mine.prompts, strict=True))
    rows = {row["id"]: row for share in shares for row in share["rows"]}
    for study in studies:
        if study.id not in prompts:
            prompts[study.id] = LazyPrompt(study.id, rows[study.id]["length"], partial(build, study))
    reports = [(study.id, rows[study.id]["reports"]) for study in studies]
    return Batch(
        studies=tuple(studies),
        prompts=tuple(prompts[study.id] for study in studies),
        groups=tuple(tuple(_read_rollout(name, row) for row in group) for name, group in reports),
        texts=tuple(tuple(row["text"] for row in group) for _, group in reports),
        scores=tuple(tuple(_read_score(row) for row in group) for _, group in reports),
        seconds_rollout=max(share["seconds"][0] for share in shares),
        seconds_reward=max(share["seconds"][1] for share in shares),
        seconds_parts=sum_seconds(share["seconds_parts"] for share in shares),
        faults=tuple((study_id, Fault(*fault)) for share in shares for study_id, fault in share["faults"]),
    )


def _to_json(batch: Batch) -> dict[str, Any]:
    rows = []
    for study, prompt, *columns in zip(
        batch.studies, batch.prompts, batch.groups, batch.texts, batch.scores, strict=True
    ):
        reports = [
            {
                "tokens": rollout.response_ids.tolist(),
                "logps": rollout.behaviour_logps.tolist(),
                "truncated": rollout.truncated,
                "sample": rollout.sample,
                "edited": rollout.edited,
                "text": text,
                **asdict(score),
            }
            for rollout, text, score in zip(*columns, strict=True)
        ]
        rows.append({"id": study.id, "length": prompt.num_tokens, "reports": reports})
    seconds = [batch.seconds_rollout, batch.seconds_reward]
    faults = [(study_id, astuple(fault)) for study_id, fault in batch.faults]
    return {"rows": rows, "seconds": seconds, "seconds_parts": dict(batch.seconds_parts), "faults": faults}


def _read_score(row: Mapping[str, Any]) -> Score:
    return Score(row["total"], row["parts"], tuple(row["missing"]), tuple(row["left_out"]), row["terms"], row["truth"])


def _read_rollout(study_id: str, row: Mapping[str, Any]) -> Rollout:
    tokens, logps = torch.tensor(row["tokens"]), torch.tensor(row["logps"])
    return Rollout(study_id, row["sample"], tokens, logps, truncated=row["truncated"], edited=row["edited"])


def write_rollouts(
    archive: Archive, step: int, batch: Batch, advantages: Tensor, critical: Tensor, clip: Tensor
) -> None:
    """Every report of a step with every part of its reward, its advantage (the mean over its tokens, if they differ)
    and the clip range of its case; arguments as of `Batch.cases`."""
    per_study = advantages.split([len(group) for group in batch.groups])
    columns = zip(batch.studies, batch.groups, batch.texts, batch.scores, per_study, strict=True)
    rows = []
    for (study, *group), is_critical, eps in zip(columns, critical.tolist(), clip.tolist(), strict=True):
        reports = [
            {
                "report": text,
                "tokens": len(rollout.response_ids),
                "truncated": rollout.truncated,
                "edited": rollout.edited,
                **asdict(score),
                "advantage": float(values[: len(rollout.response_ids)].mean() if values.ndim else values),
            }
            for rollout, text, score, values in zip(*group, strict=True)
        ]
        rows.append(
            {"id": study.id, "critical": is_critical, "eps": eps, "reference": study.report, "reports": reports}
        )
    archive.append(step, rows)
