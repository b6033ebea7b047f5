"""The table of a run: the reward's own metrics, two policies, two baselines."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from capo.explore import ExploreConfig, composite_score, metric_names, select_hard
from radflow.data.phantoms import make_studies, perfect_report
from radflow.data.sections import parse_sections
from radflow.data.studies import Study
from radflow.pipeline import comparison
from radflow.pipeline.finding_errors import MADE_UP, MISSED, finding_errors
from radflow.rewards.config import RewardConfig
from radflow.rewards.registry import build_reward
from radflow.rewards.rules.chexpert_rules import ChexpertRules

NORMAL = "Findings: The heart is normal. No effusion. Impression: No acute abnormality."
EFFUSION = "Findings: The heart is normal. Small left effusion. Impression: Small left effusion."


def reward():
    return build_reward(RewardConfig(), parse_sections)


def study(number, report, pixel=0):
    sections = parse_sections(report)
    image = np.zeros((32, 32), dtype=np.uint8)
    image[:, :pixel] = 200
    return Study(f"s{number}", f"p{number}", "train", (image,), sections.findings, sections.impression)


def test_a_report_without_impression_scores_zero_on_it_and_a_reference_without_it_has_no_value():
    studies = [study(0, EFFUSION), dataclasses.replace(study(1, EFFUSION), impression="")]
    columns = comparison.score_reports(reward(), ["Findings: Small left effusion.", EFFUSION], studies)
    assert columns["label_f1_rules"] == [0.0, None]
    rows = comparison.comparison_rows(columns, columns)
    assert {row["metric"]: row["studies"] for row in rows}["label_f1_rules"] == 1


def test_columns_are_the_parts_of_the_reward_and_what_is_asked_for_beside_them():
    mine = build_reward(RewardConfig(preset="bleu"), parse_sections, also=["label_f1_rules", "bleu2"])
    columns = comparison.score_reports(mine, [EFFUSION], [study(0, EFFUSION)])
    assert columns == {"total": [1.0], "bleu2": [1.0], "label_f1_rules": [1.0], MADE_UP: [0.0], MISSED: [0.0]}
    table = comparison.render_table(comparison.comparison_rows(columns, columns), ("a", "b"), [])
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:7]] == [
        "total reward",
        "BLEU-2",
        "label F1 of the Impression (rules)",
        "made-up findings (lower is better)",
        "missed findings (lower is better)",
    ]


def test_tables_show_the_metric_of_the_text_as_written():
    # ".\nsmall" is one word for the published BLEU; the reward is not to be earned by line breaks
    broken = EFFUSION.replace(". S", ".\nS")
    columns = comparison.score_reports(reward(), [broken], [study(0, EFFUSION)])
    assert columns["bleu2"][0] < 1 and columns["total"] == [pytest.approx(4.0)]


def no_answer(candidates, references):
    """A plug-in whose grader is down."""
    return [None] * len(candidates)


def test_a_metric_that_nobody_could_compute_is_unavailable_and_not_zero():
    config = RewardConfig(plugin=f"{__name__}:no_answer")
    mine = build_reward(config, parse_sections)
    columns = comparison.score_reports(mine, [EFFUSION], [study(0, EFFUSION)])
    assert columns["no_answer"] == [None] and columns["total"] == [pytest.approx(4.0)]
    baselines = comparison.baseline_columns(mine, [study(1, NORMAL)], [study(0, EFFUSION)], sample=100)
    rows = comparison.comparison_rows(columns, columns, baselines)
    (line,) = [text for text in comparison.render_table(rows, ("a", "b"), []).splitlines() if "no_answer" in text]
    assert line.count("unavailable") == 5


def brevity(candidates, references):
    """A plug-in: 1 for a report that is not longer than its reference."""
    return [float(len(c) <= len(r)) for c, r in zip(candidates, references, strict=True)]


def test_a_plugin_is_explored_by_and_is_a_column():
    explored = ExploreConfig(weights={"brevity": 2.0, "bleu2": 1.0}, fraction=0.5)
    config = RewardConfig(preset="bleu", plugin=f"{__name__}:brevity")
    mine = build_reward(config, parse_sections, explore=metric_names(explored), also=["brevity"])
    studies = [study(0, EFFUSION), study(1, NORMAL)]
    rows = comparison.score_rows(mine, [EFFUSION, NORMAL + " And more."], studies)
    assert [row["brevity"] for row in rows] == [1.0, 0.0]
    assert list(rows[0]) == ["id", "report", "total", *mine.weights, MADE_UP, MISSED]
    columns = {name: [row[name] for row in rows] for name in metric_names(explored)}
    assert select_hard(composite_score(columns, explored), explored) == [1]
    table = comparison.render_table(comparison.comparison_rows(columns, columns), ("a", "b"), [])
    assert "| brevity " in table and "| BLEU-2 " in table
    with pytest.raises(ValueError, match=r"the function of reward\.plugin, got 'brevity'"):
        build_reward(RewardConfig(), parse_sections, explore=["brevity"])


def test_less_is_better_is_heard_by_the_search_for_constants():
    found = comparison.best_constants(
        [("a", {"radcliq_v1": 1.0, "bleu2": 0.5, "x": None}), ("b", {"radcliq_v1": 0.5, "bleu2": 0.5, "x": None})],
        lower=["radcliq_v1"],
    )
    assert found == {"radcliq_v1": "b", "bleu2": "a", "x": "a"}


def test_best_constant_report_is_chosen_for_each_metric():
    train = [study(i, NORMAL) for i in range(3)] + [study(9, EFFUSION)]
    constants = comparison.constant_reports(reward(), train, sample=10)
    assert constants["label_f1_rules"] == constants["total"] == NORMAL


def test_nearest_neighbour_copies_the_report_of_the_likest_image():
    train = [study(0, NORMAL, pixel=8), study(1, EFFUSION, pixel=24)]
    test = [study(2, "Findings: x. Impression: y.", pixel=23), study(3, "Findings: x. Impression: y.", pixel=9)]
    assert comparison.nearest_reports(train, test) == [EFFUSION, NORMAL]


def test_other_images_come_from_another_study_and_nothing_else_changes():
    studies = [study(i, NORMAL, pixel=i) for i in range(5)]
    swapped = comparison.with_other_images(studies)
    for before, after in zip(studies, swapped, strict=True):
        assert after.images is not before.images and after.report == before.report and after.id == before.id
    assert {id(s.images[0]) for s in swapped} == {id(s.images[0]) for s in studies}


def test_a_perfect_report_makes_nothing_up_and_misses_nothing_of_the_true_state():
    studies = make_studies("chest", num_train=40, num_val=0, num_test=0, seed=0)
    perfect = ["Findings: {} Impression: {}".format(*perfect_report(study.state)) for study in studies]
    labeler = ChexpertRules(parse_sections)
    assert finding_errors(labeler, perfect, studies) == {MADE_UP: [0.0] * 40, MISSED: [0.0] * 40}
    silent = finding_errors(labeler, ["Findings: Normal. Impression: Normal."] * 40, studies)
    assert sum(silent[MISSED]) > 0 and sum(silent[MADE_UP]) == 0


def test_findings_are_compared_with_the_reference_where_no_true_state_is_known():
    said, reference = "Findings: Cardiomegaly. Left pleural effusion.", "Findings: Cardiomegaly. Pneumothorax."
    study = SimpleNamespace(state=None, report=reference)
    assert finding_errors(ChexpertRules(parse_sections), [said], [study]) == {MADE_UP: [1.0], MISSED: [1.0]}
