"""A manifest as people write it: other spellings of its keys, reports instead of sections, splits, and damage."""

import json
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from damage import damage

from radflow.data.readers.manifest import read_manifest

ROW = {"id": "a", "patient_id": "7", "images": ["x.jpg"], "findings": "Clear.", "impression": "Normal.", "split": "val"}
REPORT = {"id": "a", "images": ["x.jpg"], "report": "FINDINGS: Clear.\nIMPRESSION: Normal.", "split": "train"}


def read(tmp_path, *rows, start=b"", end="\n", encoding="utf-8", **options):
    path = tmp_path / "m.jsonl"
    path.write_bytes(
        start + end.join(json.dumps(row) if isinstance(row, dict) else row for row in rows).encode(encoding)
    )
    return read_manifest(path, **options)


@pytest.mark.parametrize(
    "row",
    [
        {
            "study_id": "a",
            "patient": "7",
            "image": "x.jpg",
            "findings": "Clear.",
            "impression": "Normal.",
            "set": "val",
        },
        {**ROW, "patient_id": None, "PatientID": 7},
        {**{key: ROW[key] for key in ROW if key != "patient_id"}, "subject-id": 7.0, "study_id": 99},
        {**ROW, "split": "validation", "indication": float("nan"), "comparison": None},
    ],
)
def test_usual_spellings_are_read(tmp_path, row):
    assert read(tmp_path, row) == read(tmp_path, ROW)


def test_a_report_is_divided_at_its_headers(tmp_path):
    (study,) = read(tmp_path, REPORT)
    assert (study.findings, study.impression) == ("Clear.", "Normal.")
    with pytest.raises(ValueError, match=r"m.jsonl:2: expected either report or findings and impression, got both"):
        read(tmp_path, REPORT, {**REPORT, "findings": "Clear."})


def test_keys_that_mean_nothing_are_named_once(tmp_path):
    with pytest.warns(UserWarning, match="not read") as caught:
        read(tmp_path, *[{**ROW, "id": name, "impresion": "x", "age": 3} for name in "abc"])
    (told,) = [str(one.message) for one in caught]
    assert "impresion (3 times; did you mean impression?), age (3 times)" in told


def test_spellings_that_differ_are_refused(tmp_path):
    row = {key: ROW[key] for key in ROW if key != "patient_id"}
    with pytest.raises(ValueError, match=r"m.jsonl:2: key 'patient_id': 'patient' is 1 and 'mrn' is 2; keep one"):
        read(tmp_path, ROW, {**row, "patient": 1, "mrn": 2})


def test_without_any_split_patients_are_divided_and_it_is_said(tmp_path):
    # 29 patients under the key "patient" once counted as 60, so that nobody saw them in two splits
    row = {key: ROW[key] for key in ROW if key not in ("split", "patient_id")}
    rows = [{**row, "id": f"s{number}", "patient": f"p{number % 29}"} for number in range(60)]
    with pytest.warns(UserWarning, match=r"no study has a split; patients are divided \(70, 10, 20\)"):
        studies = read(tmp_path, *rows)
    splits = {study.patient_id: study.split for study in studies}
    assert len(splits) == 29 and all(study.split == splits[study.patient_id] for study in studies)
    assert set(splits.values()) == {"train", "val", "test"}
    with pytest.warns(UserWarning, match="2 studies without a split are trained on"):
        assert [study.split for study in read(tmp_path, *rows[:2], ROW)] == ["train", "train", "val"]


def test_absolute_image_paths_need_a_root_that_holds_them(tmp_path):
    row = {**ROW, "images": ["/data/images/x.png"]}
    with pytest.raises(ValueError, match=r"m.jsonl:1: expected a file inside .* or the image_root to a folder that"):
        read(tmp_path, row)
    for root in ("/data", "/"):
        (study,) = read(tmp_path, row, image_root=Path(root))
        assert str(study.images[0]) == "/data/images/x.png"


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_marks_and_line_ends_of_windows(tmp_path, start, end):
    assert [s.id for s in read(tmp_path, ROW, {**ROW, "id": "b"}, start=start, end=end)] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (json.dumps({**ROW, "id": ["a"]}), "expected an id as text or whole number, got ['a']"),
        (json.dumps({**ROW, "id": 1.5}), "expected an id as text or whole number, got 1.5"),
        (json.dumps({**ROW, "patient_id": True}), "expected an id as text or whole number, got True"),
        (json.dumps({**ROW, "images": [["x.png"]]}), "key 'images': expected a list of names"),
        (json.dumps({**ROW, "split": 3}), "expected a split among"),
        ('{"id": "a", "id": "b"}', "expected each key once, got 'id' several times"),
        ('{"id": ' + "[" * 100_000, "nested too deeply"),
        (json.dumps(ROW).replace("Clear.", "\\ud83d"), "key 'findings': expected text, got half of a surrogate pair"),
        (json.dumps(ROW).replace("Clear.", "\\u0000"), "key 'findings': expected text, got the character NUL"),
        (json.dumps(ROW)[:-9], "m.jsonl:2: "),
        ('{"id": ' + "9" * 5000 + "}", "m.jsonl:2: "),
    ],
)
def test_what_is_wrong_with_a_line_is_named(tmp_path, line, said):
    with pytest.raises(ValueError) as caught:
        read(tmp_path, ROW, line)
    assert said in str(caught.value) and "m.jsonl:2: " in str(caught.value)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"m.jsonl: expected a JSONL manifest in UTF-8"):
        read(tmp_path, json.dumps({**ROW, "findings": "Größe"}, ensure_ascii=False), encoding="latin-1")


KEYS = [*ROW, "report", "views", "labels", "prior_images", "indication", "date", "patient", "image", "study_id", "x"]
VALUES = [
    None,
    True,
    7,
    7.0,
    1.5,
    1e400,
    float("nan"),
    "",
    "x",
    "nan",
    "\ud800",
    "\0",
    [],
    ["x"],
    [3],
    [[]],
    {},
    {"a": 9},
]


def test_a_changed_line_is_read_or_named(tmp_path):
    rng, path, seen = np.random.default_rng(0), tmp_path / "m.jsonl", Counter[bool]()
    for _ in range(3000):
        changes = {KEYS[rng.integers(len(KEYS))]: VALUES[rng.integers(len(VALUES))] for _ in range(rng.integers(3))}
        line = json.dumps({key: value for key, value in (ROW | changes).items() if rng.random() < 0.97}).encode()
        path.write_bytes(json.dumps(REPORT).encode() + b"\n" + (damage(line, rng) if rng.random() < 0.3 else line))
        try:
            with warnings.catch_warnings(action="ignore"):
                studies = read_manifest(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}:") and "\n" not in str(error)
            seen[False] += 1
            continue
        seen[True] += 1
        assert studies[0].id == "a" and len(studies) in (1, 2, 3)
        for study in studies:
            assert all(type(text) is str for text in (study.id, study.patient_id, study.findings, study.impression))
            assert study.split in ("train", "val", "test") and len(study.views) in (0, len(study.images))
    assert min(seen.values()) > 500
