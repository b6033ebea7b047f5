"""`evaluate.py cases`: which studies it shows, and the page in a real browser."""

import json
import re

import numpy as np
import pytest
from browser import Browser, chromium
from made_run import CONFIG, make_run, study_ids
from PIL import Image

from radflow import evaluate
from radflow.dashboard.studies import StudySource

EVIL = "<script>window.hacked = 1</script><img src=http://example.org/x onerror='window.hacked = 2'>"


@pytest.fixture
def files(tmp_path):
    """Two studies with images, and two systems."""
    rows = []
    for study_id in ("s1", "s2"):
        Image.fromarray(np.full((90, 60), 120, dtype=np.uint8)).save(tmp_path / f"{study_id}.png")
        rows.append(
            {
                "id": study_id,
                "split": "test",
                "images": [f"{study_id}.png"],
                "findings": "Small left effusion. No pneumothorax.",
                "impression": "Effusion.",
            }
        )
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    systems = {
        "a": {"s1": "Findings: No effusion. Impression: Normal.", "s2": f"Findings: {EVIL} Impression: {EVIL}"},
        "b": {"s1": "Findings: Left effusion. Impression: Effusion.", "s2": ""},
    }
    for name, reports in systems.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(reports))
    return tmp_path


def page(files, *options):
    out = files / "cases.html"
    predictions = [str(files / "a.json"), str(files / "b.json")]
    evaluate.main(
        ["cases", "--predictions", *predictions, "--manifest", str(files / "m.jsonl"), "--out", str(out), *options]
    )
    return out


def test_one_file_with_everything_in_it_and_nothing_of_a_report_alive(files):
    html = page(files).read_text()
    assert html.count("data:image/jpeg;base64,") == 2
    assert "<script" not in html and "<img src=http" not in html and "&lt;script&gt;" in html
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    title = "no pleural effusion: denied; the reference: mild left pleural effusion"
    assert f'<mark class="denied" title="{title}">effusion<sup>denied</sup></mark>' in html
    assert "No text." in html  # s2 of b


def test_named_studies_in_their_order_and_unknown_ones_refused(files):
    html = page(files, "--ids", "s2", "s1").read_text()
    assert html.index(">s2<") < html.index(">s1<")
    assert page(files, "--most", "1").read_text().count("<section>") == 1
    with pytest.raises(SystemExit, match="error: study q: expected it in every file, not found in references"):
        page(files, "--ids", "q")


def totals(html):
    """System -> the numbers at the page's head: right, inexact, wrong, denied, missed, other."""
    rows = re.findall(r'<tr><th scope="row" class="break">(.*?)</th>(.*?)</tr>', html)
    return {name: [int(count) for count in re.findall("<td>(.*?)</td>", cells)] for name, cells in rows}


def test_right_findings_and_errors_are_counted_by_hand(files):
    # a denies the effusion, which it misses then, and says nothing of it in s2; b leaves the grade out, then misses it
    html = page(files).read_text()
    assert totals(html) == {"a": [0, 0, 0, 1, 2, 0], "b": [0, 1, 0, 0, 1, 0]}
    assert '<p class="counts">0 right · 1 missed · 1 denied</p>' in html


def test_what_a_system_lacks_is_said_with_its_name(files, capsys):
    (files / "c.json").write_text(json.dumps({"s1": "Findings: Effusion."}))
    html = page(files, "--predictions", *(str(files / f"{name}.json") for name in "abc")).read_text()
    said = "1 studies that c lacks, not shown: s2"
    assert said in html and said in capsys.readouterr().out and html.count("<section>") == 1


def cases(*words):
    evaluate.main(["cases", *map(str, words)])


def test_a_run_folder_is_enough_and_its_images_are_those_of_the_run(tmp_path, capsys):
    folder, out = make_run(tmp_path / "demo", corpus=6), tmp_path / "c.html"
    cases(folder, "--out", out)
    html = out.read_text()
    # SFT made a pneumothorax of the effusion, in both sections; CAPO wrote nothing of it
    assert totals(html) == {"sft": [0, 0, 6, 0, 6, 0], "capo": [0, 0, 0, 0, 6, 0]}
    image = StudySource.of_config(CONFIG).images(study_ids(6)[0], 512)[0]
    assert image in html and "without an image" not in capsys.readouterr().out
    cases("--predictions", folder / "eval" / "capo.json", "--out", tmp_path / "one.html")
    assert image in (tmp_path / "one.html").read_text()
    cases("--predictions", folder, "--out", tmp_path / "same.html")
    assert (tmp_path / "same.html").read_text() == html
    (tmp_path / "mine.json").write_text(json.dumps(dict.fromkeys(study_ids(2), "Effusion.")))
    cases(folder, "--predictions", tmp_path / "mine.json", "--out", out)
    assert list(totals(out.read_text())) == ["sft", "capo", "mine"]
    assert "4 studies that mine lacks, not shown" in capsys.readouterr().out


def test_a_run_whose_manifest_moved_is_shown_without_images_and_says_so(tmp_path, capsys):
    data = {**CONFIG["data"], "source": "manifest", "manifest": str(tmp_path / "moved.jsonl")}
    folder = make_run(tmp_path / "mine", corpus=6, config={**CONFIG, "data": data})
    cases(folder, "--out", tmp_path / "c.html")
    assert "6 studies without an image on this machine" in capsys.readouterr().out
    assert (tmp_path / "c.html").read_text().count("no image here") == 6


def test_runs_over_other_studies_and_files_of_no_run_are_refused(tmp_path, files):
    folders = [make_run(tmp_path / name, corpus=6) for name in "xy"]
    path = folders[1] / "eval" / "references.json"
    path.write_text(path.read_text().replace("left", "right"))
    for words, said in (
        (
            folders,
            f"error: study {study_ids(1)[0]}: expected runs over the same studies, the references of .*x and .*y",
        ),
        ([tmp_path], "expected a run with held-out reports .* finish the run"),
        (["--predictions", files / "a.json"], "error: expected a manifest, or reports in the folder eval of a run"),
    ):
        with pytest.raises(SystemExit, match=said):
            cases(*words, "--out", tmp_path / "c.html")


def test_the_end_of_a_huge_report_that_is_not_read_is_said(files, capsys):
    (files / "a.json").write_text(json.dumps({"s1": "No edema. " * 3000 + "Effusion.", "s2": ""}))
    page(files)
    assert "1 texts are longer than 20,000 characters, their ends not shown and not read" in capsys.readouterr().out


@pytest.mark.skipif(chromium() is None, reason="needs Chromium; on Debian: apt install chromium")
def test_the_page_in_a_browser_is_quiet_coloured_and_fits_a_phone(files, tmp_path_factory):
    out = page(files)
    browser = Browser(tmp_path_factory.mktemp("profile"))
    try:
        for width, dark in ((1280, False), (390, True)):
            browser.open(out, width=width, dark=dark)
            assert not browser.problems and browser.run("typeof window.hacked") == "undefined"
            assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []
            assert browser.run("document.documentElement.scrollWidth") <= width
            assert browser.run("[...document.images].every(image => image.naturalWidth > 0)")
            colours = "getComputedStyle(document.querySelector('section mark.{}')).backgroundColor"
            shown = {browser.run(colours.format(kind)) for kind in ("inexact", "denied")}
            assert len(shown) == 2 and "rgba(0, 0, 0, 0)" not in shown
    finally:
        browser.close()
