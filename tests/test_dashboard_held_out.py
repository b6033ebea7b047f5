"""The first screen: which held-out studies it shows, and that no run breaks it."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from made_run import CONFIG, REFERENCE, make_run, study_ids

from radflow.dashboard import held_out
from radflow.dashboard.build import build_dashboard
from radflow.dashboard.held_out import Pair, choose, pick_held_out
from radflow.dashboard.run_files import RunFiles
from radflow.dashboard.studies import StudySource

NORMAL = "Findings: Clear lungs. No pneumothorax. Impression: Normal."
EFFUSION = "Findings: Small left effusion. Impression: Small left effusion."
DENIED = "Findings: No effusion. Impression: Normal."


def pair(number, added, *, normal=False):
    return Pair(f"s{number}", ("", "", ""), normal, added)


def test_the_largest_differences_come_first_whichever_policy_is_better():
    chosen = choose([pair(i, added) for i, added in enumerate((0, -9, 2, 8, -1, 3, -3))])
    assert [one.added for one in chosen] == [-9, 8, 3, -3, 2]  # 3 before -3: it is the earlier study


def test_a_study_where_capo_is_worse_and_a_normal_one_replace_the_last_ones():
    pairs = [*(pair(i, -9 + i) for i in range(6)), pair(6, 0.5), pair(7, 0, normal=True)]
    assert [one.id for one in choose(pairs)] == ["s0", "s1", "s2", "s6", "s7"]


PAIRS = st.lists(st.tuples(st.integers(-9, 9), st.booleans()), max_size=30)


@given(PAIRS)
def test_both_are_there_if_there_are_any_and_no_study_twice(values):
    pairs = [pair(i, added, normal=normal) for i, (added, normal) in enumerate(values)]
    chosen = choose(pairs)
    assert len(set(chosen)) == len(chosen) == min(len(pairs), 5)
    assert any(one.added > 0 for one in chosen) == any(one.added > 0 for one in pairs)
    assert any(one.normal for one in chosen) == any(one.normal for one in pairs)


def write_reports(folder, reports):
    """(reference, SFT, CAPO) of each study, as the stage evaluate writes them."""
    for column, name in enumerate(("references", "sft", "capo")):
        rows = {i: {"report": texts[column]} for i, texts in reports.items()}
        (folder / f"eval/{name}.json").write_text(json.dumps(rows))


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path / "run", steps=2)


def shown(folder):
    run = RunFiles.read(folder)
    return pick_held_out(run, StudySource.of_config(run.config))


def test_studies_are_counted_compared_and_marked(folder):
    ids = study_ids(4)
    texts = [(EFFUSION, EFFUSION, DENIED), (EFFUSION, DENIED, EFFUSION), (NORMAL, NORMAL, NORMAL), (NORMAL, NORMAL, "")]
    write_reports(folder, dict(zip(ids, texts, strict=True)))
    found = shown(folder)
    assert (found.studies, found.read, found.fewer, found.more) == (4, 4, 1, 2)  # saying nothing leaves a denial out
    remarks = {case.id: case.remark for case in found.cases}
    assert [remarks[i] for i in ids] == [
        "CAPO worse than SFT",
        "CAPO better than SFT",
        "normal study, CAPO as SFT",
        "normal study, CAPO worse than SFT",
    ]
    (worse,) = (case for case in found.cases if case.id == ids[0])
    assert [column.name for column in worse.columns] == ["Reference", "SFT", "CAPO"] and worse.images
    assert worse.columns[1].counts == {} and worse.columns[2].listed == ["missed: left pleural effusion"]


def test_of_many_studies_evenly_spaced_ones_are_read(folder, monkeypatch):
    monkeypatch.setattr(held_out, "READ", 3)
    write_reports(folder, {f"s{i}": (EFFUSION, EFFUSION, DENIED) for i in range(7)})
    found = shown(folder)
    assert [case.id for case in found.cases] == ["s0", "s3", "s6"] and (found.studies, found.read) == (7, 3)
    assert "of 3 evenly spaced ones of 7 held-out studies" in build_dashboard(folder).read_text()


def test_the_page_shows_them_before_the_warnings_with_few_small_images(folder):
    page = build_dashboard(folder).read_text(encoding="utf-8")
    section = page[page.index('<section id="held-out">') : page.index('<section id="warnings">')]
    assert section.count('<article class="compared">') == 5 and section.count("<img ") <= 10
    assert len(section) < 300_000
    assert "denied</sup>" not in section and "missed: left pleural effusion" in section
    assert 'mark class="wrong" title="right pneumothorax: made up; the reference: no pneumothorax"' in section


def test_a_run_that_goes_on_shows_no_such_section(folder):
    (folder / "eval/capo.json").unlink()
    page = build_dashboard(folder).read_text(encoding="utf-8")
    assert 'id="held-out"' not in page and 'href="#held-out"' not in page and '<section id="warnings">' in page


@pytest.mark.parametrize("expert", ["carotid_rules", "chexbert", None])
@pytest.mark.parametrize(
    "text", ["", "No headers at all", "Impression: Plaque left.", "双侧颈动脉未见斑块。", "\ud800 <b>"]
)
def test_no_report_breaks_the_page(folder, expert, text):
    config = CONFIG | {"reward": {"expert": expert} if expert else {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_reports(folder, {"unknown study": (text, REFERENCE, text), "other": (REFERENCE, text, text)})
    page = build_dashboard(folder).read_text(encoding="utf-8")
    assert page.count('<article class="compared">') == 2 and "no image here" in page and "<b>" not in page


def test_studies_that_only_one_policy_reported_are_left_out(folder):
    write_reports(folder, {"a": (EFFUSION, EFFUSION, DENIED), "b": (EFFUSION, EFFUSION, DENIED)})
    (folder / "eval/capo.json").write_text(json.dumps({"b": {"report": DENIED}}))
    assert [case.id for case in shown(folder).cases] == ["b"]
