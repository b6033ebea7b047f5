"""Warnings, each with its cause and what to do: every check is a pure function of a run's config and metrics.

Checks run after every step, on the steps up to it. A check returns what it measured if there is a problem, for the text
in metrics.toml. A warning begins at one step and ends at another, so that a run says it once and not at every step.
"""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from radflow.dashboard.charts import TABLES
from radflow.dashboard.course import Row
from radflow.dashboard.run_files import keys_with
from radflow.rewards.registry import METRICS

WINDOW = 20  # steps that are checked together; what lasts shorter is noise
FIRST = 10  # steps that later ones are compared with
COMPARED = 4  # held-out evaluations that are compared with as many before them
MOST_EVALUATIONS = 100  # latest held-out ones, from which their noise is measured
MISSING_SHARE = 0.05
DOMINANT_SHARE = 0.8  # of one part in the variance within groups, above which the others hardly change an advantage
ONE_SIDED = 0.9  # share of critical, or of normal, references above which criticality tells cases hardly apart
CLIP_METRICS = ("clip_low_critical", "clip_high_critical", "clip_low_normal", "clip_high_normal")
# Metrics of which less is better; the first two count findings.
LOWER = frozenset({"made_up_findings", "missed_findings", *(n for n, m in METRICS.items() if m.better == "lower")})
Measured = Mapping[str, Any] | None


class History:
    """The steps of a stage that the checks read: the first, the latest, and the latest held-out evaluations."""

    def __init__(self) -> None:
        self.first: list[Row] = []  # at most FIRST
        self.recent: list[Row] = []  # at most WINDOW
        self.held_out: list[tuple[Row, float]] = []  # row, mean reward of the recent steps then

    @property
    def long_enough(self) -> bool:
        return len(self.recent) == WINDOW

    def add(self, row: Row) -> None:
        if len(self.first) < FIRST:
            self.first.append(row)
        self.recent = [*self.recent[1 - WINDOW :], row]
        if keys := keys_with([row], "held_out_"):
            rewards = _known(self.recent[-FIRST:], "reward")
            evaluation = {key: row[key] for key in keys}, statistics.fmean(rewards) if rewards else math.nan
            self.held_out = [*self.held_out[1 - MOST_EVALUATIONS :], evaluation]


@dataclass(frozen=True)
class RunWarning:
    """A problem found in the metrics of a run."""

    stage: str
    kind: str
    step: int  # the first step with it
    until: int | None  # the first step without it; None while it lasts
    text: str  # what was measured, what it means, what to do

    def __str__(self) -> str:
        return f"warning, {self.stage} step {self.step + 1}: {self.kind}: {self.text}"


def check_spread(history: History, config: Mapping[str, Any]) -> Measured:
    """The reward is flat while most groups give every report the same reward: there is nothing to learn from."""
    share = statistics.fmean(row["zero_std_groups"] / count_studies(row, config) for row in history.recent)
    if not history.long_enough or share <= 0.5:
        return None
    earlier, later = history.recent[: WINDOW // 2], history.recent[WINDOW // 2 :]
    return None if differ(_known(earlier, "reward"), _known(later, "reward"), least=0.02) else {"share": share}


def check_kl(history: History, config: Mapping[str, Any]) -> Measured:
    """The policy leaves the SFT policy faster than any useful training does."""
    values = _known(history.recent, "kl")
    if len(values) < 5:
        return None
    now, before = statistics.fmean(values[-3:]), statistics.median(values[:-3])
    return {"now": now, "before": before} if now > 1 or now > max(0.2, 5 * before) else None


def check_clipping(history: History, config: Mapping[str, Any]) -> Measured:
    """No ratio reaches its range, so that the range, and with it criticality, changes nothing."""
    if not history.long_enough or any(row[name] for row in history.recent for name in CLIP_METRICS):
        return None
    single = config["rl"]["inner_epochs"] * config["rl"]["mini_batches"] == 1
    return {"advice": TABLES["clip_advice"]["one_update" if single else "several_updates"]}


def check_length(history: History, config: Mapping[str, Any]) -> Measured:
    """Reports become longer until the token limit cuts them."""
    if not history.long_enough:
        return None
    limit, recent = config["rollout"]["max_new_tokens"], history.recent[-FIRST:]
    before, now = (statistics.fmean(row["length"] for row in rows) for rows in (history.first, recent))
    cut_before, cut = (statistics.fmean(row["truncated"] for row in rows) for rows in (history.first, recent))
    near = now > 0.8 * limit or cut > max(0.1, 2 * cut_before)
    return {"before": before, "now": now, "limit": limit, "cut": cut} if near and now >= 1.2 * before else None


def check_held_out(history: History, config: Mapping[str, Any]) -> Measured:
    """The reward rises and a metric of held-out studies falls: what is learned is the reward, not the task."""
    if len(history.held_out) < 2 * COMPARED:
        return None
    before, now = history.held_out[-2 * COMPARED : -COMPARED], history.held_out[-COMPARED:]
    earlier, later = ([reward for _, reward in rows if not math.isnan(reward)] for rows in (before, now))
    if not differ(earlier, later, least=0.02) or statistics.fmean(later) < statistics.fmean(earlier):
        return None
    rows = [row for row, _ in history.held_out]
    drop, key = max((_worsening(rows, key), key) for key in sorted(keys_with(rows, "held_out_")))
    return {"metric": key.removeprefix("held_out_"), "drop": drop} if drop else None


def check_shares(history: History, config: Mapping[str, Any]) -> Measured:
    """One part of the reward alone makes the differences within groups, and so the advantages.

    Not if each part is normalised first (rl.advantage decoupled): the shares are then not what the advantages see.
    """
    if not history.long_enough or config["rl"].get("advantage", "group") == "decoupled":
        return None
    keys = keys_with(history.recent, "variance_share_")
    means = [(statistics.fmean(known), key) for key in keys if (known := _known(history.recent, key))]
    share, key = max(means, default=(0.0, ""))
    part = key.removeprefix("variance_share_")
    return {"part": part, "share": share} if share > DOMINANT_SHARE and len(means) > 1 else None


def check_missing(history: History, config: Mapping[str, Any]) -> Measured:
    """Rewards, or parts of them, that could not be computed: a judge that does not answer."""
    if len(history.recent) < 5:
        return None
    recent = history.recent[-FIRST:]
    reports = sum(count_studies(row, config) * config["rl"]["group_size"] for row in recent)
    keys = [key for key in keys_with(recent, "") if key == "missing_rewards" or key.startswith("reward_missing_")]
    shares = {key: sum(_known(recent, key)) / reports for key in keys}
    names = {key: "the reward" if key == "missing_rewards" else key.removeprefix("reward_missing_") for key in keys}
    bad = [f"{names[key]} of {share:.0%}" for key, share in shares.items() if share > MISSING_SHARE]
    return {"bad": ", ".join(bad), "reports": reports} if bad else None


def check_criticality(rows: Sequence[Row], selected: Collection[str], definition: str) -> RunWarning | None:
    """Nearly all or nearly none of the references that RL trains on are critical: CAPO is GRPO with one clip range."""
    trained = [row for row in rows if not selected or row["id"] in selected]
    share = statistics.fmean(bool(row["critical"]) for row in trained) if trained else 0.5
    if 1 - ONE_SIDED <= share <= ONE_SIDED:
        return None
    advice = TABLES["criticality_advice"]["few" if share < 0.5 else definition]
    text = TABLES["warnings"]["criticality"].format(share=share, studies=len(trained), advice=advice)
    return RunWarning("criticality", "criticality", 0, None, text)


CHECKS = {
    "no spread": check_spread,
    "KL explodes": check_kl,
    "clip range idle": check_clipping,
    "length grows": check_length,
    "reward hacking": check_held_out,
    "one part decides": check_shares,
    "judge missing": check_missing,
}


class Monitor:
    """Checks the steps of one stage as they come. The checks are of the RL stage; others get no warning.

    Args:
        config: the resolved config of the run.
    """

    def __init__(self, stage: str, config: Mapping[str, Any]) -> None:
        self.stage, self.config, self.history = stage, config, History()
        self.found: list[RunWarning] = []
        self.lasting: dict[str, int] = {}  # kind -> index of the one that has not ended

    def add(self, row: Row) -> list[RunWarning]:
        """The warnings that begin at this step."""
        if self.stage != "rl":
            return []
        self.history.add(row)
        begun = []
        for kind, check in CHECKS.items():
            measured, step = check(self.history, self.config), int(row["step"])
            if measured and kind not in self.lasting:
                text = TABLES["warnings"][kind].format(**measured, window=WINDOW)
                self.lasting[kind] = len(self.found)
                begun.append(RunWarning(self.stage, kind, step, None, text))
                self.found.append(begun[-1])
            elif kind in self.lasting and not measured:
                ended = self.lasting.pop(kind)
                self.found[ended] = replace(self.found[ended], until=step)
        return begun

    def count_lasting(self) -> int:
        return len(self.lasting)


def find_warnings(rows: Iterable[Row], config: Mapping[str, Any]) -> list[RunWarning]:
    """Every warning of the RL stage, by its metrics alone: the same as the run itself gave."""
    monitor = Monitor("rl", config)
    for row in rows:
        monitor.add(row)
    return monitor.found


def count_studies(row: Row, config: Mapping[str, Any]) -> float:
    """Studies of a step; `reports` counts each pass over them."""
    return row["reports"] / (config["rl"]["inner_epochs"] * config["rl"]["group_size"])


def _worsening(rows: Sequence[Row], key: str) -> float:
    sign = -1.0 if key.removeprefix("held_out_") in LOWER else 1.0
    return measure_fall([sign * value for value in _known(rows, key)])


def measure_fall(values: Sequence[float]) -> float:
    """How far the last few values lie below as many before them; 0 if that may be chance.

    What chance does is taken from the differences of successive values, which a trend hardly changes: the few values
    that are compared would often look quieter than they are.
    """
    if len(values) < 2 * COMPARED:
        return 0.0
    noise = math.sqrt(statistics.fmean((b - a) ** 2 for a, b in pairwise(values)) / 2)
    fallen = statistics.fmean(values[-2 * COMPARED : -COMPARED]) - statistics.fmean(values[-COMPARED:])
    return fallen if fallen > max(0.02, 5 * noise * math.sqrt(2 / COMPARED)) else 0.0


def differ(before: Sequence[float], after: Sequence[float], *, least: float) -> bool:
    """True if the means differ by more than `least` and by more than three standard errors of the difference.

    Three, because a long run is checked at every step: two would be a false alarm in every twentieth.
    """
    if len(before) < 2 or len(after) < 2:
        return False
    (first, first_error), (second, second_error) = (_mean_and_squared_error(values) for values in (before, after))
    gap = abs(second - first)
    return gap > least and gap > 3 * math.sqrt(first_error + second_error)


def _mean_and_squared_error(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)


def _known(rows: Iterable[Row], key: str) -> list[float]:
    values = (row.get(key) for row in rows)
    return [value for value in values if value is not None and math.isfinite(value)]
