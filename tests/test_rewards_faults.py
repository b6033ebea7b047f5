"""Metrics that raise, answer nonsense, hang or end their process: only what they failed to give is missing."""

import math
import multiprocessing
import os
import re
import signal
import time

import pytest

from radflow.data.sections import parse_sections
from radflow.data.studies import Study
from radflow.pipeline.comparison import score_rows
from radflow.rewards.config import RewardConfig
from radflow.rewards.faults import Caution, RewardError, ask, attempt, describe_faults
from radflow.rewards.hierarchy import TRUTH, HierarchicalReward
from radflow.rewards.measure import Metrics
from radflow.rewards.registry import build_reward
from radflow.rewards.types import Fault
from radflow.rewards.workers import RewardWorkers, scores_of

REFERENCE = "Findings: Small left pleural effusion. Impression: Left pleural effusion."
GOOD, BAD, FINE = "Findings: Clear. Impression: Normal.", "Findings: The bad one. Impression: Bad.", REFERENCE
GROUP = [GOOD, BAD, FINE]
TRACE = "RADFLOW_TEST_TRACE"  # a file to which plug-ins write what they were asked


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("not to be pickled")


def raises(candidates, references):
    if BAD in candidates:
        raise Unpicklable("a bad report")
    return [0.5] * len(candidates)


def exits(candidates, references):
    return [0.5 if text != BAD else exit("no more") for text in candidates]


def is_nan(candidates, references):
    return [0.5 if text != BAD else math.nan for text in candidates]


def spoils_all(candidates, references):
    return [math.nan if BAD in candidates else 0.5] * len(candidates)


def is_text(candidates, references):
    return [0.5 if text != BAD else "good" for text in candidates]


def leaves_out(candidates, references):
    return [0.5 for text in candidates if text != BAD]


def no_list(candidates, references):
    return 0.5 if BAD in candidates else [0.5] * len(candidates)


def hangs(candidates, references):
    with open(os.environ[TRACE], "a") as trace:
        trace.write(f"{len(candidates)}\n")
    if BAD in candidates:
        time.sleep(1000)
    return [0.5] * len(candidates)


def dies(candidates, references):
    with open(os.environ[TRACE], "a") as trace:
        trace.write("died\n")
    if BAD in candidates:
        os._exit(3)
    return [0.5] * len(candidates)


def dies_once(candidates, references):
    if not os.path.exists(os.environ[TRACE]):
        open(os.environ[TRACE], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return [0.5] * len(candidates)


def reward_of(name, workers=1, timeout_s=60.0, **options):
    config = RewardConfig(workers=workers, plugin=f"{__name__}:{name}", timeout_s=timeout_s, **options)
    return RewardWorkers(config, parse_sections)


def score(reward, reports=GROUP):
    return scores_of(reward.submit(reports, [REFERENCE] * len(reports)), study_id="s")


KINDS = {
    "raises": r"Unpicklable: a bad report \(test_rewards_faults.py:\d+\)",
    "exits": r"SystemExit: no more \(test_rewards_faults.py:\d+\)",
    "is_nan": "expected a finite number or None, got float nan",
    "spoils_all": "expected a finite number or None, got float nan",
    "is_text": "expected a finite number or None, got str 'good'",
    "leaves_out": "ValueError: expected one value per report, 1, got 0",
    "no_list": r"TypeError: 'float' object is not iterable \(registry.py:\d+\)",
}


@pytest.mark.parametrize("name", KINDS)
def test_a_value_that_a_plugin_fails_to_give_is_missing_for_that_report_only(name):
    sound = build_reward(RewardConfig(), parse_sections)(GROUP, [REFERENCE] * 3)
    with reward_of(name, workers=0) as reward:
        scored, table = score(reward), reward.table(GROUP, [REFERENCE] * 3)
    assert [one.parts[name] for one in scored.scores] == [0.5, None, 0.5]
    assert [one.missing for one in scored.scores] == [(), (name,), ()]
    assert [one.total for one in scored.scores] == [one.total for one in sound]  # the others compare without it
    assert [table.columns[name], table.columns["bleu2"][1] is not None] == [[0.5, None, 0.5], True]
    (line,) = describe_faults([("s1", one) for one in scored.faults], reward.config, num_reports=3)
    said = f"plug-in {__name__}:{name} failed for 1 of 3 reports and is missing there (studies s1); first for study s1"
    assert line == f"{said}: {scored.faults[0].why}"
    assert [(one.part, one.report, one.why) for one in table.faults] == [(name, 1, scored.faults[0].why)]
    assert re.fullmatch(KINDS[name], scored.faults[0].why)


def test_a_share_of_failures_above_the_limit_is_an_error_that_says_the_first_cause():
    faults = [(f"s{i}", Fault("mine", 0, f"cause {i}")) for i in range(7)]
    (line,) = describe_faults(faults, RewardConfig(), num_reports=14)
    assert "(studies s0, s1, s2, s3, s4 and 2 more)" in line
    with pytest.raises(
        RewardError, match=r"mine failed for 7 of 13 reports, more than .*0\.5.*first for study s0: cause 0"
    ):
        describe_faults(faults, RewardConfig(), num_reports=13)


def test_scores_of_studies_are_written_with_one_warning_per_metric(capsys):
    sections = parse_sections(REFERENCE)
    studies = [Study(f"s{i}", "p", "train", (), sections.findings, sections.impression) for i in range(3)]
    with reward_of("raises", workers=0) as reward:
        rows = score_rows(reward, GROUP, studies)
    assert [row["raises"] for row in rows] == [0.5, None, 0.5]
    said = capsys.readouterr().out
    assert said.count("warning:") == 1 and ":raises failed for 1 of 3 reports" in said and "study s1" in said
    with reward_of("raises", workers=0, max_failed=0.1) as reward, pytest.raises(RewardError, match="study s1: Unpick"):
        score_rows(reward, GROUP, studies)


def failing(metric):
    """The metric, that raises for the bad report."""

    def failed(first, second):
        if any("bad" in text.lower() for text in first):
            raise ValueError("bad")
        return metric(first, second)

    return failed


@pytest.mark.parametrize("name", [TRUTH, "entity_f1_rules", "bleu2"])
def test_what_is_made_of_a_metric_that_failed_is_missing_too(name):
    sound = build_reward(RewardConfig(), parse_sections)
    metrics = {**sound.metrics.metrics, name: ("described", failing(sound.metrics.metrics[name][1]))}
    reward = HierarchicalReward(sound.config, metrics=Metrics(parse_sections, metrics), errors=sound.errors)
    scored = reward.scored(GROUP, [REFERENCE] * 3, groups=[0] * 3)
    expected = {
        TRUTH: tuple(sound.weights),  # which scales everything
        "entity_f1_rules": ("entity_f1_rules", "consistency_rules"),  # paid in proportion to it
        "bleu2": ("syntax",),
    }
    assert [one.missing for one in scored.scores] == [(), expected[name], ()]
    assert scored.scores[1].terms.keys() == sound.weights.keys() - {*expected[name]}
    if name == TRUTH:  # that report leaves the group, and the others keep their totals
        totals = [one.total for one in sound(GROUP, [REFERENCE] * 3)]
        assert [one.total for one in scored.scores] == [totals[0], None, totals[2]]


def test_a_metric_of_all_reports_together_is_never_asked_about_one():
    asked = []

    def whole(first, second):
        asked.append(len(first))
        raise ValueError("no")

    assert ask("cider", whole, GROUP, GROUP, together=True)[0] == [None] * 3 and asked == [3]
    with attempt(Caution(alone=frozenset({"cider"})), lambda _: None):
        ask("cider", whole, GROUP, GROUP, together=True)
    assert asked == [3, 3]


@pytest.fixture
def trace(tmp_path, monkeypatch):
    path = tmp_path / "trace"
    monkeypatch.setenv(TRACE, str(path))
    return path


@pytest.mark.parametrize(("workers", "preset"), [(0, "hierarchical"), (1, "plugin")])
def test_a_plugin_that_hangs_is_given_up_for_its_group_and_found_out_in_a_table(workers, preset, trace):
    with reward_of("hangs", workers, timeout_s=0.5, preset=preset) as reward:
        pending = [reward.submit(reports, [REFERENCE] * len(reports)) for reports in (GROUP, [GOOD, FINE])]
        hung, sound = (scores_of(future, study_id="s") for future in pending)
        table = reward.table(GROUP, [REFERENCE] * 3)
    assert [one.missing for one in hung.scores] == [("hangs",)] * 3
    assert [one.missing for one in sound.scores] == [()] * 2
    assert {one.why for one in hung.faults} == {"it took over 0.5 s (reward.timeout_s)"}
    assert table.columns["hangs"] == [0.5, None, 0.5] and [one.report for one in table.faults] == [1]
    # a group of 3, one of 2, then a table: all; each alone, until the bad one hangs again; the others alone, for the
    # reward and for the column
    assert trace.read_text().split() == ["3", "2", "3", *"11", *"11", *"11"]
    if preset == "hierarchical":  # the other parts count
        without = build_reward(RewardConfig(), parse_sections)(GROUP, [REFERENCE] * 3)
        assert [one.total for one in hung.scores] == [one.total for one in without]


def test_a_plugin_that_always_hangs_in_a_table_is_given_up_after_three_reports():
    caution = Caution().after(("mine",), "slow", patience=3)
    for text in "abc":
        assert caution.alone == {"mine"} and not caution.given_up
        caution = caution.after(("mine", text, text), "slow", patience=3)
    assert caution.given_up == {"mine": "slow"}
    assert Caution().after(("mine",), "slow", patience=0).given_up  # of a group
    with attempt(caution, lambda _: pytest.fail("it is asked again")):
        assert ask("mine", fail_if_asked, ["a", "d"], ["a", "d"]) == ([None, None], {0: "slow", 1: "slow"})


def fail_if_asked(first, second):
    raise AssertionError


def test_a_worker_that_dies_does_its_work_again_and_a_part_that_kills_it_twice_is_missing(trace):
    with reward_of("dies_once", preset="plugin") as reward:
        again = score(reward)
    assert [one.parts["dies_once"] for one in again.scores] == [0.5] * 3 and again.faults == ()
    trace.unlink()
    with reward_of("dies", preset="plugin") as reward:
        twice = score(reward)
    assert [one.missing for one in twice.scores] == [("dies",)] * 3 and trace.read_text().split() == ["died"] * 2
    assert twice.faults[0].why == "its worker died twice: exit code 3"


class Stopped(Exception):
    pass


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stop_ends_the_wait_for_a_plugin_that_hangs_and_leaves_no_process(workers, trace):
    def look():
        if trace.exists():
            raise Stopped

    config = RewardConfig(workers=workers, plugin=f"{__name__}:hangs", preset="plugin")
    with pytest.raises(Stopped), RewardWorkers(config, parse_sections, look=look) as reward:
        scores_of(reward.submit([BAD], [REFERENCE]), study_id="s", look=reward.look)
    began = time.monotonic()
    assert not [one for one in multiprocessing.active_children() if one.is_alive()] and time.monotonic() - began < 5
