"""`evaluate.py compare`: paired differences, corrected tests, labels, criticality, what changed."""

import json

import numpy as np
import pytest

from radflow import evaluate
from radflow.evaluation.compare import CompareConfig, compare
from radflow.evaluation.weights import Weights
from radflow.rewards.metrics.lexical import Bleu
from radflow.rewards.statistics import holm

NORMAL = "Findings: The heart is normal. No effusion. Impression: No acute abnormality."
EFFUSION = "Findings: The heart is normal. Small left effusion. Impression: Small left effusion."


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("RADFLOW_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def write(path, reports):
    path.write_text(json.dumps(reports))
    return path


@pytest.fixture
def files(tmp_path):
    references = write(tmp_path / "r.json", {f"s{i}": EFFUSION if i % 2 else NORMAL for i in range(8)})
    constant = write(tmp_path / "constant.json", {f"s{i}": NORMAL for i in range(8)})
    return references, constant


def run(tmp_path, *options):
    out = tmp_path / "out"
    evaluate.main(["compare", *map(str, options), "--num-resamples", "300", "--out", str(out)])
    return json.loads((out / "comparison.json").read_text()), out


def test_differences_by_hand_and_corrected_over_all_tests(tmp_path, files, capsys):
    references, constant = files
    found, out = run(tmp_path, constant, references, "--references", references)
    tests = {test["metric"]: test for test in found["tests"]}
    assert tests["label_f1_rules"]["difference"] == pytest.approx(0.5)  # the constant is right for one of two studies
    missed = 1 - Bleu(2)([NORMAL], [EFFUSION])[0]
    assert tests["bleu2"]["difference"] == pytest.approx(missed / 2)
    values = {name: found["values"][name]["bleu2"] for name in ("constant", "r")}
    assert values == {"constant": pytest.approx(1 - missed / 2), "r": pytest.approx(1.0)}
    assert tests["bleu2"]["low"] <= tests["bleu2"]["difference"] <= tests["bleu2"]["high"]
    assert [test["p_holm"] for test in found["tests"]] == pytest.approx(holm([test["p"] for test in found["tests"]]))
    # 4 of 8 studies differ: all signs alike in 2 of 16 shuffles
    assert tests["bleu2"]["p"] == pytest.approx(2 / 16, abs=0.06)
    assert "inverse_radcliq_v1" not in tests and found["critical"] == 4
    shown = capsys.readouterr().out
    assert (out / "comparison.txt").read_text() in shown and "constant: 12.5 % distinct reports" in shown
    assert "(comparison.svg)" in (out / "comparison.md").read_text()
    assert f"{tests['bleu2']['difference']:+.3f} [" in (out / "comparison.svg").read_text()


def test_labels_and_criticality_by_hand(tmp_path, files):
    references, constant = files
    found, _ = run(tmp_path, constant, references, "--references", references)
    tables = {table["title"]: table for table in found["tables"]}
    labels = {row[0]: row[1:] for row in tables["F1 of each label"]["rows"]}
    assert labels["Pleural Effusion"] == ["4", "0.000", "1.000"]
    assert labels["No Finding"] == ["4", "0.667", "1.000"]  # the constant: TP 4, FP 4
    assert labels["Edema"] == ["0", "-", "-"]  # nobody has it: 0 would say that all were wrong
    split = tables["Critical and normal references (by rules)"]
    rows = {row[0]: row[1:] for row in split["rows"]}
    assert split["head"][1:] == ["constant, critical (4)", "r, critical (4)", "constant, normal (4)", "r, normal (4)"]
    assert rows["label F1 of the Impression (rules)"] == ["0.000", "1.000", "1.000", "1.000"]


@pytest.mark.parametrize(
    ("definitions", "critical"),
    [(("acute", "acute"), 2), (("paper", "paper"), 6), (("acute", "paper"), 6), ((None, None), 6)],
)
def test_the_split_by_criticality_follows_the_runs_definition(tmp_path, definitions, critical):
    # two acute effusions, four mild old things, two normal chests
    old = "Findings: Mild scoliosis. The lungs are clear. Impression: No acute abnormality."
    reports = {
        f"s{i}": text for i, text in enumerate([EFFUSION.replace("Small", "Large")] * 2 + [old] * 4 + [NORMAL] * 2)
    }
    files = []
    for name, definition in zip("ab", definitions, strict=True):
        (tmp_path / name / "eval").mkdir(parents=True)
        section = f"criticality:\n  definition: {definition}\n" if definition else ""
        (tmp_path / name / "config.yaml").write_text(f"seed: 0\n{section}")
        files.append(write(tmp_path / name / "eval" / f"{name}.json", reports))
    found, _ = run(tmp_path, *files, "--references", write(tmp_path / "r.json", reports))
    assert found["critical"] == critical


def test_studies_that_changed_most_both_ways(tmp_path, files):
    references, constant = files
    worse = {f"s{i}": EFFUSION if i == 2 else NORMAL if i != 3 else EFFUSION for i in range(8)}
    found, _ = run(
        tmp_path,
        constant,
        write(tmp_path / "b.json", worse),
        "--references",
        references,
        "--changed-by",
        "label_f1_rules",
    )
    rows = found["tables"][-1]["rows"]
    assert [row[:2] for row in rows] == [["s3", "better"], ["s2", "worse"]] and rows[0][-1] == "+1.000"


def test_three_systems_are_compared_with_the_first_or_all_pairs(tmp_path, files):
    references, constant = files
    other = write(tmp_path / "other.json", {f"s{i}": EFFUSION for i in range(8)})
    systems = (constant, references, other)
    firsts = {(t["first"], t["second"]) for t in run(tmp_path, *systems, "--references", references)[0]["tests"]}
    assert firsts == {("constant", "r"), ("constant", "other")}
    pairs, _ = run(tmp_path, *systems, "--references", references, "--pairs", "all")
    assert ("r", "other") in {(t["first"], t["second"]) for t in pairs["tests"]}


def test_only_common_studies_are_compared_and_the_others_are_listed(tmp_path, files, capsys):
    references, constant = files
    part = write(tmp_path / "part.json", {f"s{i}": NORMAL for i in range(5)})
    found, _ = run(tmp_path, constant, part, "--references", references)
    assert found["studies"] == 5
    assert found["left_out"]["constant"] == {"predictions that part lacks, not compared": ["s5", "s6", "s7"]}
    assert found["left_out"]["part"] == {"references without a prediction, not scored": ["s5", "s6", "s7"]}
    assert "part: 3 references without a prediction" in capsys.readouterr().out
    other = write(tmp_path / "other.json", {f"s{i}": NORMAL for i in range(1, 8)})
    found, _ = run(tmp_path, constant, part, other, "--references", references)
    assert found["left_out"]["part"]["predictions that other lacks, not compared"] == ["s0"]
    assert found["left_out"]["constant"] == {
        "predictions that part lacks, not compared": ["s5", "s6", "s7"],
        "predictions that other lacks, not compared": ["s0"],
    }


def test_a_row_that_one_system_does_not_define_is_said_to_be_left_out(tmp_path, files):
    # The references are normal. One system sees an effusion, the other nothing: it has no F1 of the five labels.
    references = write(tmp_path / "normal.json", {f"s{i}": NORMAL for i in range(8)})
    wrong = write(tmp_path / "wrong.json", {f"s{i}": EFFUSION if i == 3 else NORMAL for i in range(8)})
    found, _ = run(tmp_path, wrong, references, "--references", references)
    assert found["unavailable"]["rules_micro_f1_5"] == "neither side has a label"
    tests = {test["metric"] for test in found["tests"]}
    assert "rules_micro_f1_14" in tests and not tests & {"rules_micro_f1_5", "rules_macro_f1_5"}
    assert any(note.startswith("not computed here: ") and "rule labels micro F1 (5)" in note for note in found["notes"])
    assert "wrong: rule labels macro F1 (14): 12 labels" in "".join(found["notes"])


def test_equal_systems_differ_in_nothing(tmp_path, files):
    references, constant = files
    same = write(tmp_path / "same.json", json.loads(constant.read_text()))
    config = CompareConfig(systems=(constant, same), references=references, num_resamples=200)
    compared = compare(config, Weights(tmp_path))
    assert {(t.difference.mean, t.difference.low, t.p, t.corrected) for t in compared.tests} == {(0, 0, 1, 1)}
    assert np.array_equal(compared.systems[0].cells["bleu2"], compared.systems[1].cells["bleu2"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["A"], "at least two files"),
        (["A", "A"], "expected different files of reports"),
        (["A", "B", "--changed-by", "radcliq_v1"], "changed_by radcliq_v1: it is not available here"),
        (["A", "B", "--changed-by", "nonsense"], "expected changed_by among bleu1"),
        (["A", "C"], "expected study ids that both files have, got none"),
    ],
)
def test_mistakes_end_with_their_reason(tmp_path, files, options, said, refuse):
    write(tmp_path / "c.json", {"q": NORMAL})
    names = {"A": files[1], "B": files[0], "C": tmp_path / "c.json"}
    words = [*(names.get(option, option) for option in options), "--references", files[0]]
    assert said in refuse(evaluate.main, ["compare", *words, "--num-resamples", 300])
