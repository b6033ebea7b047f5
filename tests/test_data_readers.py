# ruff: noqa: RUF001 - full-width punctuation is meant
"""Every reader on a small copy of its published layout, written here; the text is made up."""

import gzip
import json
from pathlib import Path

import pytest
from dataset_files import touch, write_csv, write_json

from radflow.data.readers.carotid_us import read_carotid_us
from radflow.data.readers.chexpert_plus import COLUMNS as CHEXPERT_PLUS_COLUMNS
from radflow.data.readers.chexpert_plus import read_chexpert_plus
from radflow.data.readers.manifest import manifest_records, manifest_row
from radflow.data.readers.mimic_cxr import LABELS, read_mimic_cxr
from radflow.data.readers.records import split_of_patient
from radflow.data.readers.rexgradient import read_rexgradient
from radflow.data.readers.rexrank import read_rexrank
from radflow.data.readers.tables import load_object, rows

METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)


@pytest.fixture
def mimic(tmp_path):
    """Two patients: one with two studies, one whose report is missing; a third study has no split."""
    lines = [
        ["aa", "10000032", "50414267", "CHEST (PA AND LAT)", "LATERAL", 3056, 2544, 21800506, "213014.531", "", "", ""],
        ["bb", "10000032", "50414267", "CHEST (PA AND LAT)", "PA", 3056, 2544, 21800506, "83045.1", "", "", ""],
        ["cc", "10000032", "53189527", "CHEST (PORTABLE AP)", "AP", 2544, 3056, 21800626, "165500.312", "", "", ""],
        ["dd", "11000011", "51029426", "", "", 2544, 3056, 21261103, "1.0", "", "", ""],
        ["ee", "11000011", "59999999", "", "AP", 2544, 3056, 21261104, "0.0", "", "", ""],
    ]
    write_csv(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz", METADATA, *lines)
    splits = [
        ["aa", 50414267, 10000032, "train"],
        ["cc", 53189527, 10000032, "train"],
        ["dd", 51029426, 11000011, "validate"],
    ]
    write_csv(tmp_path / "mimic-cxr-2.0.0-split.csv.gz", "dicom_id,study_id,subject_id,split", *splits)
    marks = ["", "1.0", "0.0", "-1.0", *[""] * 10]
    write_csv(
        tmp_path / "mimic-cxr-2.0.0-chexpert.csv.gz", ["subject_id", "study_id", *LABELS], [10000032, 50414267, *marks]
    )
    folder = tmp_path / "files/p10/p10000032"
    touch(folder / "s50414267/aa.jpg")
    report = " FINAL REPORT\n INDICATION:  Cough.\n\n COMPARISON:  None.\n\n FINDINGS:\n\n Clear.\n\n IMPRESSION:\n\n"
    (folder / "s50414267.txt").write_text(f"{report} Normal.\n")
    (folder / "s53189527.txt").write_bytes(" FINDINGS:  37\xb0 angle.\n IMPRESSION: Fine.\n".encode("cp1252"))
    return tmp_path


def test_mimic_cxr_by_hand(mimic):
    first, second, *rest = read_mimic_cxr(mimic)
    folder = mimic / "files/p10/p10000032"
    assert first.study.id == "s50414267" and first.study.patient_id == "p10000032" and first.study.split == "train"
    assert first.study.images == (folder / "s50414267/aa.jpg", folder / "s50414267/bb.jpg")
    assert first.study.views == ("LATERAL", "PA")
    assert (first.study.findings, first.study.impression) == ("Clear.", "Normal.")
    assert (first.study.indication, first.study.comparison) == ("Cough.", "None.")
    assert first.study.labels == {"Cardiomegaly": 1, "Consolidation": 0, "Edema": -1}
    # 83045.1 is half past eight in the morning, before 213014.531: as text it would come after
    assert first.date == "21800506 083045" and first.utf8
    assert second.study.findings == "37° angle." and not second.utf8 and second.date > first.date
    assert [(item.id, item.reason) for item in rest] == [
        ("s51029426", "report file missing"),
        ("s59999999", "not in the official split"),
    ]


def test_mimic_cxr_with_dicom_images_and_without_labels(mimic):
    (mimic / "mimic-cxr-2.0.0-chexpert.csv.gz").unlink()
    folder = mimic / "files/p10/p10000032/s50414267"
    (folder / "aa.jpg").rename(folder / "aa.dcm")
    first = next(read_mimic_cxr(mimic))
    assert first.study.images[1] == folder / "bb.dcm" and first.study.labels == {}


def test_reports_that_cannot_be_read_are_named(mimic):
    folder = mimic / "files/p10/p10000032"
    (folder / "s50414267.txt").unlink()
    (folder / "s50414267.txt").symlink_to(folder / "s50414267.txt")  # a link to itself
    (folder / "s53189527.txt").write_bytes(b"FINDINGS: \x81\xff")  # neither UTF-8 nor Windows-1252
    reasons = [(item.id, item.reason) for item in read_mimic_cxr(mimic)]
    assert reasons[:2] == [("s50414267", "report file unreadable"), ("s53189527", "report file unreadable")]


def test_a_table_that_lacks_a_column_or_names_no_split_is_refused(mimic):
    write_csv(mimic / "mimic-cxr-2.0.0-split.csv.gz", "study_id,split", [50414267, "trial"])
    with pytest.raises(ValueError, match=r"expected a split among .* got 'trial'"):
        next(read_mimic_cxr(mimic))
    write_csv(mimic / "mimic-cxr-2.0.0-metadata.csv.gz", "dicom_id,subject_id,study_id", ["aa", 1, 2])
    with pytest.raises(ValueError, match=r"metadata.csv.gz:1: expected the columns \['ViewPosition', 'StudyDate', "):
        next(read_mimic_cxr(mimic))


@pytest.fixture
def rexgradient(tmp_path):
    study = "pGRDN1_aGRDN2_s1.2.826"
    header = (
        "id,AccessionNumber,StudyInstanceUid,PatientSex,PatientAge,StudyDate,StudyDescription,"
        "Indication,Comparison,Findings,Impression"
    )
    row = [
        study,
        "GRDN2",
        "1.2.826",
        "F",
        "063Y",
        "20130511",
        "XR CHEST 2 VIEWS",
        "Cough",
        "None.",
        "Clear.",
        "Normal.",
    ]
    write_csv(tmp_path / "metadata/train_metadata.csv", header, row, ["lost", *row[1:]])
    write_csv(tmp_path / "metadata/valid_metadata.csv", header, ["v", *row[1:9], "Wet.", "None"])
    paths = [f"../deid_png/GRDN1/GRDN2/studies/1.2.826/series/1.{i}/instances/1.{i}.1.png" for i in range(2)]
    entry = {
        "PatientID": "GRDN1",
        "StudyInstanceUid": "1.2.826",
        "ImagePath": paths,
        "ImageViewPosition": ["LATERAL", None],
    }
    write_json(tmp_path / "metadata/train_metadata_view_position.json", {study: entry})
    write_json(tmp_path / "metadata/valid_metadata_view_position.json", {"v": {**entry, "PatientID": "GRDN9"}})
    return tmp_path


def test_rexgradient_by_hand(rexgradient):
    first, lost, valid = read_rexgradient(rexgradient)
    instance = "GRDN1/GRDN2/studies/1.2.826/series/1.0/instances/1.0.1.png"
    assert first.study.images[0] == rexgradient / "deid_png" / instance and len(first.study.images) == 2
    assert (first.study.patient_id, first.study.split, first.date) == ("GRDN1", "train", "20130511")
    assert first.study.views == ("LATERAL", "") and first.study.comparison == "None."
    assert (lost.id, lost.reason) == ("lost", "no entry in the JSON of views")
    assert (valid.study.split, valid.study.impression) == ("val", "")


def test_image_paths_that_lead_out_of_the_dataset_are_refused(rexgradient):
    path = rexgradient / "metadata/valid_metadata_view_position.json"
    write_json(path, {"v": {"PatientID": "x", "ImagePath": ["../../secret.png"], "ImageViewPosition": ["PA"]}})
    with pytest.raises(ValueError, match=r"expected a file inside .* got '../../secret.png'"):
        list(read_rexgradient(rexgradient))


def test_chexpert_plus_by_hand(tmp_path):
    def row(path, side, position, order, split="train", findings="", impression="Normal."):
        values = dict.fromkeys(CHEXPERT_PLUS_COLUMNS, "")
        values |= {
            "path_to_image": path,
            "path_to_dcm": path.replace(".jpg", ".dcm"),
            "frontal_lateral": side,
            "ap_pa": position,
            "deid_patient_id": path.split("/")[1],
            "patient_report_date_order": order,
            "split": split,
            "section_findings": findings,
            "section_impression": impression,
            "section_history": "Cough.",
        }
        return list(values.values())

    lines = [
        row("train/patient1/study1/view1_frontal.jpg", "Frontal", "AP", "2", findings="Wet.\n", impression="1. CHF."),
        row("valid/patient2/study1/view1_frontal.jpg", "Frontal", "PA", "1.0", split="valid"),
        row("train/patient1/study1/view2_lateral.jpg", "Lateral", "", "2", findings="Wet.\n", impression="1. CHF."),
    ]
    write_csv(tmp_path / "df_chexpert_plus_240401.csv", CHEXPERT_PLUS_COLUMNS, *lines)
    touch(tmp_path / "PNG/train/patient1/study1/view1_frontal.png")
    first, second = read_chexpert_plus(tmp_path)
    folder = tmp_path / "PNG/train/patient1/study1"
    assert first.study.images == (folder / "view1_frontal.png", folder / "view2_lateral.png")
    assert first.study.views == ("AP", "Lateral") and (first.study.findings, first.study.impression) == (
        "Wet.",
        "1. CHF.",
    )
    assert (first.study.id, first.study.patient_id, first.date) == ("patient1_study1", "patient1", "000002")
    assert (second.study.split, second.study.findings, second.study.indication) == ("val", "", "Cough.")


def test_rexrank_of_another_dataset_keeps_its_ids(tmp_path):
    case = {"image_path": ["p/1.png", "p/2.png"], "section_findings": "None", "section_impression": "Normal."}
    odd = {**case, "section_findings": "Clear.", "frontal_lateral": ["Frontal", "Lateral", "Frontal"], "subject_id": 7}
    write_json(tmp_path / "mimic_test.json", {"a": case, "b": odd})
    first, second = read_rexrank(tmp_path)
    assert (first.study.id, first.study.split, first.study.findings) == ("a", "test", "")
    # the published validation file names three views beside two images: which is which is unknown
    assert (
        second.study.views == () and second.study.patient_id == "7" and second.study.images[1] == tmp_path / "p/2.png"
    )


def test_carotid_us_by_hand(tmp_path):
    images = [{"path": "C1/1.png", "mode": "b-mode"}, {"path": "C1/2.png", "mode": "color-doppler"}]
    row = {"id": "C1", "patient_id": 42, "images": images, "keywords": ["plaque"], "date": "2023-05-01"}
    report = "超声所见：左侧颈动脉内中膜增厚。\n超声提示：左侧颈动脉斑块形成。"
    lines = [{**row, "report": report}, {**row, "id": "C2", "findings": "Clear.", "impression": ""}]
    (tmp_path / "carotid_us.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    first, second = read_carotid_us(tmp_path)
    assert (first.study.findings, first.study.impression) == ("左侧颈动脉内中膜增厚。", "左侧颈动脉斑块形成。")
    assert first.study.views == ("b-mode", "color-doppler") and first.study.labels == {"plaque": 1}
    assert first.study.split == second.study.split == split_of_patient("42", (70, 15, 15))
    assert second.study.impression == "" and not first.ambiguous and not second.ambiguous
    twice = {**row, "report": f"{report}\n超声提示：另见。"}
    (tmp_path / "carotid_us.jsonl").write_text(json.dumps(twice), encoding="utf-8")
    assert next(read_carotid_us(tmp_path)).ambiguous
    (tmp_path / "carotid_us.jsonl").write_text(json.dumps({**row, "images": ["C1/1.png"]}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"carotid_us.jsonl:1: key 'images': expected objects with a path and a mode"):
        list(read_carotid_us(tmp_path))


def test_split_of_a_patient_is_stable_and_has_the_papers_shares():
    # recorded: whoever changes the hash moves patients between splits
    recorded = ["train", "train", "train", "train", "test", "train"]
    assert [split_of_patient(f"P{i:04d}", (70, 15, 15)) for i in range(6)] == recorded
    splits = [split_of_patient(f"P{i:05d}", (70, 15, 15)) for i in range(12000)]
    # four standard errors of a share of 0.70 and 0.15 over 12,000 patients: 0.0167 and 0.0130
    assert abs(splits.count("train") / 12000 - 0.70) < 0.0167 and abs(splits.count("val") / 12000 - 0.15) < 0.0130


def test_manifest_written_from_a_study_is_read_back_alike(mimic):
    first = next(read_mimic_cxr(mimic))
    path = mimic / "manifest.jsonl"
    path.write_text(json.dumps(manifest_row(first, mimic)) + "\n")
    assert list(manifest_records(path)) == [first]


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ('{"a": {"x": 1}, "b"', "o.json: expected a JSON file in UTF-8, got "),
        ("[1]", "o.json: expected a JSON object, got list"),
        ('{"a": {}, "b": 3}', "o.json: expected an object for 'b', got int"),
    ],
)
def test_a_json_file_of_another_form_is_named(tmp_path, text, got):
    path = tmp_path / "o.json"
    path.write_text('\ufeff{"a": {"x": 1}}', encoding="utf-8")
    assert load_object(path, dict) == {"a": {"x": 1}}
    path.write_text(text)
    with pytest.raises(ValueError, match=got):
        load_object(path, dict)


def test_table_rows_by_hand_and_what_is_wrong_with_a_table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('\ufeffa,b,c\n1,"x\ny",3\n\n4,5,6\n', encoding="utf-8")
    assert list(rows(path, ("c", "a"))) == [("3", "1"), ("6", "4")]
    assert list(rows(path, ("b",))) == [("x\ny",), ("5",)]
    with pytest.raises(ValueError, match=r"t.csv:1: expected the columns \['z'\], the file has \['a', 'b', 'c'\]"):
        list(rows(path, ("z",)))
    path.write_text("a,b\n1,2\n3\n")
    with pytest.raises(ValueError, match=r"t.csv:3: expected 2 fields, got 1"):
        list(rows(path, ("a",)))
    path.write_bytes(b"a,b\n\xff\xfe,2\n")
    with pytest.raises(ValueError, match=r"t.csv:\d: .*utf-8"):
        list(rows(path, ("a",)))
    cut = gzip.compress(b"a,b\n" + b"1,2\n" * 9000)[:-20]
    (tmp_path / "t.csv.gz").write_bytes(cut)
    with pytest.raises(ValueError, match=r"t.csv.gz:\d+: "):
        list(rows(Path(tmp_path / "t.csv.gz"), ("a",)))
