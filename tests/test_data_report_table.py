"""A table of reports and a folder of images: columns, separators, encodings, ids and names as people have them."""

import json

import numpy as np
import pytest
from PIL import Image

from radflow.__main__ import main
from radflow.data.readers.manifest import read_manifest
from radflow.data.readers.records import Unread
from radflow.data.readers.report_table import ColumnConfig, read_report_table

REPORT = "Findings: Clear lungs. Impression: Normal."


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    for name in (
        "s1.png",
        "s2_pa.png",
        "s2_lat.png",
        "s2_9/x.png",
        "s2_9_pa.png",
        "deep/s3/1.png",
        "deep/s3/2.png",
        "other.png",
    ):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(images / name)
    return images


def read(folder, content, **columns):
    path = folder.parent / "reports.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_report_table(path, folder, ColumnConfig(**{f"{key}_column": name for key, name in columns.items()}))


def shown(table, folder):
    studies = [record.study for record in table.records]
    return {study.id: [str(path.relative_to(folder)) for path in study.images] for study in studies}


def test_images_belong_to_the_id_that_their_name_or_folder_has(folder):
    table = read(folder, "id,report\n" + "".join(f"{name},{REPORT}\n" for name in ("s1", "s2", "s2_9", "s3", "s4")))
    assert shown(table, folder) == {
        "s1": ["s1.png"],
        "s2": ["s2_lat.png", "s2_pa.png"],
        "s2_9": ["s2_9_pa.png", "s2_9/x.png"],
        "s3": ["deep/s3/1.png", "deep/s3/2.png"],
        "s4": [],
    }
    study = table.records[0].study
    assert (study.findings, study.impression, study.patient_id) == ("Clear lungs.", "Normal.", "s1")
    told = "\n".join(table.told)
    assert "no column of patients" in told and "no column of splits" in told and "1 files" in told and "other" in told


@pytest.mark.parametrize("header", ["StudyID,Report Text,Image_Path,MRN", "study id;REPORT;filename;Patient-ID"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_of_every_program_are_read(folder, header, encoding, end):
    separator = ";" if ";" in header else ","
    row = separator.join(["s1", '"Findings: Größe normal,\nclear. Impression: Normal."', "s2_pa.png", "7"])
    table = read(folder, f"{header}{end}{row}{end}".encode(encoding))
    (record,) = table.records
    assert record.study.findings == "Größe normal,\nclear." and record.study.patient_id == "7"
    assert shown(table, folder) == {"s1": ["s2_pa.png"]} and record.utf8 == (encoding != "cp1252")


def test_rows_of_one_study_are_its_images(folder):
    rows = [
        "study_id,image,view,findings,impression,split",
        "s2,s2_pa,PA,Clear.,Normal.,validate",
        f"s2,{folder}/s2_lat.png,LATERAL,Clear.,Normal.,validate",
        "s3,C:\\export\\other.png;s1.png,,Wet.,Edema.,test",
    ]
    table = read(folder, "\n".join(rows))
    assert shown(table, folder) == {"s2": ["s2_pa.png", "s2_lat.png"], "s3": ["other.png", "s1.png"]}
    first, second = (record.study for record in table.records)
    assert first.views == ("PA", "LATERAL") and (first.split, second.split) == ("val", "test")
    with pytest.raises(
        ValueError, match=r"csv:3: study s2: expected one findings per study, got another one in line 2"
    ):
        read(folder, "\n".join([*rows[:2], rows[2].replace("Clear", "Wet")]))


def test_images_that_are_not_there_are_listed(folder):
    table = read(folder, f"id,report,image\ns1,{REPORT},gone.png\ns2,{REPORT},deep/s3/1.png\ns3,{REPORT},\n")
    assert table.records[0] == Unread("s1", "image not found", "gone.png")
    with pytest.raises(ValueError, match=r"study s1: expected one file 1 in .*, got deep/s3/1.png and more/1.png"):
        (folder / "more").mkdir()
        (folder / "more/1.png").write_bytes(b"")
        read(folder, f"id,report,image\ns1,{REPORT},1\n")


def test_ids_that_a_spreadsheet_made_floats(folder):
    (folder / "50414267.png").write_bytes(b"")
    table = read(folder, f"id,report,patient\n50414267.0,{REPORT},12.0\n53189527.0,{REPORT},\n")
    assert [record.study.id for record in table.records] == ["50414267", "53189527"]
    assert [record.study.patient_id for record in table.records] == ["12", "53189527"]
    assert shown(table, folder)["50414267"] == ["50414267.png"]
    kept = read(folder, f"id,report\n1.0,{REPORT}\n1.1,{REPORT}\n")  # numbers of versions, say
    assert [record.study.id for record in kept.records] == ["1.0", "1.1"]
    with pytest.raises(ValueError, match=r"got 5.04E\+07, which a spreadsheet shortened"):
        read(folder, f"id,report\n5.04E+07,{REPORT}\n")


@pytest.mark.parametrize(
    ("content", "columns", "said"),
    [
        ("", {}, "expected a column of id, the table has"),
        ("id,report\n", {}, "expected a row per study below the header, got none"),
        (
            f"name,report\ns1,{REPORT}\n",
            {},
            "a column of id, the table has name, report; name it as id_column",
        ),
        ("id,words\ns1,Clear.\n", {}, "expected a column of report or findings"),
        (f"id,report\ns1,{REPORT}\n", {"report": "txt"}, "expected a column 'txt' of report, the table has id, report"),
        ("id,text,narrative\ns1,a,b\n", {}, "expected one column of report, got text and narrative; choose one as"),
        (f"id,report,report\ns1,{REPORT},b\n", {}, "expected each column once, got report"),
        (f"id,report\ns1,{REPORT},more\n", {}, ":2: expected 2 fields, as in the header, got 3"),
        (f"id,report\n,{REPORT}\n", {}, ":2: expected an id in the column 'id', got none"),
        (f'id,report\ns1,"{REPORT}\n', {}, ":2: unexpected end of data"),
        (f"id,report,split\ns1,{REPORT},later\n", {}, ":2: study s1: expected a split among"),
        (b"PK\x03\x04", {}, "got a workbook or archive; save it as CSV"),
        (b"id,report\ns1,a\x00b\n", {}, "expected text, got the character NUL"),
        (b"id,report\ns1,a\x81b\n", {}, "can't decode byte 0x81"),
    ],
)
def test_what_is_wrong_is_named(folder, content, columns, said):
    with pytest.raises(ValueError) as caught:
        read(folder, content, **columns)
    assert said in str(caught.value) and str(caught.value).startswith(str(folder.parent / "reports.csv"))


def test_the_command_shows_what_it_understood(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    rows = "".join(f"s{number},{REPORT.replace('lungs', f'lungs {number}')},P1\n" for number in (1, 2, 3, 4))
    (folder.parent / "r.csv").write_text("Accession,Report,Patient\n" + rows)
    main(["prepare", "csv", "--reports", "r.csv", "--images", "images"])
    printed = capsys.readouterr().out
    assert "columns: id from 'Accession', report from 'Report', patient_id from 'Patient'" in printed
    assert "  s2: patient P1, " in printed
    assert "s2_lat.png, s2_pa.png; Findings and Impression: Clear lungs 2. | Normal." in printed
    assert "no image: 1 (s4)" in printed and "--data.image-root images" in printed
    assert [study.id for study in read_manifest(folder.parent / "r.jsonl", image_root=folder)] == ["s1", "s2", "s3"]
    assert json.loads((folder.parent / "r.jsonl.summary.json").read_text())["read"] == 4
    with pytest.raises(SystemExit, match=r"error: expected another file to write than the table r.jsonl"):
        main(["prepare", "csv", "--reports", "r.jsonl", "--images", "images"])
    with pytest.raises(SystemExit, match="error: expected a folder of images at nowhere, not there"):
        main(["prepare", "csv", "--reports", "r.csv", "--images", "nowhere"])


def test_headers_of_a_site_divide_its_reports(folder):
    own = folder.parent / "headers.toml"
    own.write_text('[[header]]\nsection = "findings"\nreach = "line"\nnames = ["Løfunn"]\n', encoding="utf-8")
    (folder.parent / "r.csv").write_text('id,report\ns1,"Løfunn: Clear.\nImpression: Normal."\n', encoding="utf-8")
    words = ["csv", "--reports", str(folder.parent / "r.csv"), "--images", str(folder), "--out"]
    out = folder.parent / "m.jsonl"
    for options, findings in ((["--headers", str(own)], "Clear."), ([], "Løfunn: Clear.")):
        main(["prepare", *words, str(out), *options])
        (study,) = read_manifest(out, image_root=folder)
        assert (study.findings, study.impression) == (findings, "Normal.")
