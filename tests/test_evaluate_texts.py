"""`from radflow import score, compare`: the values of the files' commands, from lists of texts."""

import json

import pytest

import radflow
from radflow import compare, evaluate, score
from radflow.evaluation.weights import Weights

REFERENCES = [
    "Findings: The heart is normal. No effusion. Impression: No acute abnormality.",
    "Findings: The heart is normal. Small left effusion. Impression: Small left effusion.",
    "Findings: Pulmonary edema. Impression: Pulmonary edema.",
]
CONSTANT, LATE = [REFERENCES[0]] * 3, [*REFERENCES[1:], None]


@pytest.fixture
def nowhere(tmp_path):
    return {"weights": Weights(tmp_path), "num_resamples": 200}


def write(path, reports):
    path.write_text(json.dumps({str(number): report for number, report in enumerate(reports, 1)}))
    return str(path)


@pytest.mark.parametrize("protocol", ["rexrank", "findings"])
def test_lists_score_as_files_do(tmp_path, nowhere, protocol):
    files = ["--predictions", write(tmp_path / "p.json", LATE), "--references", write(tmp_path / "r.json", REFERENCES)]
    options = ["--protocol", protocol, "--num-resamples", "200", "--weights.root", str(tmp_path)]
    evaluate.main(["score", *files, *options, "--out", str(tmp_path / "out")])
    found = score(LATE, REFERENCES, protocol=protocol, **nowhere)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert found.values == {row["metric"]: row["value"] for row in summary["metrics"] if row["value"] is not None}
    rows = [json.loads(line) for line in (tmp_path / "out" / "per_study.jsonl").read_text().splitlines()]
    assert found.columns == {name: [row[name] for row in rows] for name in found.columns}
    assert found.left_out == {"empty predictions, scored as empty texts": ["3"]}
    assert str(found).splitlines()[0] == "Scores" and f"protocol {protocol}" in str(found)


def test_lists_compare_as_files_do(tmp_path, nowhere):
    systems = {"late": LATE, "constant": CONSTANT}
    files = [write(tmp_path / f"{name}.json", reports) for name, reports in systems.items()]
    options = ["--num-resamples", "200", "--weights.root", str(tmp_path), "--out", str(tmp_path / "out")]
    evaluate.main(["compare", *files, "--references", write(tmp_path / "r.json", REFERENCES), *options])
    compared = compare(systems, REFERENCES, **nowhere)
    tests = json.loads((tmp_path / "out" / "comparison.json").read_text())["tests"]
    assert compared.columns == {name: [test[name] for test in tests] for name in tests[0]}
    assert (tmp_path / "out" / "comparison.txt").read_text() == str(compared)


def test_training_references_bring_baselines_and_missing_references_are_left_out(nowhere):
    found = score(CONSTANT, [*REFERENCES[:2], None], ids=["a", "b", "c"], train=REFERENCES, **nowhere)
    assert found.ids == ("a", "b") and "best constant" in found.baselines.values
    assert "references without the text that this protocol compares, not scored" in found.left_out


@pytest.mark.parametrize(
    ("predictions", "references", "settings", "said"),
    [
        (CONSTANT, REFERENCES[:2], {}, "expected 2 reports, as many as ids or references, got .'predictions': 3"),
        ("one text", REFERENCES, {}, "predictions: expected a list of texts"),
        (CONSTANT, [{"report": ""}] * 3, {}, "references: expected a list of texts"),
        (CONSTANT, REFERENCES, {"ids": ["a", "a", "b"]}, "an id comes twice: a"),
        (CONSTANT, REFERENCES, {"workers": -1}, "workers"),
        (CONSTANT, [None] * 3, {}, "expected references"),
    ],
)
def test_what_does_not_fit_is_refused(nowhere, predictions, references, settings, said):
    with pytest.raises(ValueError, match=said):
        score(predictions, references, **nowhere, **settings)


def test_unknown_settings_single_systems_and_unknown_names_are_refused(nowhere):
    with pytest.raises(TypeError, match="protokol"):
        score(CONSTANT, REFERENCES, protokol="findings", **nowhere)
    with pytest.raises(ValueError, match="at least two systems"):
        compare({"a": CONSTANT}, REFERENCES, **nowhere)
    with pytest.raises(AttributeError, match="no attribute 'scores'"):
        radflow.scores  # noqa: B018
