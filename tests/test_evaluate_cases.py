"""`evaluate.py cases`: which studies it shows, and the page in a real browser."""

import json
import re

import numpy as np
import pytest
from browser import Browser, chromium
from PIL import Image

from radflow import evaluate

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
