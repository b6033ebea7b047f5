"""Warnings: each problem is found in numbers that show it, and a healthy run has none."""

import random

import pytest
from made_run import CONFIG, healthy_row, healthy_rows

from radflow.dashboard.checks import Monitor, RunWarning, differ, find_warnings

RANDOM = random.Random(1)


def found(rows, **rl):
    config = {**CONFIG, "rl": {**CONFIG["rl"], **rl}}
    return {warning.kind: warning for warning in find_warnings(rows, config)}


def with_change(change, count=60, seed=3):
    """Healthy rows, each changed by a function of its step."""
    return [row | change(row["step"]) for row in healthy_rows(count, seed)]


def test_of_a_hundred_healthy_runs_at_most_one_is_warned_of():
    """Rewards are noisy, and a few held-out studies more so: an alarm that cries wolf is switched off."""

    def alarms(seed):
        noise = random.Random(seed)
        rows = [
            row | ({"held_out_label_f1": 0.7 + noise.gauss(0, 0.04)} if row["step"] % 5 == 0 else {})
            for row in healthy_rows(120, seed)
        ]
        return found(rows)

    assert sum(bool(alarms(seed)) for seed in range(100)) <= 1


def test_a_flat_reward_without_spread():
    rows = with_change(lambda step: {"reward": 2.0, "zero_std_groups": 3} if step >= 30 else {})
    warning = found(rows)["no spread"]
    # all 20 steps of the window are flat at step 49; half of them with 3 of 4 groups, from step 42 on, already suffice
    assert 40 <= warning.step <= 49 and warning.until is None
    assert "rollout.temperature" in warning.text


def test_groups_without_spread_are_no_warning_while_the_reward_rises():
    assert "no spread" not in found(with_change(lambda step: {"reward": 0.05 * step, "zero_std_groups": 3}))


def test_kl_that_explodes_is_named_when_it_does():
    rows = with_change(lambda step: {"kl": 0.05 if step < 40 else 0.05 * 2 ** (step - 39)})
    warning = found(rows)["KL explodes"]
    # 0.1 0.2 0.4 0.8 from step 40: the mean of three passes 0.2 at step 42, and five times the median 0.05 at step 43
    assert warning.step == 43 and "rl.beta" in warning.text


def test_kl_that_grows_slowly_to_half_a_nat_is_left_alone():
    assert "KL explodes" not in found(with_change(lambda step: {"kl": 0.5 * step / 150}, count=150))


@pytest.mark.parametrize(
    ("rl", "said"),
    [
        ({"inner_epochs": 1}, "inner_epochs is 1: CAPO equals GRPO"),
        ({"inner_epochs": 2}, "Raise rl.optimizer.lr"),
    ],
)
def test_a_clip_range_that_never_acts(rl, said):
    rows = with_change(lambda step: {"clip_low_critical": 0.0, "clip_high_critical": 0.0, "reports": 32})
    warning = found(rows, **rl)["clip range idle"]
    assert warning.step == 19 and said in warning.text  # after 20 steps


def test_one_clipped_token_ends_the_warning():
    idle = {"clip_low_critical": 0.0, "clip_high_critical": 0.0}
    rows = with_change(lambda step: {**idle, "clip_low_critical": 1e-6 if step == 25 else 0.0}, count=44)
    warning = found(rows)["clip range idle"]
    assert (warning.step, warning.until) == (19, 25)


def test_reports_that_grow_to_the_limit():
    rows = with_change(
        lambda step: {"length": min(127.0, 34.0 + 3 * step), "truncated": min(0.6, max(0, step - 30) / 20)}
    )
    warning = found(rows)["length grows"]
    # the mean of the last ten at step s is 34 + 3 (s - 4.5), and passes 0.8 x 128 = 102.4 at s = 28
    assert "limit 128" in warning.text and warning.step == 28


def test_long_reports_that_do_not_grow_are_no_warning():
    assert "length grows" not in found(with_change(lambda step: {"length": 110.0 + RANDOM.gauss(0, 1)}))


def test_a_reward_that_rises_while_held_out_studies_get_worse():
    def change(step):
        return {"held_out_label_f1": 0.8 - 0.005 * step, "held_out_total": 2.0 + 0.01 * step} if step % 5 == 0 else {}

    warning = found(with_change(change, count=100))["reward hacking"]
    assert "label_f1" in warning.text and "total" not in warning.text


@pytest.mark.parametrize(("slope", "warned"), [(0.02, True), (-0.02, False)])
def test_more_errors_are_worse_and_fewer_are_not(slope, warned):
    def change(step):
        return {"held_out_missed_findings": 3 + slope * step, "held_out_total": 2.0} if step % 5 == 0 else {}

    assert ("reward hacking" in found(with_change(change, count=100))) == warned


def test_held_out_studies_that_get_worse_with_the_reward_are_not_hacking():
    rows = with_change(
        lambda step: {"reward": 3 - 0.02 * step, **({"held_out_f1": 0.9 - 0.005 * step} if step % 5 == 0 else {})}
    )
    assert "reward hacking" not in found(rows)


@pytest.mark.parametrize(("count", "warned"), [(0, False), (1, True)])
def test_a_judge_that_misses_more_than_one_in_twenty(count, warned):
    rows = with_change(lambda step: {"reward_missing_consistency_llm": count})  # of 16 reports: 6.25 %
    assert ("judge missing" in found(rows)) == warned
    if warned:
        assert "consistency_llm of 6%" in found(rows)["judge missing"].text


def test_whole_rewards_that_are_missing_count_too():
    assert (
        "the reward of 12%"
        in found(with_change(lambda step: {"missing_rewards": 2, "reward": None}))["judge missing"].text
    )


def test_a_row_without_any_reward_is_read():
    assert found([healthy_row(step, RANDOM, reward=None, reward_std=None) for step in range(40)]) == {}


def with_shares(share, part="consistency_rules", count=40):
    """Two thirds of the rest for one other part, one third for another; noise that averages out."""

    def change(step):
        own = share + (0.05 if step % 2 else -0.05)
        return {
            f"variance_share_{part}": own,
            "variance_share_syntax": (1 - own) * 2 / 3,
            "variance_share_label_f1_rules": (1 - own) / 3,
        }

    return with_change(change, count=count)


def test_a_part_that_makes_nearly_all_of_the_variance_is_named():
    warning = found(with_shares(0.92))["one part decides"]
    # alternately 0.87 and 0.97, so that 20 steps have a mean of 0.92
    assert warning.step == 19 and warning.until is None
    assert "consistency_rules makes 92% of" in warning.text and "rl.advantage: decoupled" in warning.text


@pytest.mark.parametrize(
    ("advantage", "warned"),
    [("group", True), ("batch", True), ("centred", True), ("leave_one_out", True), ("decoupled", False)],
)
def test_parts_that_are_normalised_first_may_have_any_share(advantage, warned):
    assert ("one part decides" in found(with_shares(0.92), advantage=advantage)) == warned


def test_shares_below_four_fifths_and_a_single_part_are_no_warning():
    assert "one part decides" not in found(with_shares(0.79))
    assert "one part decides" in found(with_shares(0.81))
    alone = with_change(lambda step: {"variance_share_truth_rules": 1.0})
    assert "one part decides" not in found(alone)


def test_a_share_falls_and_the_warning_ends_and_steps_without_shares_count_for_nothing():
    def change(step):
        share = None if step % 10 == 0 else 0.95 if step < 40 else -0.05
        return {"variance_share_bleu2": share, "variance_share_rouge_l": None if share is None else 1 - share}

    warnings = [w for w in find_warnings(with_change(change, count=80), CONFIG) if w.kind == "one part decides"]
    first, second = warnings
    # Of any 20 steps 18 have shares. With k of them new, bleu2 has 0.95 - k / 18 on average: 0.8 or less from k = 3 on,
    # steps 41 to 43. rouge_l has 0.05 + k / 18: more than 0.8 from k = 14 on, step 55 (50 has none).
    assert "bleu2 makes" in first.text and (first.step, first.until) == (19, 43)
    assert "rouge_l makes" in second.text and (second.step, second.until) == (55, None)


def test_three_standard_errors_by_hand():
    # means 1 and 2, variances 0.5 and 0.5 of two values each: error sqrt(0.25 + 0.25) = 0.707, so 1 < 3 x 0.707
    assert not differ([0.5, 1.5], [1.5, 2.5], least=0.02)
    # variances 0.02: error 0.141, and 1 > 0.424
    assert differ([0.9, 1.1], [1.9, 2.1], least=0.02)
    assert not differ([0.9, 1.1], [1.9, 2.1], least=1.5)


def test_a_warning_as_one_line_counts_steps_from_one():
    assert str(RunWarning("rl", "KL explodes", 4, None, "too far")) == "warning, rl step 5: KL explodes: too far"


def test_a_stage_without_checks_has_no_warning():
    monitor = Monitor("sft", CONFIG)
    assert monitor.add({"step": 0, "loss": 9.0}) == [] and monitor.count_lasting() == 0
