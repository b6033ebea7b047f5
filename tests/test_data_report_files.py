"""Files of reports: every published layout is read, and nothing that is wrong passes or raises a traceback."""

import json
import re

import pytest
from report_forms import FILES, count_rows, damaged

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


def test_chexpert_plus_as_distributed(tmp_path):
    # one row per image; rows of one study may have two reports, and the first one counts as in the manifest
    rows = [("3/study1/view1", "Clear."), ("3/study1/view2", "Clear."), ("3/study1/view3", "Wet."), ("4/study2/v", "x")]
    text = "".join(f"train/patient{path}.jpg,{findings},Normal.\n" for path, findings in rows)
    path = saved(tmp_path, "c.csv", "path_to_image,section_findings,section_impression\n" + text)
    read = read_report_file(path, "references")
    normal = {name: Report(None, findings, "Normal.") for name, findings in (("3_study1", "Clear."), ("4_study2", "x"))}
    assert read == {f"patient{name}": report for name, report in normal.items()}
    assert read.notes == (
        "c.csv: 1 rows repeat the report of their study and count once",
        "c.csv: 1 rows have another report than the first row of their study, and are left out",
    )
    predictions = saved(tmp_path, "p.json", '{"train/patient3/study1": "x", "patient4_study2": "y"}')
    assert read_report_file(predictions, "predictions").keys() == read.keys()


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


@pytest.mark.parametrize("protocol", ["findings", "impression"])
def test_a_text_without_sections_is_the_section_that_is_asked_for(protocol):
    text = "The lungs are clear."
    assert prediction_text(Report(text), protocol) == reference_text(Report(text), protocol) == text
    pairs = pair({"a": Report(text), "b": Report(HEADED)}, {"a": Report(HEADED), "b": Report(text)}, protocol)
    assert pairs.predictions[0] == pairs.references[1] == text
    assert pairs.taken == {
        f"predictions without sections, taken as the {protocol}": ("a",),
        f"references without sections, taken as the {protocol}": ("b",),
    }
    signed = f"{text} End of report."
    assert prediction_text(Report(signed), protocol) == reference_text(Report(signed), protocol) == signed
    # a header without text, another section alone, and the word for a missing section are none
    for other in ("Findings:", "Indication: cough.", "None"):
        assert reference_text(Report(other), protocol) is None and prediction_text(Report(other), protocol) == ""


HEADED = "Findings: A. Impression: B."


def test_a_section_that_a_text_lacks_stays_missing():
    assert prediction_text(Report(HEADED), "impression") == "B."
    assert prediction_text(Report("Impression: B."), "findings") == ""
    assert reference_text(Report("Impression: B."), "findings") is None


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
        ("a.json", '{"a": {"report": {"x": "y"}}}', "study a, report: expected the text of a report, got object"),
        ("a.json", '{"a": {"report": "x", "REPORT": "y"}}', "study a: expected each key once"),
        ("a.json", '{"a": {"words": "x"}}', "study a: expected one of the keys model_prediction"),
        ("a.json", '{" ": "x"}', "expected an id, got an empty one"),
        ("a.json", '{"a": "\\ud800"}', "half of a surrogate pair"),
        ("a.json", "[]", "expected reports by study id, got none"),
        ("a.json", "3", "expected a JSON object of study id -> report or a list, got int"),
        ("a.json", "{", "expected JSON"),
        ("a.json", "[" * 100_000, "expected JSON"),
        ("a.json", "{}", "expected reports by study id, got none"),
        ("a.jsonl", '{"id": "a", "report": "x"}\nnull\n', "a.jsonl:2: expected an id under one of"),
        ("a.jsonl", '{"id": 1.5, "report": "x"}\n', "expected an id as text or whole number"),
        ("a.csv", "study_id,report\na\n", "a.csv:2: expected 2 fields, as in the header, got 1"),
        ("a.csv", "study_id,words\na,b\n", "a.csv:1: expected a header with a column of reports"),
        ("a.csv", "study_id,report,report\na,b,c\n", "each name once"),
        ("a.csv", 'study_id,report\na,"b"c"\n', "a.csv:2: expected comma-separated values"),
        ("a.csv", b"study_id,report\na,caf\xe9\n", "a.csv:2: expected UTF-8, got the byte 0xe9"),
        ("a.csv", "study_id,report\na,x\na,y\n", "a.csv:3: study a has two different reports"),
        ("a.xml", "<a/>", r"expected a .json, .jsonl, .csv, .tsv or .txt file or a folder"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, said):
    with pytest.raises(ValueError, match=said):
        read_report_file(saved(tmp_path, name, content), "predictions")


def test_a_path_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.json: cannot be read \(No such file"):
        read_report_file(tmp_path / "none.json", "predictions")


DRY, WET, TAKEN = "The lungs are clear.", "Edema.", "numbered and paired in order"
TWO = {"1": DRY, "2": WET}
# name; content, with DRY for the first text; what it holds, or the error; what its notes say
PEOPLES = [
    ("1.csv", "study_id,report\ns1,DRY\n", {"s1": DRY}, ""),
    ("2.csv", "report\nDRY\nEdema.\n", TWO, TAKEN),
    ("3.csv", "report\nDRY\n\nEdema.\n", {"1": DRY, "2": None, "3": WET}, TAKEN),
    ("4.csv", "number,Report \n7,DRY\n", {"1": DRY}, "no id among number, report"),
    ("5.csv", "StudyID,Report\n007,DRY\n", {"007": DRY}, ""),
    ("6.csv", "Accession Number;Report\r\nA-1;DRY\r\n", {"A-1": DRY}, ""),
    ("7.csv", "id,report\ns1,DRY\n,\n\n,\n", {"s1": DRY}, "3 empty rows are left out"),
    ("8.csv", "id,report\ns1,DRY\n,Edema.\n", "8.csv:3: expected an id, got an empty one under id", ""),
    ("9.csv", "s1,DRY\ns2,Edema.\n", "9.csv:1: expected a header with a column of reports", ""),
    ("10.csv", 'id,report\ns1,"Lungs:\nclear, ""dry""."\n', {"s1": 'Lungs:\nclear, "dry".'}, ""),
    ("11.tsv", "image_id\tcaption\nx.png\tDRY\n", {"x.png": DRY}, ""),
    ("12.csv", "id,report\ns1,DRY\ns1,DRY\n", {"s1": DRY}, "1 rows repeat the report of their study"),
    ("13.csv", "id,report\ns1,DRY\ns1,Edema.\n", "13.csv:3: study s1 has two different reports", ""),
    ("14.CSV", 'ID,TEXT\n"s1",DRY', {"s1": DRY}, ""),
    ("15.jsonl", '{"report": "DRY"}\n{"report": "Edema."}\n', TWO, "no id among report"),
    ("16.jsonl", '{"id": 1, "report": "DRY"}\n\n{"id": 2, "text": null}\n\n', {"1": DRY, "2": None}, "1 empty rows"),
    ("17.jsonl", '{"id": 1, "report": "DRY"}\n{"report": "Edema."}\n', "17.jsonl:2: expected an id under", ""),
    ("18.jsonl", '"DRY"\nnull\n"Edema."', {"1": DRY, "2": None, "3": WET}, TAKEN),
    ("19.txt", "DRY\n\nEdema.\n", {"1": DRY, "2": None, "3": WET}, TAKEN),
    ("20.txt", "\ufeffDRY\r\nEdema.", TWO, TAKEN),
    ("21.txt", "DRY\u2028Edema.\x0c\n", {"1": f"{DRY}\u2028Edema.\x0c"}, TAKEN),
    ("22.txt", "\n \n", "22.txt: expected reports by study id, got none", ""),
    ("23.json", '["DRY", null, "Edema."]', {"1": DRY, "2": None, "3": WET}, TAKEN),
    ("24.json", '[{"id": "b", "report": "DRY"}, {"id": "a", "report": "Edema."}]', {"b": DRY, "a": WET}, ""),
    ("25.json", '[{"report": "DRY"}, "Edema."]', TWO, "no id among report"),
    ("26.json", '["DRY", 3]', r"26.json: \[1\]: expected the text of a report, got int", ""),
    ("27.json", '{"s1": ["DRY"], "s2": [], "s3": [null]}', {"s1": DRY, "s2": None, "s3": None}, ""),
    ("28.json", '{"s1": ["DRY", "Edema."]}', "s1: expected one text, got a list of 2; only BLEU, METEOR and CIDEr", ""),
    ("29.json", '{"s1": [{"image_id": "s1", "caption": "DRY"}]}', {"s1": DRY}, ""),
    ("30.json", '[{"image_id": 42, "caption": "DRY"}]', {"42": DRY}, ""),
    ("31.json", '{"images": [], "annotations": [{"image_id": 4, "caption": "DRY"}]}', {"4": DRY}, ""),
    ("32.json", '{"annotations": "DRY", "s2": "Edema."}', {"annotations": DRY, "s2": WET}, ""),
    ("33.json", '{"val": [{"id": "b", "report": "x"}], "test": [{"report": "y"}]}', r"test\[0\]: expected an id", ""),
    ("34.json", r'{"a\u001b[2J": 3}', r"study a\\u001b\[2J: expected the text of a report, got int", ""),
    ("35.json", r'{"\u202ea\nb": "DRY"}', {"\u202ea\nb": DRY}, ""),
    ("36.json", '{"s1": {"report": 1e999}}', "study s1, report: expected the text of a report, got float", ""),
]


@pytest.mark.parametrize(("name", "content", "expected", "note"), PEOPLES, ids=[case[0] for case in PEOPLES])
def test_files_as_people_have_them(tmp_path, name, content, expected, note):
    path = saved(tmp_path, name, content.replace("DRY", DRY))
    for role in ("predictions", "references"):
        if isinstance(expected, str):
            with pytest.raises(ValueError, match=expected) as caught:
                read_report_file(path, role)
            assert str(caught.value).isprintable()
        else:
            read = read_report_file(path, role)
            assert {study_id: report.text for study_id, report in read.items()} == expected
            assert note in " ".join(read.notes) and bool(read.notes) == bool(note)
            assert read.numbered == (note == TAKEN or "no id" in note)


def test_damaged_files_are_read_whole_or_refused_in_one_line(tmp_path):
    """RADFLOW_FUZZ=3000 tries that many files."""
    kept = 0
    for seed in range(FILES or 600):
        name, content = damaged(seed)
        path = saved(tmp_path, name, content)
        try:
            read = read_report_file(path, "predictions")
        except ValueError as error:
            assert str(error).startswith(str(path)) and str(error).isprintable(), seed
            continue
        reported = sum(int(count) for note in read.notes for count in re.findall(r": (\d+) (?:rows|empty)", note))
        assert len(read) + reported == count_rows(name, content), (seed, name)
        kept += 1
    assert kept > (FILES or 600) / 4
