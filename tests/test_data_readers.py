# ruff: noqa: RUF001 - full-width punctuation is meant
"""Every reader on a small copy of its published layout, written here; the text is made up."""

import csv
import gzip
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.readers.carotid_us import read_carotid_us
from data.readers.chexpert_plus import COLUMNS as CHEXPERT_PLUS_COLUMNS
from data.readers.chexpert_plus import read_chexpert_plus
from data.readers.iu_xray import read_iu_rexrank, read_kaggle, read_openi, read_r2gen
from data.readers.manifest import manifest_records, manifest_row
from data.readers.mimic_cxr import LABELS, read_mimic_cxr
from data.readers.records import Record, Unread
from data.readers.rexgradient import read_rexgradient
from data.readers.rexrank import read_rexrank
from data.readers.tables import CHUNK, members, rows
from data.splits import split_of_patient


def write_csv(path, header, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.StringIO()
    csv.writer(content).writerows([header.split(",") if isinstance(header, str) else header, *lines])
    encoded = content.getvalue().encode()
    path.write_bytes(gzip.compress(encoded) if path.suffix == ".gz" else encoded)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def studies_of(records):
    return [record.study for record in records]


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


OPENI = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><meta type="rr"/><uId id="CXR{number}"/><licenseType>open-access</licenseType>
<MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText>
<AbstractText Label="INDICATION">{indication}</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract></Article></MedlineCitation>
<MeSH><major>Cardiomegaly/mild</major><major>Opacity/lung/base   </major><automatic>heart</automatic></MeSH>
{images}</eCitation>"""


def openi(root, number, names, *, findings="", impression="", indication=""):
    images = "".join(f'<parentImage id="{name}"><figureId>F1</figureId></parentImage>' for name in names)
    text = OPENI.format(number=number, findings=findings, impression=impression, indication=indication, images=images)
    path = root / f"NLMCXR_reports/ecgen-radiology/{number}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


CASES = {
    "1": ("Clear &amp; dry.", "Normal.", ["1_IM-0001-4001", "1_IM-0001-3001"]),
    "23": ("Large heart.", "", ["23_IM-0879-1001", "23_IM-0879-2001"]),
}


@pytest.fixture
def iu(tmp_path):
    """The same two studies in all four forms, each in a folder of its own."""
    roots = {name: tmp_path / name for name in ("openi", "kaggle", "r2gen", "rexrank")}
    projections, reports, annotation, rexrank = [], [], {"train": [], "val": [], "test": []}, {}
    for (number, (findings, impression, names)), split in zip(CASES.items(), ("train", "test"), strict=True):
        # both ways in which Open-i names images
        stems = [f"CXR1_{name}" if number == "1" else f"CXR{name}" for name in names]
        openi(roots["openi"], number, stems, findings=findings, impression=impression, indication="Cough.")
        touch(roots["openi"] / f"NLMCXR_png/{stems[0]}.png")
        findings = findings.replace("&amp;", "&")
        views = ["Frontal", "Lateral"]
        projections += [[number, f"{name}.dcm.png", view] for name, view in zip(names, views, strict=True)]
        reports.append([number, "Cardiomegaly/mild;Opacity/lung/base", "", "", "Cough.", "None.", findings, impression])
        study, images = f"CXR{number}_IM-0879", [f"CXR{number}_IM-0879/{i}.png" for i in range(2)]
        annotation[split].append({"id": study, "report": findings, "image_path": images, "split": split})
        rexrank[study] = {
            "key_image_path": images[0], "image_path": images, "frontal_lateral": views, "split": split,
            "report": f"Findings: {findings} Impression: {impression}", "section_findings": findings,
            "section_impression": impression or float("nan"), "context": "Indication: Cough. Comparison: None.",
        }  # fmt: skip
    for name in ("openi", "kaggle", "r2gen"):
        write_csv(roots[name] / "indiana_projections.csv", "uid,filename,projection", *projections)
        write_json(roots[name] / "annotation.json", annotation)
    header = "uid,MeSH,Problems,image,indication,comparison,findings,impression"
    for name in ("kaggle", "r2gen"):
        write_csv(roots[name] / "indiana_reports.csv", header, *reports)
    write_json(roots["rexrank"] / "iu.json", rexrank)
    return roots


def test_the_four_forms_of_iu_xray_give_the_same_studies(iu):
    readers = {"openi": read_openi, "kaggle": read_kaggle, "r2gen": read_r2gen, "rexrank": read_iu_rexrank}
    read = {name: list(reader(iu[name])) for name, reader in readers.items()}
    bare = {
        name: [replace(study, images=(), views=(), labels={}) for study in studies_of(records)]
        for name, records in read.items()
    }
    assert bare["openi"] == bare["kaggle"] == bare["r2gen"] == bare["rexrank"]
    first, second = bare["openi"]
    assert (first.id, first.patient_id, first.split, first.findings) == ("CXR1", "1", "train", "Clear & dry.")
    assert (second.id, second.split, second.impression, second.indication) == ("CXR23", "test", "", "Cough.")
    assert [record.sections for record in read["rexrank"]] == ["ok", "missing_impression"]
    for name in ("openi", "kaggle"):
        assert all(study.labels == {"Cardiomegaly/mild": 1, "Opacity/lung/base": 1} for study in studies_of(read[name]))
    for name in ("openi", "kaggle", "rexrank"):
        assert all(study.views == ("Frontal", "Lateral") for study in studies_of(read[name]))
    assert read["openi"][0].study.images[0] == iu["openi"] / "NLMCXR_png/CXR1_1_IM-0001-4001.png"
    assert read["kaggle"][1].study.images[1] == iu["kaggle"] / "images/images_normalized/23_IM-0879-2001.dcm.png"
    assert read["r2gen"][1].study.images[1] == iu["r2gen"] / "images/CXR23_IM-0879/1.png"


def test_iu_xray_without_the_annotation_is_split_by_patient(iu):
    for name, reader in (("openi", read_openi), ("kaggle", read_kaggle)):
        (iu[name] / "annotation.json").unlink()
        assert [study.split for study in studies_of(reader(iu[name]))] == [
            split_of_patient(number, (70, 10, 20)) for number in CASES
        ]


def test_iu_xray_study_outside_the_annotation_and_broken_xml_are_named(iu):
    openi(iu["openi"], "7", [], findings="Clear.")
    (iu["openi"] / "NLMCXR_reports/ecgen-radiology/8.xml").write_text("<eCitation><uId")
    unread = [item for item in read_openi(iu["openi"]) if isinstance(item, Unread)]
    assert [(item.id, item.reason) for item in unread] == [
        ("CXR7", "not in the split of annotation.json"),
        ("8.xml", "report file unreadable"),
    ]


def test_the_forms_of_iu_xray_agree_on_the_real_studies(shared, tmp_path):
    """The tables, the ReXrank JSON and the manifest as they are; Open-i and R2Gen written from them."""
    folder = shared / "data/iu_xray"
    manifest = {record.study.patient_id: record.study for record in manifest_records(folder / "manifest.jsonl")}
    kaggle = {study.patient_id: study for study in studies_of(read_kaggle(folder))}
    annotation = {"train": [], "val": [], "test": []}
    for study in manifest.values():
        paths = [f"{study.id}/{i}.png" for i in range(len(study.images))]
        annotation[study.split].append({"id": study.id, "report": study.findings, "image_path": paths})
    for name in ("r2gen", "openi"):
        write_json(tmp_path / name / "annotation.json", annotation)
        for table in ("indiana_reports.csv", "indiana_projections.csv"):
            (tmp_path / name / table).symlink_to(folder / table)
    for number, study in kaggle.items():
        names = [f"CXR{path.name.removesuffix('.dcm.png')}" for path in study.images]
        texts = {
            name: getattr(study, name).replace("&", "&amp;").replace("<", "&lt;") for name in ("findings", "impression")
        }
        openi(tmp_path / "openi", number, names, **texts)
    (tmp_path / "rexrank").mkdir()
    (tmp_path / "rexrank/ReXRank_IUXray_valid.json").symlink_to(folder / "iu_valid.json")
    rexrank, r2gen, xml = (
        {item.study.patient_id: item.study for item in reader(tmp_path / name) if isinstance(item, Record)}
        for name, reader in (("rexrank", read_iu_rexrank), ("r2gen", read_r2gen), ("openi", read_openi))
    )
    assert (len(manifest), len(kaggle), len(rexrank), len(r2gen), len(xml)) == (2216, 3112, 296, 2216, 2216)
    assert rexrank.keys() <= manifest.keys() == r2gen.keys() == xml.keys() <= kaggle.keys()
    for number, study in manifest.items():
        forms = [form[number] for form in (kaggle, r2gen, xml, rexrank) if number in form]
        sections = {(form.findings, form.impression) for form in (study, *forms)}
        assert len(sections) == 1, f"{study.id}: {sections}"
        assert {form.id for form in forms} == {f"CXR{number}"}
        assert {form.split for form in (study, *forms[1:])} == {study.split}, study.id
        views = dict(
            zip((path.name.split(".")[0] for path in kaggle[number].images), kaggle[number].views, strict=True)
        )
        assert tuple(views[path.stem] for path in study.images) == study.views
        assert views == {
            path.stem.removeprefix("CXR"): view
            for path, view in zip(xml[number].images, xml[number].views, strict=True)
        }


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
    assert (valid.study.split, valid.study.impression, valid.sections) == ("val", "", "missing_impression")


def test_image_paths_that_lead_out_of_the_dataset_are_refused(rexgradient, iu):
    path = rexgradient / "metadata/valid_metadata_view_position.json"
    write_json(path, {"v": {"PatientID": "x", "ImagePath": ["../../secret.png"], "ImageViewPosition": ["PA"]}})
    with pytest.raises(ValueError, match=r"expected a file inside .* got '../../secret.png'"):
        list(read_rexgradient(rexgradient))
    write_csv(iu["kaggle"] / "indiana_projections.csv", "uid,filename,projection", ["1", "/etc/passwd", "Frontal"])
    with pytest.raises(ValueError, match=r"expected a file inside .* got '/etc/passwd'"):
        list(read_kaggle(iu["kaggle"]))


def test_chexpert_plus_by_hand(tmp_path):
    def row(path, side, position, order, split="train", findings="", impression="Normal."):
        values = dict.fromkeys(CHEXPERT_PLUS_COLUMNS, "")
        values |= {
            "path_to_image": path, "path_to_dcm": path.replace(".jpg", ".dcm"), "frontal_lateral": side,
            "ap_pa": position, "deid_patient_id": path.split("/")[1], "patient_report_date_order": order,
            "split": split, "section_findings": findings, "section_impression": impression, "section_history": "Cough.",
        }  # fmt: skip
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
    assert (second.study.split, second.sections, second.study.indication) == ("val", "missing_findings", "Cough.")


def test_rexrank_of_another_dataset_keeps_its_ids(tmp_path):
    case = {"image_path": ["p/1.png", "p/2.png"], "section_findings": "None", "section_impression": "Normal."}
    odd = {**case, "section_findings": "Clear.", "frontal_lateral": ["Frontal", "Lateral", "Frontal"], "subject_id": 7}
    write_json(tmp_path / "mimic_test.json", {"a": case, "b": odd})
    first, second = read_rexrank(tmp_path)
    assert (first.study.id, first.study.split, first.sections) == ("a", "test", "missing_findings")
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
    assert second.sections == "missing_impression"
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


def test_a_large_json_object_is_read_in_pieces_like_the_whole(tmp_path):
    # members larger than a piece, brackets and escapes inside texts, and the end of a piece anywhere
    content = {f"k{i}}}": {"text": '"}, {' * (i * CHUNK // 40), "n": [i, None]} for i in range(12)}
    for indent in (None, 2):
        path = tmp_path / "large.json"
        path.write_text(json.dumps(content, indent=indent))
        assert dict(members(path)) == content
    path.write_text(json.dumps(content)[:-30])
    with pytest.raises(ValueError, match=r"large.json: the file is cut short"):
        dict(members(path))


def test_table_rows_by_hand_and_what_is_wrong_with_a_table(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('\ufeffa,b,c\n1,"x\ny",3\n\n4,5,6\n', encoding="utf-8")
    assert list(rows(path, ("c", "a"), optional=("d", "b"))) == [("3", "1", "", "x\ny"), ("6", "4", "", "5")]
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
