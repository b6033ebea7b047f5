"""`evaluate.py score --precomputed`: recorded annotations and sub-scores give the recorded results."""

import json

import numpy as np
import pytest

from radflow import evaluate
from radflow.evaluation.precomputed import precomputed_cells, read_precomputed
from radflow.evaluation.table_metrics import FIVE, per_label_f1
from radflow.rewards.rules.chexpert_rules import LABELS

TEXT = "Findings: Clear. Impression: Clear."


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No weights of the user's get into a test."""
    monkeypatch.setenv("RADFLOW_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def oracles(shared):
    return json.loads((shared / "data/metric_oracles.json").read_text())


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def score(tmp_path, rows, *options):
    """metric -> entry of summary.json, and the rows of per_study.jsonl by id."""
    path, out = write_lines(tmp_path / "pre.jsonl", rows), tmp_path / "out"
    evaluate.main(
        ["score", "--precomputed", str(path), "--num-resamples", "100", "--out", str(out), *map(str, options)]
    )
    summary = json.loads((out / "summary.json").read_text())
    lines = [json.loads(line) for line in (out / "per_study.jsonl").read_text().splitlines()]
    return {entry["metric"]: entry for entry in summary["metrics"]}, {row["study_id"]: row for row in lines}, summary


def test_recorded_annotations_give_the_recorded_radgraph_scores(tmp_path, oracles):
    cases = oracles["radgraph_f1"]
    rows = [
        {"id": c["id"], "entities": {"prediction": c["hyp"]["entities"], "reference": c["ref"]["entities"]}}
        for c in cases
    ]
    found, studies, _ = score(tmp_path, rows)
    for case in cases:
        values = studies[case["id"]]
        assert values["radgraph_f1_rexrank"] == pytest.approx(case["expected"]["rexrank_combined"], abs=1e-12)
        partial = case["expected"]["radgraph_0_1_18"]["partial"]
        assert values["radgraph_f1_partial"] == pytest.approx(partial, abs=1e-12)
    mean = np.mean([case["expected"]["rexrank_combined"] for case in cases])
    assert found["radgraph_f1_rexrank"]["value"] == pytest.approx(mean) and found["bleu2"]["value"] is None


def test_recorded_label_matrices_give_the_recorded_chexbert_f1(tmp_path, oracles):
    assert tuple(oracles["chexbert"]["label_order"]) == LABELS and tuple(oracles["chexbert"]["top5"]) == FIVE
    for number, case in enumerate(oracles["chexbert"]["f1_cases"]):
        # "rrg" labels as classes: positive, or not mentioned
        rows = [
            {"id": str(i), "chexbert": {"prediction": h, "reference": r}}
            for i, (h, r) in enumerate(zip(case["hyp"], case["ref"], strict=True))
        ]
        (tmp_path / str(number)).mkdir()
        found, _, _ = score(tmp_path / str(number), rows)
        for kind in ("micro", "macro"):
            for labels in ("14", "5"):
                value = found[f"chexbert_{kind}_f1_{labels}"]["value"]
                assert value == pytest.approx(case["expected"][f"f1_{labels}"][kind], abs=1e-12)
        path = tmp_path / str(number) / "pre.jsonl"
        cells = precomputed_cells(read_precomputed(path), [row["id"] for row in rows], path)
        per_label = dict(zip(LABELS, (f1 for f1, _ in per_label_f1(cells["labels_chexbert"])), strict=True))
        assert per_label == pytest.approx(case["expected"]["per_label_f1"])


def test_uncertain_is_positive_and_denied_is_not(tmp_path):
    classes = {"prediction": [3, 2, *[0] * 12], "reference": [1, 0, *[0] * 12]}
    found, _, _ = score(tmp_path, [{"id": "a", "chexbert": classes}])
    assert found["chexbert_micro_f1_14"]["value"] == 1


def test_recorded_sub_scores_give_the_recorded_radcliq(tmp_path, oracles):
    cases = oracles["radcliq_cases"]
    keys = {"radgraph": "radgraph", "bertscore": "bertscore", "sembscore": "semb", "bleu2": "bleu2"}
    rows = [{"id": c["id"], **{theirs: c[ours] for ours, theirs in keys.items()}} for c in cases]
    found, studies, _ = score(tmp_path, rows)
    for case in cases:
        for name in ("radcliq_v0", "radcliq_v1"):
            assert studies[case["id"]][name] == pytest.approx(case[name], abs=1e-10)
    mean = np.mean([case["radcliq_v1"] for case in cases])
    assert found["inverse_radcliq_v1"]["value"] == pytest.approx(1 / mean)  # not the mean of inverses


def test_published_leaderboard_rows_follow_from_their_sub_scores(tmp_path, oracles):
    for number, row in enumerate(oracles["radcliq_tables"]):
        (tmp_path / str(number)).mkdir()
        line = {"id": row["model"], **{key: row[key] for key in ("bleu2", "bertscore", "sembscore", "radgraph")}}
        found, _, _ = score(tmp_path / str(number), [line])
        value = found["radcliq_v1"]["value"]
        if "radcliq_v1" in row:
            assert value == pytest.approx(row["radcliq_v1"], abs=0.0025)
        if "radcliq_v0" in row:
            assert found["radcliq_v0"]["value"] == pytest.approx(row["radcliq_v0"], abs=0.0041)
        inverse = next((row[key] for key in row if "inverse" in key), None)
        if inverse is not None:
            assert found["inverse_radcliq_v1"]["value"] == pytest.approx(inverse, abs=0.0005 + 0.0025 / value**2)


def test_sub_scores_stand_beside_measured_ones_and_a_given_bleu_is_used_as_it_is(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"a": TEXT, "b": TEXT}))
    rows = [{"id": i, "radgraph": 0.5, "bertscore": 1.0, "semb": 1.0} for i in "abz"]
    options = ("--predictions", tmp_path / "r.json", "--references", tmp_path / "r.json")
    found, _, summary = score(tmp_path, rows, *options)
    assert found["bleu2"]["value"] == 1 and found["radcliq_v1"]["value"] == pytest.approx(-0.818082117695542)
    assert summary["left_out"] == {"precomputed lines of studies that are not scored": ["z"]}
    found, _, _ = score(tmp_path, [row | {"bleu2": 0.25, "cider": 0.5} for row in rows], *options)
    assert found["bleu2"]["value"] == 0.25 and found["cider"]["value"] == 0.5
    assert found["rouge_l"]["value"] == found["corpus_bleu2"]["value"] == 1  # measured


def test_a_baseline_has_no_value_of_what_is_given_and_cannot_be_measured(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({"a": TEXT, "b": TEXT}))
    (tmp_path / "t.json").write_text(json.dumps({"x": TEXT}))
    options = [word for name in ("predictions", "references") for word in (f"--{name}", tmp_path / "r.json")]
    found, _, _ = score(tmp_path, [{"id": i, "semb": 0.5} for i in "ab"], *options, "--train", tmp_path / "t.json")
    assert found["sembscore"]["value"] == 0.5 and found["sembscore"]["baselines"]["random"] is None
    assert found["bleu2"]["baselines"]["random"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"id": "a", "radgraph": 0.5}], "expected a line for each of the 2 studies.* 1 have none, such as b"),
        ([{"id": "a", "semb": 1}, {"id": "b", "bleu2": 1}], "expected semb.* for every study or for none, 1 lack it"),
        ([{"id": "a", "semb": 1}, {"id": "a", "semb": 1}], "pre.jsonl:2: study a comes a second time"),
        ([{"id": "a", "semb": None}], "pre.jsonl:1: semb: expected a finite number"),
        ([{"id": "a", "semb": True}], "expected a finite number"),
        ([{"id": "a", "rouge": 1}], "expected the keys .* got 'rouge'"),
        ([{"id": "a", "semb": 1, "sembscore": 1}], "each once"),
        ([{"id": "a"}], "expected sub-scores"),
        ([{"id": 3, "semb": 1}], "expected an object with the study under id"),
        ([{"id": "a", "chexbert": {"prediction": [0] * 14, "reference": [0] * 13}}], "expected 14 classes"),
        ([{"id": "a", "chexbert": {"prediction": [0] * 13 + [2], "reference": [0] * 14}}], "expected 14 classes"),
        ([{"id": "a", "entities": {"prediction": {}}}], "prediction and reference"),
        (
            [
                {
                    "id": "a",
                    "entities": {
                        "prediction": {"1": {"tokens": "x", "label": "y", "relations": [["m", "2"]]}},
                        "reference": {},
                    },
                }
            ],
            "expected relations",
        ),
    ],
)
def test_what_is_not_as_documented_is_refused_with_its_line(tmp_path, rows, said):
    (tmp_path / "r.json").write_text(json.dumps({"a": TEXT, "b": TEXT}))
    with pytest.raises(SystemExit, match=f"error: .*{said}"):
        score(tmp_path, rows, "--predictions", tmp_path / "r.json", "--references", tmp_path / "r.json")


def test_a_sub_score_goes_before_the_one_of_annotations(tmp_path):
    entities = {"prediction": {}, "reference": {}}
    for order in (("radgraph", "entities"), ("entities", "radgraph")):
        row = {"id": "a"} | {key: {"radgraph": 0.75, "entities": entities}[key] for key in order}
        cells = precomputed_cells(read_precomputed(write_lines(tmp_path / "p.jsonl", [row])), ["a"], tmp_path)
        assert cells["radgraph_f1_rexrank"] == [0.75] and cells["radgraph_f1_partial"] == [0]
