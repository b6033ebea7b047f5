"""The study's statistics and its rows (benchmarks/study)."""

import csv
import functools
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

from study import arms, figure, pages, purpose, runs, seeds, values  # noqa: E402

from radflow.data.sections import parse_sections  # noqa: E402
from radflow.data.studies import Study  # noqa: E402
from radflow.models.start import ModelConfig  # noqa: E402
from radflow.pipeline.run_config import Config, plain  # noqa: E402
from radflow.rewards.rules.chexpert_rules import ChexpertRules  # noqa: E402
from radflow.rewards.statistics import holm  # noqa: E402

CONFIG = Config(model=ModelConfig(training="full"))


def test_an_interval_over_five_seeds_by_hand():
    # values 1..5: mean 3, variance 2.5, standard error sqrt(2.5 / 5) = 0.7071; t(0.975, 4) = 2.7764
    found = seeds.estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0
    assert found.half == pytest.approx(2.7764 * math.sqrt(0.5), abs=1e-4)


def test_a_paired_comparison_by_hand():
    # differences 1, 2, 3: mean 2, std 1, d_z 2, t = 2 sqrt(3) with 2 degrees of freedom: p = 1 - t / sqrt(t^2 + 2)
    found = seeds.compare([0.0, 0.0, 0.0], [1.0, 2.0, 3.0])
    t = 2 * math.sqrt(3)
    assert (found.difference.mean, found.effect, found.wins) == (2.0, pytest.approx(2.0), 3)
    assert found.p == pytest.approx(1 - t / math.sqrt(t * t + 2))


def test_equal_rows_differ_in_nothing_and_one_seed_tests_nothing():
    same = seeds.compare([1.0, 2.0], [1.0, 2.0])
    assert (same.difference.mean, same.effect, same.p, same.wins) == (0.0, 0.0, 1.0, 0)
    alone = seeds.compare([1.0], [2.0])
    assert alone.difference.mean == 1.0 and math.isnan(alone.p) and math.isnan(alone.difference.half)
    assert pages.test_cells(alone) == ["+1.000", "-", "-"] and pages.p_value(alone.p) == "-"


def test_the_same_difference_on_every_seed_up_to_rounding_is_no_effect_of_a_million():
    found = seeds.compare([0.1, 0.3], [0.4, 0.6])
    assert found.effect == math.inf and found.p == 0.0


def test_a_claim_is_tested_on_the_seeds_that_both_rows_have_and_the_rest_is_left_out():
    claim, other = arms.CLAIMS["choices"][2], arms.CLAIMS["choices"][5]

    def seed(total):
        return {"total": total}

    rows = {"sft_hard": [seed(1.0), None, seed(1.0)], "ours": [seed(2.0), seed(9.0), seed(3.0)], "grpo": [None] * 3}
    page = pages.claims_page(rows, [claim, other], "")
    # differences 1 and 2; the second seed lacks a row, the second claim has no seed at all
    (row,) = page["rows"]
    assert row[:3] == [claim.title, "total reward", "2"]
    assert row[3].startswith("+1.500 ± ")


def test_what_is_to_get_better_is_corrected_for_its_own_tests_and_sft_is_not_compared_with_itself():
    shifts = {**dict(zip(pages.OUTCOMES, (1, 2, 4), strict=True)), "bleu2": 1, "worse critical": 1}

    def row(scale):
        return [{name: scale * (shift + noise) for name, shift in shifts.items()} for noise in (0, 0.3, 0.9)]

    table = {"sft": row(0), "group": row(1), "decoupled": row(3)}
    for name in ("group", "decoupled"):  # SFT has no distance to itself
        table[name] = [{**seed, "kl critical": 0.1 * number} for number, seed in enumerate(table[name])]
    claims = arms.CLAIMS["method"][:2]
    page = pages.reader_page(table, claims, "")
    all_others = ["BLEU-2", "KL to SFT, critical", "critical studies worse than SFT"]
    for claim, others in zip(claims, (["BLEU-2"], all_others), strict=True):
        rows = [row for row in page["rows"] if row[0] == claim.title]
        assert [row[1] for row in rows] == [*(pages.NAMES[name] for name in pages.OUTCOMES), *others]
        corrected = holm([pages.compared(table, claim, name).p for name in pages.OUTCOMES])
        assert [row[-1] for row in rows[:3]] == [pages.p_value(p) for p in corrected]


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=3, max_size=8), st.floats(-3, 3))
def test_a_shift_of_both_rows_changes_no_test(pairs, shift):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    moved = seeds.compare([a + shift for a in first], [b + shift for b in second])
    assert moved.difference.mean == pytest.approx(seeds.compare(first, second).difference.mean, abs=1e-9)


def test_studies_that_got_worse_are_counted_by_kind():
    def row(study_id, total, critical):
        return {"id": study_id, "report": f"r{total}", "critical": critical, "total": total, "kl": None}

    before = [row("a", 1.0, True), row("b", 2.0, True), row("c", 3.0, False)]
    after = [row("a", 0.5, True), row("b", 2.0, True), row("c", 3.5, False)]
    found = values.summary(after, before)
    assert (found["worse"], found["worse critical"], found["worse normal"]) == (1 / 3, 1 / 2, 0.0)
    assert (found["better"], found["better critical"], found["better normal"]) == (1 / 3, 0.0, 1.0)
    assert (found["total critical"], found["distinct"], found["kl"]) == (1.25, 1.0, None)


def test_studies_with_findings_have_rows_of_their_own():
    def row(study_id, bleu2, critical):
        return {"id": study_id, "report": "one", "critical": critical, "total": 0.0, "bleu2": bleu2}

    rows = [row("a", 0.2, True), row("b", 0.4, True), row("c", 0.9, False)]
    table = {"sft": [values.summary(rows, rows)]}
    page = pages.rows_page(table, [arms.SFT], "", apart=True)
    names = ["row", "BLEU-2", "distinct reports"]
    shown = [[row[page["columns"].index(name)] for name in names] for row in page["rows"]]
    assert shown == [["SFT (base)", "0.500", "0.333"], ["SFT (base), studies with findings", "0.300", "0.500"]]
    assert pages.rows_page(table, [arms.SFT], "")["rows"] == page["rows"][:1]


def points(*pairs):
    return [{"total": total, "kl": kl} for total, kl in pairs]


def test_distinct_reports_are_counted_among_300_however_many_there_are():
    reports = ["same"] * 300 + [str(number) for number in range(300)] + ["left out"] * 299
    assert values.distinct_of_300(reports) == pytest.approx((1 / 300 + 1) / 2)
    assert values.distinct_of_300(reports[295:305]) == 0.6  # fewer than 300: 1 + 5 of 10


def test_auc_by_hand_and_with_a_tie():
    import tower  # it reads what tables.py left behind; only its arithmetic is tested here

    # positives score 3 and 1, negatives 2 and 0: three of the four pairs are in order
    assert tower.auc(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, True, False])) == 0.75
    assert tower.auc(np.array([1.0, 1.0]), np.array([True, False])) == 0.5


def test_what_the_heads_find_at_a_number_of_false_alarms_by_hand():
    import tower_carotid

    # with one false alarm (0.8) allowed, 0.9 and 0.7 of the three true ones are above the next other, 0.6
    scores, true = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([True, False, True, False, True])
    assert [tower_carotid.recall(scores, true, n) for n in (0, 1, 2)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_the_linear_model_finds_the_bright_corner_that_the_label_stands_for():
    import tower

    rng = np.random.default_rng(0)

    def study(number):
        ill, image = number % 3 == 0, rng.integers(0, 128, (64, 64), dtype=np.uint8)
        image[32:, 32:] += np.uint8(100 * ill)
        findings = "The heart is enlarged." if ill else "Clear."
        return Study(str(number), str(number), "train", (image, image), findings, "")

    studies = [study(number) for number in range(120)]
    labeler = ChexpertRules(parse_sections)
    corpus = SimpleNamespace(train=studies[:90], test=studies[90:])
    run = SimpleNamespace(reward=SimpleNamespace(labeler=labeler), corpus=corpus)
    found = tower.linear_probabilities(run)[:, labeler.labels.index("Cardiomegaly")]
    ill = np.arange(90, 120) % 3 == 0
    assert found[ill].min() > found[~ill].max()


def test_courses_meet_at_the_highest_reward_that_both_reach():
    # the first reaches 1.5, the second 2.0 with its KL rising from 0 to 4: at 1.5 its KL is 2
    first, second = purpose.at_equal_reward(points((1.0, 0.0), (1.5, 1.0)), points((1.0, 0.0), (2.0, 4.0)))
    assert (first["kl"], second["kl"]) == (1.0, 2.0)
    assert purpose.at_equal_reward(points((1.0, 0.0), (0.5, 1.0)), points((1.0, 0.0), (2.0, 4.0))) is None


def test_a_row_that_changes_nothing_on_a_dataset_is_not_trained_there():
    import tables

    def left_out(dataset):
        kept = tables.without_repeats(arms.ABLATION, dataset, Path("encoder"))
        return {arm.name for arm in arms.ABLATION} - {arm.name for arm in kept}

    # carotid phantoms have the paper's weights anyway; only IU X-ray draws rare Impressions more often
    assert left_out("carotid") == {"paper_weights", "plain"}
    assert left_out("chest") == {"plain"} and left_out("iu") == set()


@pytest.mark.parametrize("dataset", runs.DATASETS)
def test_the_configs_of_the_study_are_configs_of_train(dataset, tmp_path):
    config = runs.config_of(dataset, 3, tmp_path, arms.GSPO.changes, Path("encoder"))
    assert (config.seed, config.rl.objective, config.rl.tightening) == (3, "gspo", 1)
    assert config.reward.bertscore.path == "encoder"
    # every table has BERTScore and is followed on the way, with one process a row
    assert "bertscore" in config.evaluate.metrics
    assert (config.evaluate.validate_every, config.reward.workers) == (10, 0)


def test_short_sft_is_all_that_differs_between_the_two_chest_sets(tmp_path):
    long, short = (plain(runs.config_of(name, 0, tmp_path, {}, Path("e"))) for name in ("chest", "chest_short"))
    assert (long["sft"].pop("steps"), short["sft"].pop("steps")) == (300, 100) and long == short


def test_without_seeds_a_table_has_as_many_as_fit_into_its_time():
    # CPU minutes of a row times rows times seeds, halved: docs/results.md has the measured ones
    for table, dataset in (("3", "carotid"), ("4", "iu"), ("5", "chest"), ("method", "chest"), ("outcome", "iu")):
        assert [*arms.usual_seeds(table, dataset)] == [0, 1, 2, 3, 4]
    for table, dataset in (("5", "carotid"), ("6", "iu"), ("regimes", "chest")):
        assert [*arms.usual_seeds(table, dataset)] == [0, 1, 2]
    assert not {*arms.usual_seeds("outcome", "chest")} & {*arms.usual_seeds("method", "chest")}


@pytest.mark.parametrize("table", arms.TABLES)
def test_every_row_changes_keys_that_there_are_and_no_two_rows_are_the_same(table):
    for arm in arms.TABLES[table]:
        for key in arm.changes:
            assert functools.reduce(lambda node, part: node[part], key.split("."), plain(CONFIG)) is not None, key
    kinds = [(arm.trains, arm.writes, arm.policy_of, arm.reports, *arm.changes.items()) for arm in arms.TABLES[table]]
    assert len(set(kinds)) == len(kinds) == len({arm.name for arm in arms.TABLES[table]})


def test_every_claim_of_a_table_compares_two_of_its_rows():
    for table, kind in arms.CLAIMS_OF.items():
        names = {arm.name for arm in arms.TABLES[table]}
        assert all({claim.first.name, claim.second.name} <= names for claim in arms.CLAIMS[kind])


def test_a_table_becomes_a_csv_file_and_what_it_was_measured_on_its_last_column(tmp_path, monkeypatch, capsys):
    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    parts = {"setting": "a step", "rounds": 2, "machine": "a card", "parts": {"a, b": 1.0, "c": 3.0}, "import_ms": 4}
    harness.write("parts", parts)
    rows = list(csv.reader((tmp_path / "parts.csv").open(encoding="utf-8")))
    assert rows[0] == ["part", "seconds", "%", "measured on"]
    assert [row[:3] for row in rows[1:]] == [
        ["c", "3.000", "75.0"],
        ["a, b", "1.000", "25.0"],
        ["all", "4.000", "100.0"],
    ]
    assert {row[3] for row in rows[1:]} == {"a card, 2 rounds"}
    printed = capsys.readouterr().out
    assert "| a, b | 1.000 | 25.0 |" in printed and "import_ms: 4" in printed


def test_the_figure_of_the_results_page_is_drawn_from_its_file(tmp_path):
    courses = figure.read_courses(ROOT / "benchmarks" / "results" / "table_purpose_chest_courses.csv")
    assert [len(courses[arm]) for arm in ("grpo", "ours")] == [5, 5]
    figure.draw(courses, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == (ROOT / "docs" / "figures" / "purpose_chest.svg").read_bytes()


def test_errors_are_drawn_with_a_line_per_seed_that_both_rows_have(tmp_path):
    def seed(made_up, missed):
        return {"made_up_findings": made_up, "missed_findings": missed}

    table = {"sft": [seed(0.2, 0.5), seed(0.3, 0.4), seed(0.1, 0.6)], "group": [seed(0.1, 0.6), None, seed(0.1, 0.7)]}
    for rows, lines in (([arms.SFT], 0), ([arms.SFT, arms.GROUP], 2)):
        figure.draw_errors(table, rows, tmp_path / "errors.svg")
        drawn = (tmp_path / "errors.svg").read_text(encoding="utf-8")
        assert drawn.count("stroke: #cccccc") == lines + 1  # the frame of the legend


def test_courses_are_read_as_they_were_written_and_drawn_over_the_gain(tmp_path, monkeypatch):
    import harness

    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    seed = [{"step": float(i), "total": 1.0 + i, **dict.fromkeys(purpose.QUANTITIES, 0.1 * i)} for i in range(3)]
    courses = {"grpo": [seed, seed[:2]], "ours": [seed, seed]}
    harness.write("courses", purpose.courses_page(courses, ""))
    assert figure.read_courses(tmp_path / "courses.csv") == {
        arm: [[pytest.approx(point) for point in points] for points in runs] for arm, runs in courses.items()
    }
    assert figure.series(seed, "kl") == ([0.0, 1.0, 2.0], pytest.approx([0.0, 0.1, 0.2]))
