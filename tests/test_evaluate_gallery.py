"""`evaluate.py gallery`: shares by hand, files it reads and writes, and faults that end it with one line."""

import csv
import json

import pytest

from radflow import evaluate
from radflow.data.sections import parse_sections
from radflow.evaluation.exploits import EDITS
from radflow.evaluation.gallery import (
    HONEST,
    ORDERS,
    EditRow,
    Gallery,
    GalleryConfig,
    draw,
    make_edits,
    measure_gallery,
    read_studies,
    shown,
    verdict,
)
from radflow.rewards.config import RewardConfig
from radflow.rewards.registry import build_reward
from radflow.rewards.types import Score

REPORTS = {
    "a": ("The heart is mildly enlarged. No pneumothorax.", "Mild cardiomegaly."),
    "b": ("Small left pleural effusion. The heart is normal.", "Small left pleural effusion."),
    "c": ("There is a 5 mm nodule in the right upper lobe. No effusion.", "Right upper lobe nodule."),
    "n": ("The heart is normal. The lungs are clear.", "No acute disease."),
}


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "studies.jsonl"
    rows = [{"id": key, "images": [], "findings": f, "impression": i} for key, (f, i) in REPORTS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*words):
    evaluate.main(["gallery", *map(str, words)])


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert isinstance(stopped.value.code, str) and "Traceback" not in capsys.readouterr().err
    return stopped.value.code


REWARD = build_reward(RewardConfig(), parse_sections)


class LongerIsBetter:
    """A reward by the number of letters; dangerous advice could not be scored."""

    labeler = REWARD.labeler

    def __call__(self, candidates, references, *, groups):
        assert len(set(groups)) == len(set(references))
        lacking = ["Recommend", "follow-up", "Emergency", "Stop", "Start", "thrombolysis", "imaging"]
        totals = [None if any(word in text for word in lacking) else float(len(text)) for text in candidates]
        return [Score(total, {}) for total in totals]


def test_means_and_shares_by_hand(manifest):
    made = measure_gallery(GalleryConfig(references=manifest), LongerIsBetter())
    rows = {row.edit: row for row in made.edits}
    lengths = [len(f"Findings: {f} Impression: {i}") for f, i in list(REPORTS.values())[:3]]
    assert rows["reference"].reward == pytest.approx(sum(lengths) / 3) and rows["reference"].difference == 0
    assert rows["empty"].reward == 0 and rows["empty"].difference == pytest.approx(-sum(lengths) / 3)
    # b and c name a side; a and b a grade; c has a measurement
    shares = {name: rows[name].made for name in ("wrong side everywhere", "wrong grade by two steps")}
    assert shares == dict.fromkeys(shares, pytest.approx(2 / 3))
    assert rows["measurements replaced"].made == pytest.approx(1 / 3)
    assert rows["report repeated"].paid == 1 and rows["empty"].paid == 0 and rows[HONEST[3]].paid is None
    assert rows["dangerous advice added"].reward is None and rows["dangerous advice added"].made == 1
    assert "3 reports could not be scored" in "\n".join(made.notes)


def test_orders_by_hand(manifest):
    made = measure_gallery(GalleryConfig(references=manifest), LongerIsBetter())
    orders = {row.name: row for row in made.orders}
    assert len(orders) == len(ORDERS)
    assert orders["reference >= every other edit"].holds == 0  # a repeated report is longer
    # the repeated words aside, only a dropped finding makes a report shorter than the reference
    assert orders["paraphrase > one finding dropped"].studies == 3
    assert orders["one finding dropped > wrong side everywhere"].studies == 2
    assert orders["one finding dropped > dangerous advice added"].holds is None


def test_ties_are_enough_for_the_reference_and_for_an_exploit_and_not_for_a_better_edit(manifest):
    class Same(LongerIsBetter):
        def __call__(self, candidates, references, *, groups):
            return [Score(1.0, {}) for _ in candidates]

    same = measure_gallery(GalleryConfig(references=manifest), Same())
    for row in same.orders:
        assert row.holds in (None, float(row.better == "reference"))
    assert {row.paid for row in same.edits} == {None, 1.0} and len(same.paid) > 15


def test_the_report_of_another_study_is_not_the_own_one(manifest):
    config = GalleryConfig(references=manifest, studies=1)
    reports, _ = read_studies(config)
    for study_id in reports:
        made = make_edits(study_id, reports, REWARD.labeler, config)
        assert made["report of another study"] not in (made["reference"], None)


def test_equal_texts_are_not_compared(manifest):
    made = measure_gallery(GalleryConfig(references=manifest), LongerIsBetter())
    # every study has one finding: all dropped is one dropped
    assert next(row for row in made.edits if row.edit == "every finding dropped").paid is None


def test_the_last_lines_name_the_exploits_that_are_paid_for():
    rows = [
        EditRow("empty", 0, 0, 1, 0.06),
        EditRow("all label names", 0, 0, 1, 0.05),
        EditRow("paraphrase", 0, 0, 1, 1),
    ]
    first, *others = verdict(Gallery(rows, [], []))
    assert "pays for 1 exploit" in first and others == ["  empty: 6.0 %"]
    (only,) = verdict(Gallery(rows[1:], [], []))
    assert "pays for no exploit" in only


def test_the_program_from_a_manifest_to_each_file(tmp_path, manifest, capsys):
    run("--manifest", manifest, "--out", tmp_path / "out" / "g.json")
    printed = capsys.readouterr().out
    assert "reference >= paraphrase" in printed and "3 studies, seed 0; abnormal ones only" in printed
    written = json.loads((tmp_path / "out" / "g.json").read_text())
    assert [row["edit"] for row in written["edits"]] == list(EDITS) and len(written["orders"]) == len(ORDERS)
    run("--references", manifest, "--out", tmp_path / "g.csv", "--normal")
    assert "4 studies, seed 0; all" in capsys.readouterr().out
    with (tmp_path / "g.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["edit"] for row in rows[: len(EDITS)]] == list(EDITS)
    assert [row["order"] for row in rows[len(EDITS) :]] == [row["order"] for row in written["orders"]]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["g.json"]


@pytest.mark.parametrize("modality", ["chest", "carotid"])
def test_the_program_on_phantoms(modality, capsys):
    expert = {"chest": "chexpert_rules", "carotid": "carotid_rules"}[modality]
    run("--phantoms", modality, "--studies", 6, "--reward.expert", expert)
    printed = capsys.readouterr().out
    assert "6 studies" in printed and "This reward pays for" in printed.splitlines()[-1] + printed


def test_any_reward_may_be_tried(manifest, capsys):
    run("--manifest", manifest, "--reward.preset", "bleu")
    table = {line[:32].strip(): line.split() for line in capsys.readouterr().out.splitlines()}
    assert "1.000" in table["reference"] and "0.000" in table["empty"]


def test_the_same_seed_gives_the_same_gallery(manifest):
    config = GalleryConfig(references=manifest, studies=2)
    assert measure_gallery(config, REWARD) == measure_gallery(config, REWARD)
    reports, _ = read_studies(config)
    drawn = {
        tuple(draw(reports, REWARD.labeler, GalleryConfig(references=manifest, studies=1, seed=seed)))
        for seed in range(20)
    }
    assert drawn == {("a",), ("b",), ("c",)}


def test_references_without_a_section_are_left_out_and_said(tmp_path, capsys):
    path = tmp_path / "r.json"
    whole = "Findings: Small effusion. No edema. Impression: Effusion."
    path.write_text(json.dumps({"a": {"report": whole}, "b": {"report": "Findings: Edema."}}))
    run("--references", path)
    assert "1 references without Findings or Impression are left out" in capsys.readouterr().out


def test_faults_end_with_one_line(tmp_path, manifest, capsys):
    normal = tmp_path / "normal.jsonl"
    normal.write_text(manifest.read_text().splitlines()[-1] + "\n")
    assert "expected abnormal studies" in refused(capsys, "--manifest", normal)
    assert "carotid_rules" in refused(capsys, "--manifest", normal)
    run("--manifest", normal, "--normal")
    assert "expected references or phantoms" in refused(capsys)
    assert "not both" in refused(capsys, "--manifest", normal, "--phantoms", "chest")
    assert "end in .csv or .json" in refused(capsys, "--manifest", normal, "--out", tmp_path / "x.txt")
    assert "studies of at least 1" in refused(capsys, "--manifest", normal, "--studies", 0)
    assert "split test" in refused(capsys, "--manifest", normal, "--split", "test")
    assert "cannot be read" in refused(capsys, "--references", tmp_path / "none.json")
    (tmp_path / "i.json").write_text(json.dumps({"a": {"report": "Impression: Edema."}}))
    assert "with Findings and an Impression" in refused(capsys, "--references", tmp_path / "i.json")
    assert not (tmp_path / "x.txt").exists()


def test_both_tables_are_shown():
    text = shown(Gallery([EditRow("empty", None, None, 0.0, None)], [], ["a note"]))
    assert text.startswith("Edits\n") and "\nOrders\n" in text and "a note" in text and "This reward pays" in text
