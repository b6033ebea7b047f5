import json
import subprocess
import sys

import pytest

from radflow import evaluate
from radflow.evaluation.label import read_reports
from radflow.rewards.rules.chexpert_rules import LABELS


def run(tmp_path, *lines, out="labels.jsonl"):
    """Objects that the command writes for these lines."""
    source, target = tmp_path / "reports.jsonl", tmp_path / out
    source.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8"
    )
    evaluate.main(["label", str(source), "--out", str(target)])
    return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]


def test_one_object_a_line_in_order_with_ids_as_they_were(tmp_path):
    ids = ["a", 7, 1.5, None, True, "可", "a"]
    found = run(tmp_path, *({"id": one, "report": "No effusion.", "more": [1]} for one in ids))
    assert [one["id"] for one in found] == ids
    assert all(tuple(one["labels"]) == LABELS and one["critical"] is False for one in found)
    assert all(set(one) == {"id", "labels", "critical"} for one in found)


def test_whole_reports_and_sections_by_hand(tmp_path):
    whole, text, both, findings, empty = run(
        tmp_path,
        {"id": 1, "report": "INDICATION: pneumonia? FINDINGS: Left effusion. IMPRESSION: Left effusion."},
        {"id": 2, "text": "Possible pneumonia."},
        {"id": 3, "findings": "Left effusion.", "impression": "Normal."},
        {"id": 4, "findings": "The lungs are clear.", "impression": None},
        {"id": 5, "findings": "", "impression": ""},
    )
    assert whole["labels"]["Pleural Effusion"] == 1 and whole["labels"]["Pneumonia"] is None and whole["critical"]
    assert text["labels"]["Pneumonia"] == -1 and text["critical"]
    assert both["consistent"] is False and both["labels"]["Pleural Effusion"] == 1
    assert "consistent" not in findings and findings["labels"]["No Finding"] == 1
    assert "consistent" not in empty and set(empty["labels"].values()) == {None}


def test_blank_lines_carry_no_report(tmp_path):
    assert len(run(tmp_path, {"id": 1, "text": "x"}, "", "  ", {"id": 2, "text": "y"}, "")) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": 1, "report": ', r"reports.jsonl:2: expected one JSON object per line"),
        ('{"id": 1, "report": NaN}', r"reports.jsonl:2: expected one JSON object per line.*NaN"),
        ("[1]", r"reports.jsonl:2: expected a JSON object, got list"),
        ("[" * 100_000, r"reports.jsonl:2: expected one JSON object per line"),
        ('{"report": "x"}', r"reports.jsonl:2: expected an id .*got the keys \['report'\]"),
        ('{"id": {"a": 1}, "report": "x"}', r"reports.jsonl:2: expected an id"),
        ('{"id": 1, "report": 5}', r"reports.jsonl:2: expected report to be a string or null, got 5"),
        ('{"id": 1, "body": "x"}', r"reports.jsonl:2: expected the report under report or text, .*\['body', 'id'\]"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_written(tmp_path, line, message):
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, {"id": 0, "text": "x"}, line)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reports.jsonl"]


def test_bytes_that_are_no_utf_8_are_named():
    with pytest.raises(ValueError, match=r"x\.jsonl:2: expected text in UTF-8, got byte 0xff"):
        read_reports([b'\xef\xbb\xbf{"id": 1, "text": "x"}\n', b"\xff\n"], "x.jsonl")


def test_a_folder_that_is_missing_is_named_before_the_work(tmp_path):
    with pytest.raises(SystemExit, match="expected an existing folder"):
        run(tmp_path, {"id": 1, "text": "x"}, out="none/labels.jsonl")


def test_the_command_reads_and_writes_standard_streams():
    line = json.dumps({"id": "a", "findings": "No effusion.", "impression": "Normal."})
    command = [sys.executable, evaluate.__file__, "label", "-"]
    done = subprocess.run(command, input=line, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["consistent"] is True
    shown = subprocess.run([*command[:-1], "--help"], capture_output=True, text=True, check=True)
    assert "findings" in shown.stdout and "consistent" in shown.stdout
