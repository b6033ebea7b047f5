"""From a folder to a manifest: rules, splits, priors, views, what is refused; the contact sheet."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from radflow.__main__ import main
from radflow.data import browse
from radflow.data.integrity import RULES, IntegrityConfig
from radflow.data.prepare import READERS, PrepareConfig, prepare
from radflow.data.readers.manifest import read_manifest
from radflow.data.readers.records import Record, Unread, images_inside
from radflow.data.studies import Study, check_studies

LONG = "Clear lungs and a normal heart."


def record(root, name, split="train", patient=None, *, findings=LONG, views=("PA",), images=1, **changes):
    paths = tuple(root / f"{name}_{i}.png" for i in range(images))
    study = Study(name, patient or name, split, paths, findings, "Normal chest.", views=views[:images])
    fields = {key: changes.pop(key) for key in ("ambiguous", "date", "utf8") if key in changes}
    return Record(dataclasses.replace(study, **changes), **fields)


def run(tmp_path, records, **config):
    integrity = IntegrityConfig(**{key: config.pop(key) for key in list(config) if hasattr(IntegrityConfig, key)})
    options = PrepareConfig(**config, integrity=integrity)
    summary = prepare(records, options, root=tmp_path, out=tmp_path / "out.jsonl")
    return summary, read_manifest(tmp_path / "out.jsonl")


def test_a_clean_set_is_written_as_it_is_read(tmp_path):
    records = [record(tmp_path, "a"), record(tmp_path, "b", "val", findings="Wet."), Unread("c", "report file missing")]
    summary, studies = run(tmp_path, records)
    assert studies == [item.study for item in records[:2]]
    assert (summary.read, summary.studies, summary.patients, summary.images) == (3, 2, 2, 2)
    assert summary.dropped == {"report file missing": ["c"]} and not summary.reported
    assert json.loads((tmp_path / "out.jsonl.summary.json").read_text())["splits"] == {"train": 1, "val": 1, "test": 0}


BROKEN = {
    "duplicate_id": lambda root: record(root, "a", findings="Another."),
    "patient_in_two_splits": lambda root: record(root, "x", "train", "t", findings="Another."),
    "report_in_two_splits": lambda root: record(root, "x", "val", findings=f"  {LONG.upper()}\n"),
    "no_image": lambda root: record(root, "x", findings="Else.", images=0),
    "no_findings": lambda root: record(root, "x", findings=" ", impression="No acute disease."),
    "no_impression": lambda root: record(root, "x", impression=""),
    "ambiguous_sections": lambda root: record(root, "x", findings="Else.", ambiguous=True),
    "short_report": lambda root: record(root, "x", findings="Clear.", impression="Ok."),
    "long_report": lambda root: record(root, "x", findings="word " * 900),
    "not_utf8": lambda root: record(root, "x", findings="37° angle.", utf8=False),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_each_rule_keeps_drops_or_stops_as_it_is_told(tmp_path, rule):
    good = [record(tmp_path, "a", "train", findings="First report."), record(tmp_path, "t", "test")]
    records = [*good, BROKEN[rule](tmp_path)]
    name = records[-1].study.id
    summary, studies = run(tmp_path, records, **{rule: "drop"})
    assert [study.id for study in studies] == ["a", "t"] and [*summary.dropped] == [rule]
    assert summary.dropped[rule][0].startswith(name) and not summary.reported
    (tmp_path / "out.jsonl").unlink()
    with pytest.raises(ValueError, match=rf"nothing was written(.|\n)*{rule.replace('_', ' ')}: 1 \({name}"):
        run(tmp_path, records, **{rule: "fatal"})
    assert not (tmp_path / "out.jsonl").exists()
    summary, studies = run(tmp_path, records, **{rule: "keep"})
    assert [study.id for study in studies] == ["a", "t", name] and [*summary.reported] == [rule]


def test_every_rule_is_tested_or_needs_images():
    assert set(RULES) == {*BROKEN, "unreadable_image", "image_in_two_splits"}


def test_a_patient_of_two_splits_stays_where_it_is_most_precious(tmp_path):
    # whichever comes first: dropping the test study would make results incomparable with the published ones
    studies = [record(tmp_path, name, split, "p", findings=name) for name, split in (("a", "test"), ("b", "train"))]
    for order in (studies, studies[::-1]):
        _, kept = run(tmp_path, order, patient_in_two_splits="drop")
        assert [study.id for study in kept] == ["a"]


def test_a_study_that_is_dropped_anyway_does_not_condemn_its_patient(tmp_path):
    records = [record(tmp_path, "a", "train", "p"), record(tmp_path, "b", "test", "p", findings="")]
    summary, kept = run(tmp_path, records)
    assert [study.id for study in kept] == ["a"] and [*summary.dropped] == ["no_findings"]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("pqr"), st.sampled_from(["train", "val", "test"]))))
def test_what_is_written_passes_the_checks_of_training(tmp_path_factory, drawn):
    root = tmp_path_factory.mktemp("drawn")
    records = [record(root, name, split, patient) for name, patient, split in drawn]
    config = PrepareConfig(integrity=IntegrityConfig(duplicate_id="drop", patient_in_two_splits="drop"))
    if not records:
        with pytest.raises(ValueError, match="no study is left"):
            prepare(records, config, root=root, out=root / "out.jsonl")
        return
    summary = prepare(records, config, root=root, out=root / "out.jsonl")
    kept = read_manifest(root / "out.jsonl")
    check_studies(kept)
    assert len(kept) + sum(map(len, summary.dropped.values())) == summary.read == len(records)


@pytest.fixture
def drawn(tmp_path):
    """Three images: b shows what a shows, in another file format; c is cut short."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a_0.png")
    Image.fromarray(pixels).save(tmp_path / "b_0.png", compress_level=0)
    Image.fromarray(255 - pixels).save(tmp_path / "c_0.png")
    (tmp_path / "c_0.png").write_bytes((tmp_path / "c_0.png").read_bytes()[:-200])
    records = [record(tmp_path, "a"), record(tmp_path, "b", "test"), record(tmp_path, "c"), record(tmp_path, "d")]
    return [dataclasses.replace(r, study=dataclasses.replace(r.study, findings=r.study.id * 9)) for r in records]


@pytest.mark.parametrize("workers", [0, 3])
def test_images_are_checked_when_asked_for(tmp_path, drawn, workers):
    summary, kept = run(tmp_path, drawn, check_images=True, workers=workers)
    assert [study.id for study in kept] == ["b"]
    assert summary.dropped["image_in_two_splits"] == ["a: in train, and in test with b"]
    assert re.match(r"c: study c: image .*c_0.png cannot be decoded", summary.dropped["unreadable_image"][0])
    assert re.match(r"d: study d: image .*d_0.png does not exist", summary.dropped["unreadable_image"][1])
    _, kept = run(tmp_path, drawn)
    assert len(kept) == 4


def test_frontal_images_come_first_and_alone_if_wanted(tmp_path):
    views = ("LATERAL", "", "AP", "PA")
    records = [record(tmp_path, "a", images=4, views=views), record(tmp_path, "b", views=("LL",), findings="Else.")]
    (first, _) = run(tmp_path, records)[1]
    assert first.views == ("PA", "AP", "", "LATERAL")
    assert [path.name for path in first.images] == ["a_3.png", "a_2.png", "a_1.png", "a_0.png"]
    summary, kept = run(tmp_path, records, views="frontal")
    assert [study.views for study in kept] == [("PA", "AP")] and summary.dropped == {"no_image": ["b"]}
    assert run(tmp_path, records, views="one_frontal")[1][0].views == ("PA",)


def test_the_prior_is_the_last_study_of_an_earlier_date(tmp_path):
    def dated(name, date, patient="p", **more):
        return record(tmp_path, name, patient=patient, findings=name, date=date, **more)

    records = [
        dated("c", "20200301"),
        dated("a", "20200101"),
        dated("b", "20200201"),
        dated("same day", "20200201"),
        dated("side", "20200401", views=("LATERAL",)),
        dated("after side", "20200501"),
        dated("other", "20200601", patient="q"),
        dated("undated", ""),
    ]
    found = {study.id: [path.name for path in study.prior_images] for study in run(tmp_path, records, prior=True)[1]}
    assert found == {
        "a": [],
        "b": ["a_0.png"],
        "same day": ["a_0.png"],
        "c": ["same day_0.png"],
        "side": ["c_0.png"],
        "after side": [],  # the preceding study has no frontal image
        "other": [],
        "undated": [],
    }
    assert not any(study.prior_images for study in run(tmp_path, records)[1])


def test_a_study_whose_images_are_broken_is_no_prior(tmp_path, drawn):
    dated = [
        dataclasses.replace(r, date=f"2020010{i}", study=dataclasses.replace(r.study, patient_id="p", split="train"))
        for i, r in enumerate([drawn[2], drawn[1]])
    ]
    _, (kept,) = run(tmp_path, dated, prior=True, check_images=True)
    assert kept.id == "b" and kept.prior_images == ()
    unchecked = run(tmp_path, dated, prior=True)[1]
    assert unchecked[1].prior_images == (tmp_path / "c_0.png",)


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/etc/passwd", "..", "a/..", ""])
def test_names_that_lead_out_of_the_root_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="expected a file inside"):
        images_inside(tmp_path, [name])
    line = json.dumps({"id": "a", "images": [name], "findings": "Clear."})
    (tmp_path / "manifest.jsonl").write_text(line)
    with pytest.raises(ValueError, match=r"manifest.jsonl:1: expected a file inside"):
        read_manifest(tmp_path / "manifest.jsonl")


def test_names_within_the_root_may_turn_back(tmp_path):
    assert images_inside(tmp_path, ["../images/x.png"], start="metadata") == (tmp_path / "images/x.png",)
    assert images_inside(tmp_path, [str(tmp_path / "x.png")]) == (tmp_path / "x.png",)
    with pytest.raises(ValueError, match="expected a file inside"):
        images_inside(tmp_path / "images", [str(tmp_path / "images2/x.png")])


def test_the_command_writes_prints_and_says_how_to_go_on(tmp_path, capsys):
    lines = [{"id": "a", "images": ["a.png"], "findings": LONG, "split": "val"}, {"id": "b", "images": ["b.png"]}]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "new/out.jsonl"
    main(["prepare", "manifest", "--root", str(tmp_path), "--out", str(out), "--no-impression", "keep"])
    printed = capsys.readouterr().out
    assert "studies 1 of 2 (train 0, val 1, test 0)" in printed and "no findings: 1 (b)" in printed
    assert f"--data.manifest {out} --data.image-root {tmp_path}" in printed
    (study,) = read_manifest(out, image_root=tmp_path)
    assert study.images == (tmp_path / "a.png",)


def test_each_reader_says_what_it_misses(tmp_path, capsys):
    for name in READERS:
        with pytest.raises(SystemExit, match=r"error: .*(expected|cannot be read)"):
            main(["prepare", name, "--root", str(tmp_path), "--out", str(tmp_path / "o.jsonl")])
        assert not (tmp_path / "o.jsonl").exists()
    with pytest.raises(SystemExit, match=r"error: expected the folder of the dataset"):
        main(["prepare", "manifest", "--root", str(tmp_path / "absent"), "--out", str(tmp_path / "o.jsonl")])


class Page(HTMLParser):
    """Tags, links and text of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def test_the_contact_sheet_shows_studies_and_runs_no_text_as_html(tmp_path, capsys):
    evil = '<script>alert("x")</script> & more'
    Image.fromarray(np.zeros((50, 40), dtype=np.uint8)).save(tmp_path / "x.png")
    labels = {evil: -1, "Edema": 1, "Fracture": 0}
    rows = [
        {"id": evil, "images": ["x.png"], "views": [evil], "findings": evil, "labels": labels},
        {"id": "broken", "images": ["gone.png"], "findings": "Clear.", "split": "val"},
        {"id": "third", "images": ["x.png"], "findings": "Third.", "prior_images": ["x.png"]},
    ]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    browse.main([str(manifest)])
    page = Page()
    page.feed((tmp_path / "m.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags and page.tags.count("img") == 3 and page.tags.count("article") == 3
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)  # no other file is needed
    assert page.text.count(evil) == 5 and "uncertain: <script>" in page.text and "Edema" in page.text
    assert "Fracture" not in page.text and "gone.png does not exist" in page.text
    browse.main([str(manifest), "--count", "1", "--split", "val", "--out", str(tmp_path / "v.html")])
    assert "broken" in (tmp_path / "v.html").read_text() and "third" not in (tmp_path / "v.html").read_text()
    browse.main([str(manifest), "--ids", "third", "--out", str(tmp_path / "v.html")])
    assert "third" in (tmp_path / "v.html").read_text()
    with pytest.raises(SystemExit, match=r"error: .*has no study in the split test"):
        browse.main([str(manifest), "--split", "test"])
