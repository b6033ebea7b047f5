"""Warnings that name the disease: each is a pure function of a run's metrics.

A disease is looked for at every step, in the steps up to it. What is found begins at one step and ends at another, so
that a run says it once and not at every step.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from reporting.run_files import Row

WINDOW = 20  # steps that are looked at together; a disease that lasts shorter is noise
FIRST = 10  # steps that later ones are compared with
COMPARED = 4  # held-out evaluations that are compared with as many before them
MISSING_SHARE = 0.05


@dataclass(frozen=True)
class Setting:
    """What of a run's config the warnings depend on."""

    group_size: int
    inner_epochs: int
    updates_a_step: int  # inner epochs x mini-batches
    max_new_tokens: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Setting":
        """From the resolved config of a run."""
        rl = config["rl"]
        return cls(
            group_size=rl["group_size"],
            inner_epochs=rl["inner_epochs"],
            updates_a_step=rl["inner_epochs"] * rl["mini_batches"],
            max_new_tokens=config["rollout"]["max_new_tokens"],
        )


@dataclass
class History:
    """The steps of a stage as the warnings see them: the first, the latest, and every held-out evaluation."""

    first: list[Row]  # at most FIRST
    recent: list[Row]  # at most WINDOW
    held_out: list[tuple[Row, float]]  # row, mean reward of the recent steps then

    @property
    def long_enough(self) -> bool:
        return len(self.recent) == WINDOW

    def add(self, row: Row) -> None:
        if len(self.first) < FIRST:
            self.first.append(row)
        self.recent = [*self.recent[1 - WINDOW :], row]
        if any(key.startswith("held_out_") for key in row):
            rewards = _known(self.recent[-FIRST:], "reward")
            self.held_out.append((row, statistics.fmean(rewards) if rewards else math.nan))


@dataclass(frozen=True)
class Symptom:
    """A warning."""

    stage: str
    kind: str
    step: int  # where it began
    until: int | None  # the first step without it; None while it lasts
    text: str  # what was measured, what it means, what to do


def no_spread(history: History, setting: Setting) -> str | None:
    """The reward stands still while most groups give every report the same reward: there is nothing to learn from."""
    share = statistics.fmean(row["zero_std_groups"] / studies(row, setting) for row in history.recent)
    if not history.long_enough or share <= 0.5:
        return None
    earlier, later = history.recent[: WINDOW // 2], history.recent[WINDOW // 2 :]
    if differ(_known(earlier, "reward"), _known(later, "reward"), least=0.02):
        return None
    return (
        f"the reward has been flat for {WINDOW} steps, and in {share:.0%} of the groups all reports scored the same: "
        "they teach nothing. Raise rollout.temperature or rl.group_size, or select harder studies (explore.fraction)"
    )


def kl_explodes(history: History, setting: Setting) -> str | None:
    """The policy leaves the SFT policy faster than any useful training does."""
    values = _known(history.recent, "kl")
    if len(values) < 5:
        return None
    now, before = statistics.fmean(values[-3:]), statistics.median(values[:-3])
    if now > 1 or (now > 0.2 and now > 5 * before):
        return (
            f"KL to the SFT policy explodes: {now:.2g} nats a token, {before:.2g} shortly before. "
            "Lower rl.optimizer.lr or raise rl.beta; go back to a checkpoint from before it"
        )
    return None


def clip_idle(history: History, setting: Setting) -> str | None:
    """No ratio reaches its range, so that the range, and with it criticality, changes nothing."""
    names = ("clip_low_critical", "clip_high_critical", "clip_low_normal", "clip_high_normal")
    if not history.long_enough or any(row[name] for row in history.recent for name in names):
        return None
    said = f"no token was clipped in {WINDOW} steps"
    if setting.updates_a_step == 1:
        return f"{said}: inner_epochs is 1: CAPO equals GRPO. Set rl.inner_epochs to 2 or rl.mini_batches above 1"
    return f"{said}: the clip range does nothing and CAPO equals GRPO. Raise rl.optimizer.lr or rl.inner_epochs"


def length_grows(history: History, setting: Setting) -> str | None:
    """Reports become longer until the token limit cuts them."""
    if not history.long_enough:
        return None
    recent = history.recent[-FIRST:]
    before, now = (statistics.fmean(row["length"] for row in rows) for rows in (history.first, recent))
    cut_before, cut = (statistics.fmean(row["truncated"] for row in rows) for rows in (history.first, recent))
    near = now > 0.8 * setting.max_new_tokens or cut > max(0.1, 2 * cut_before)
    if not near or now < 1.2 * before:
        return None
    return (
        f"reports grow to the limit: {before:.0f} tokens in the first steps, {now:.0f} now, limit "
        f"{setting.max_new_tokens}; {cut:.0%} are cut. Read some: if they repeat themselves, raise rl.beta; "
        "if they are good, raise rollout.max_new_tokens"
    )


def hacked(history: History, setting: Setting) -> str | None:
    """The reward rises and a metric of held-out studies falls: what is learned is the reward, not the task."""
    if len(history.held_out) < 2 * COMPARED:
        return None
    before, now = history.held_out[-2 * COMPARED : -COMPARED], history.held_out[-COMPARED:]
    rewards = [[reward for _, reward in rows if not math.isnan(reward)] for rows in (before, now)]
    if not differ(*rewards, least=0.02) or statistics.fmean(rewards[1]) < statistics.fmean(rewards[0]):
        return None
    keys = sorted({key for row, _ in history.held_out for key in row if key.startswith("held_out_")})
    worst = max((fall(_known([row for row, _ in history.held_out], key)), key) for key in keys)
    if worst[0] == 0:
        return None
    name = worst[1].removeprefix("held_out_")
    return (
        f"reward hacking: the reward rises while {name} of the held-out studies falls by {worst[0]:.2g}. Read "
        "rollouts with a high reward; take an earlier checkpoint, raise rl.beta or change the reward's weights"
    )


def missing(history: History, setting: Setting) -> str | None:
    """Rewards, or parts of them, that could not be computed: a judge that does not answer."""
    if len(history.recent) < 5:
        return None
    recent = history.recent[-FIRST:]
    reports = sum(studies(row, setting) * setting.group_size for row in recent)
    keys = dict.fromkeys(k for row in recent for k in row if k == "missing_rewards" or k.startswith("reward_missing_"))
    shares = {key: sum(_known(recent, key)) / reports for key in keys}
    bad = {key: share for key, share in shares.items() if share > MISSING_SHARE}
    if not bad:
        return None
    named = ", ".join(
        f"{'the reward' if key == 'missing_rewards' else key.removeprefix('reward_missing_')} of {share:.0%}"
        for key, share in bad.items()
    )
    return (
        f"judge missing: {named} of the last {reports:.0f} reports. They leave their groups; look at the judge's "
        "server, its time limit and the log of the reward workers"
    )


CHECKS: Mapping[str, Callable[[History, Setting], str | None]] = {
    "no spread": no_spread,
    "KL explodes": kl_explodes,
    "clip range idle": clip_idle,
    "length grows": length_grows,
    "reward hacking": hacked,
    "judge missing": missing,
}


class Examination:
    """Looks at the steps of one stage as they come. Only the RL stage has diseases that these checks know."""

    def __init__(self, stage: str, setting: Setting) -> None:
        self.stage, self.setting = stage, setting
        self.history = History([], [], [])
        self.found: list[Symptom] = []

    def add(self, row: Row) -> list[Symptom]:
        """The warnings that begin at this step."""
        if self.stage != "rl":
            return []
        self.history.add(row)
        begun = []
        for kind, check in CHECKS.items():
            text, step = check(self.history, self.setting), int(row["step"])
            lasting = next((i for i, s in enumerate(self.found) if s.kind == kind and s.until is None), None)
            if text and lasting is None:
                begun.append(Symptom(self.stage, kind, step, None, text))
            elif lasting is not None and not text:
                self.found[lasting] = Symptom(**{**asdict(self.found[lasting]), "until": step})
        self.found += begun
        return begun


def symptoms_of(steps: Mapping[str, Iterable[Row]], config: Mapping[str, Any]) -> list[Symptom]:
    """Every warning of a run, by its metrics alone: the same as the run itself gave."""
    return [symptom for stage, rows in steps.items() for symptom in _of_stage(stage, rows, Setting.of(config))]


def _of_stage(stage: str, rows: Iterable[Row], setting: Setting) -> Iterator[Symptom]:
    examination = Examination(stage, setting)
    for row in rows:
        examination.add(row)
    yield from examination.found


def studies(row: Row, setting: Setting) -> float:
    """Studies of a step; `reports` counts each pass over them."""
    return row["reports"] / (setting.inner_epochs * setting.group_size)


def fall(values: Sequence[float]) -> float:
    """How far the last few values lie below as many before them; 0 where that may be chance.

    What chance does is taken from the differences of successive values, which a trend hardly changes: the few values
    that are compared would often look quieter than they are.
    """
    if len(values) < 2 * COMPARED:
        return 0.0
    noise = math.sqrt(statistics.fmean((b - a) ** 2 for a, b in pairwise(values)) / 2)
    fallen = statistics.fmean(values[-2 * COMPARED : -COMPARED]) - statistics.fmean(values[-COMPARED:])
    return fallen if fallen > max(0.02, 5 * noise * math.sqrt(2 / COMPARED)) else 0.0


def differ(before: Sequence[float], after: Sequence[float], *, least: float) -> bool:
    """True where the means differ by more than `least` and by more than three standard errors of the difference.

    Three, because a long run is asked at every step: two would be a false alarm in every twentieth.
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
