"""Files of reports: every published layout is read, and nothing that is wrong passes or raises a traceback."""

import csv
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radflow.data.protocols import pair, prediction_text, reference_text
from radflow.data.report_files import Report, read_report_file

REXRANK = {
    "50051329": {
        "dicom_id": ["a", "b"],
        "section_findings": "Low lung volumes.\nNo effusion.",
        "section_impression": None,
        "report": "Findings: Low lung volumes.\nNo effusion. Impression: None",
        "split": "test",
        "model_prediction": "Findings:Clear. Impression:Normal.",
    }
}


def saved(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_one_rexrank_file_holds_predictions_and_references(tmp_path):
    path = saved(tmp_path, "r.json", json.dumps(REXRANK))
    assert read_report_file(path, "predictions") == {"50051329": Report("Findings:Clear. Impression:Normal.")}
    (reference,) = read_report_file(path, "references").values()
    assert reference.findings == "Low lung volumes.\nNo effusion." and reference.impression is None
    # as ReXrank's script writes it: newlines stay, a missing section is the word None
    assert reference_text(reference, "rexrank") == "Findings: Low lung volumes.\nNo effusion. Impression: None"
    assert reference_text(reference, "findings") == "Low lung volumes.\nNo effusion."
    assert reference_text(reference, "impression") is None
    assert reference_text(Report("Findings: None Impression: Normal."), "findings") is None


LAYOUTS = {
    "plain.json": json.dumps({"s1": "Findings: Clear. Impression: Normal."}),
    "r2gen.json": json.dumps(
        {"test": [{"id": "s1", "report": "Findings: Clear. Impression: Normal.", "image_path": []}]}
    ),
    "manifest.jsonl": json.dumps({"id": "s1", "uid": 7, "findings": "Clear.", "impression": "Normal.", "images": []})
    + "\n",
    "iu.csv": "uid,MeSH,Problems,findings,impression\ns1,normal,normal,Clear.,Normal.\n",
    "mimic.csv": "study,impression,findings,last_paragraph,comparison\ns1,Normal.,Clear.,,\n",
    "rexgradient.csv": "id,PatientID,Findings,Impression\ns1,p,Clear.,Normal.\n",
    "predictions.csv": '﻿study_id,report\n"s1","Findings: Clear. Impression: Normal."\n',
    "excel.csv": "﻿Study_ID;Report\r\ns1;Findings: Clear. Impression: Normal.\r\n",
    "pandas.jsonl": '{"id": 1.0, "report": NaN}\n{"id": "s1", "report": "Findings: Clear. Impression: Normal."}\n',
    "predictions.tsv": "study_id\treport\ns1\tFindings: Clear. Impression: Normal.\n",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts(tmp_path, name):
    report = read_report_file(saved(tmp_path, name, LAYOUTS[name]), "references")["s1"]
    assert reference_text(report, "rexrank") == "Findings: Clear. Impression: Normal."
    assert reference_text(report, "findings") == "Clear." and reference_text(report, "impression") == "Normal."


def test_chexpert_plus_rows_of_one_study_are_one_report(tmp_path):
    rows = "".join(f"train/patient3/study1/view{v}_frontal.jpg,Clear.,Normal.\n" for v in (1, 2))
    path = saved(tmp_path, "c.csv", "path_to_image,section_findings,section_impression\n" + rows)
    assert read_report_file(path, "references") == {"patient3/study1": Report(None, "Clear.", "Normal.")}


def test_a_folder_of_text_files(tmp_path):
    for name in ("p10/p1/s1.txt", "p10/p2/s2.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"FINDINGS: {name}", encoding="utf-8")
    assert list(read_report_file(tmp_path, "references")) == ["s1", "s2"]


def test_missing_is_missing_however_it_is_written(tmp_path):
    path = saved(tmp_path, "p.json", '{"a": null, "b": NaN, "c": "  ", "d": "nan", "e": {"report": null}, "f": "x"}')
    reports = read_report_file(path, "predictions")
    assert [study_id for study_id, report in reports.items() if report == Report(None)] == ["a", "b", "c", "d", "e"]
    pairs = pair(reports, {study_id: Report("Clear.") for study_id in "abcdefg"}, "rexrank")
    assert pairs.empty_predictions == ("a", "b", "c", "d", "e") and pairs.predictions == ("", "", "", "", "", "x")
    assert pairs.without_prediction == ("g",)


def test_a_prediction_without_headers_is_the_section_that_is_asked_for():
    assert prediction_text(Report("The lungs are clear."), "findings") == "The lungs are clear."
    assert prediction_text(Report("Findings: A. Impression: B."), "impression") == "B."
    assert prediction_text(Report("Impression: B."), "findings") == ""


def test_ids_that_do_not_match_are_listed():
    pairs = pair({"a": Report("x"), "c": Report("z")}, {"a": Report("x"), "b": Report("y")}, "rexrank")
    assert (pairs.ids, pairs.without_prediction, pairs.without_reference) == (("a",), ("b",), ("c",))
    with pytest.raises(ValueError, match="predictions have c, references b"):
        pair({"c": Report("x")}, {"b": Report("y")}, "rexrank")
    with pytest.raises(ValueError, match="protocol impression compares, got none among 1 studies"):
        pair({"a": Report("x")}, {"a": Report(None, "Clear.", None)}, "impression")


@pytest.mark.parametrize("changed", ["50414267.0", "0050414267"])
def test_ids_that_a_spreadsheet_changed_are_told(changed):
    with pytest.raises(ValueError, match="those of one file are floats or lost their zeros"):
        pair({changed: Report("x")}, {"50414267": Report("Clear.")}, "rexrank")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", '{"a": "x", "a": "y"}', "study a has two different reports"),
        ("a.json", '{"a": 3}', "study a: expected the text of a report, got int"),
        ("a.json", '{"a": {"report": ["x"]}}', "study a, report: expected the text of a report, got list"),
        ("a.json", '{"a": {"report": "x", "REPORT": "y"}}', "study a: expected each key once"),
        ("a.json", '{"a": {"words": "x"}}', "study a: expected one of the keys model_prediction"),
        ("a.json", '{" ": "x"}', "expected an id, got an empty one"),
        ("a.json", '{"a": "\\ud800"}', "half of a surrogate pair"),
        ("a.json", "[]", "expected a JSON object of study id -> report, got list"),
        ("a.json", "{", "expected JSON"),
        ("a.json", "[" * 100_000, "expected JSON"),
        ("a.json", "{}", "expected reports by study id, got none"),
        ("a.jsonl", '{"id": "a", "report": "x"}\nnull\n', "a.jsonl:2: expected a JSON object"),
        ("a.jsonl", '{"report": "x"}\n', "a.jsonl:1: expected an id under one of"),
        ("a.jsonl", '{"id": 1.5, "report": "x"}\n', "expected an id as text or whole number"),
        ("a.csv", "study_id,report\na\n", "a.csv:2: expected 2 fields, as in the header, got 1"),
        ("a.csv", "name,report\na,b\n", "a.csv:1: expected a header with a column of ids"),
        ("a.csv", "study_id,report,report\na,b,c\n", "each name once"),
        ("a.csv", 'study_id,report\na,"b"c"\n', "a.csv:2: expected comma-separated values"),
        ("a.csv", b"study_id,report\na,caf\xe9\n", "a.csv:2: expected UTF-8, got the byte 0xe9"),
        ("a.csv", "study_id,report\na,x\na,y\n", "a.csv:3: study a has two different reports"),
        ("a.xml", "<a/>", r"expected a .json, .jsonl, .csv or .tsv file or a folder"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, said):
    with pytest.raises(ValueError, match=said):
        read_report_file(saved(tmp_path, name, content), "predictions")


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.json: cannot be read \(No such file"):
        read_report_file(tmp_path / "none.json", "predictions")


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ENTRIES = VALUES | st.dictionaries(st.sampled_from(["report", "findings", "id", "x"]), VALUES, max_size=3)
IDS = st.text(max_size=6)


def as_csv(rows):
    text = io.StringIO()
    csv.writer(text).writerows([["study_id", "report"], *rows])
    return text.getvalue()


JSON_TEXT = st.dictionaries(IDS, ENTRIES, max_size=4).map(json.dumps)
LINES_TEXT = st.lists(ENTRIES.map(json.dumps), max_size=4).map("\n".join)
CSV_TEXT = st.lists(st.tuples(IDS, st.text(max_size=12)), max_size=4).map(as_csv)
FILES = st.one_of(
    st.tuples(st.just("f.json"), JSON_TEXT | st.text(max_size=30)),
    st.tuples(st.just("f.jsonl"), LINES_TEXT | st.text(max_size=30)),
    st.tuples(st.just("f.csv"), CSV_TEXT | st.text(max_size=30)),
)


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(FILES, st.none() | st.tuples(st.integers(0, 60), st.integers(0, 255)))
def test_any_file_is_read_or_refused_with_its_name(tmp_path, file, damage):
    """2,000 files: whole, or with one byte put in somewhere. Either every study of it is there, or a ValueError says
    where it is wrong."""
    name, text = file
    content = text.encode("utf-8", "surrogatepass")
    if damage is not None:
        place, byte = damage
        content = content[:place] + bytes([byte]) + content[place:]
    path = saved(tmp_path, name, content)
    try:
        reports = read_report_file(path, "predictions")
    except ValueError as error:
        assert str(error).startswith(str(path))
        return
    assert reports and all(isinstance(report, Report) for report in reports.values())
    if name == "f.csv":
        rows = [row for row in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")) if row]
        assert {row[0].strip() for row in rows[1:]} == set(reports)
    elif name == "f.json":
        assert {key.strip() for key in json.loads(content.decode("utf-8-sig"))} == set(reports)
    else:
        wanted = [json.loads(line) for line in content.decode("utf-8-sig").split("\n") if line.strip()]
        ids = (int(row["id"]) if isinstance(row["id"], float) else row["id"] for row in wanted)  # 7.0 is 7
        assert {str(name).strip() for name in ids} == set(reports)
