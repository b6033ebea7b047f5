import json
import re

import numpy as np
import pytest

from radflow.data.phantoms import carotid, chest_image, draw_phantom, make_studies, perfect_report, state_labels
from radflow.data.phantoms.chest import BORDERLINE, FINDINGS, LABELS
from radflow.data.phantoms.drawing import expose
from radflow.data.sections import parse_sections
from radflow.data.studies import check_studies, render_report
from radflow.rewards.config import RewardConfig
from radflow.rewards.registry import build_reward
from radflow.rewards.rules.carotid import LABELS as CAROTID
from radflow.rewards.rules.chexpert_rules import LABELS as CHEXPERT

EXPERT = {"chest": "chexpert_rules", "carotid": "carotid_rules"}


@pytest.fixture(scope="module", params=["chest", "carotid"])
def drawn(request):
    return request.param, make_studies(request.param, num_train=300, num_val=10, num_test=40, seed=1)


def test_studies_pass_the_checks_and_patients_stay_in_their_split(drawn):
    _, studies = drawn
    check_studies(studies)
    assert [sum(s.split == split for s in studies) for split in ("train", "val", "test")] == [300, 10, 40]
    assert len({s.patient_id for s in studies}) < len(studies)


def test_a_study_does_not_depend_on_how_many_are_drawn(drawn):
    modality, studies = drawn
    few = make_studies(modality, num_train=20, num_val=0, num_test=5, seed=1)
    for a, b in zip(few, [*studies[:20], *studies[310:315]], strict=True):
        assert (a.id, a.report, a.state) == (b.id, b.report, b.state)
        assert all((x == y).all() for x, y in zip(a.images, b.images, strict=True))
    other = make_studies(modality, num_train=20, num_val=0, num_test=0, seed=2)
    assert [s.report for s in other] != [s.report for s in few[:20]]


def test_a_phantom_is_drawn_again_from_its_id(drawn):
    modality, studies = drawn
    for study in studies[::25]:
        again = draw_phantom(study.id, seed=1, size=112)
        assert (again.id, again.patient_id, again.split) == (study.id, study.patient_id, study.split)
        assert again.report == study.report and again.state == study.state
        assert all((x == y).all() for x, y in zip(again.images, study.images, strict=True))
    for name in (f"{modality}-train-1", f"{modality}-night-00001-0", "knee-train-00001-0", f"{modality}-train-x-0"):
        with pytest.raises(ValueError, match=f"expected the id of a phantom, .* got '{name}'"):
            draw_phantom(name, seed=1, size=112)


def test_a_perfect_report_gets_the_maximum_and_shows_the_true_labels(drawn):
    modality, studies = drawn
    reward = build_reward(RewardConfig(expert=EXPERT[modality]), parse_sections)
    for study in studies:
        report = render_report(*perfect_report(study.state))
        (score,) = reward([report], [report])
        # 1 syntax + 1 domain + 1 consistency + 1 Impression
        assert score.total == pytest.approx(4.0), report
        truth = {label for label, present in state_labels(study.state).items() if present}
        assert reward.labeler([report])[0] == truth, report


def test_references_contradict_themselves_as_often_as_designed(drawn):
    modality, studies = drawn
    reward = build_reward(RewardConfig(expert=EXPERT[modality]), parse_sections)
    reports = [study.report for study in studies]
    agreed = np.mean([score.parts["consistency_rules"] == 1 for score in reward(reports, reports)])
    # omissions in 40 % of the studies with several findings, which are about a third of all
    assert 0.75 < agreed < 0.95


def test_impression_leaves_out_a_finding_in_40_percent_of_studies_with_several():
    said = {
        name: finding["phrase"].format(degree="", size="", side="{side}", zone="{zone}").strip()
        for name, finding in FINDINGS.items()
    }
    omitted = []
    for study in make_studies("chest", num_train=1500, num_val=0, num_test=0, seed=1, size=8):
        findings = study.state["findings"]
        # overlooked or hedged findings are another imperfection: only clear ones are counted here
        if len(findings) > 1 and all(value["severity"] >= BORDERLINE for value in findings.values()):
            text = study.impression.lower()
            omitted.append(any(said[name].format(**value) not in text for name, value in findings.items()))
    # about 300 studies: four standard errors of 0.4 are 0.113
    assert len(omitted) > 250 and abs(np.mean(omitted) - 0.4) < 0.113


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (0.0, 0.6, "The left effusion is new since the prior study."),
        (0.4, 0.9, "The left effusion has increased since the prior study."),
        (0.9, 0.4, "The left effusion has decreased since the prior study."),
        (0.6, 0.0, "The previously seen left pleural effusion has resolved."),
        (0.6, 0.6, "No change since the prior study."),
    ],
)
def test_change_of_an_effusion_by_hand(before, now, said):
    earlier, later = ({"effusion_left": {"severity": x}} if x else {} for x in (before, now))
    findings, _ = perfect_report({"modality": "chest", "findings": later, "device": None, "prior": earlier})
    assert findings.endswith(said)


def test_an_effusion_that_is_still_there_is_never_called_resolved():
    still = 0
    for study in make_studies("chest", num_train=1500, num_val=0, num_test=0, seed=0, size=8):
        for side in ("left", "right") if study.state["prior"] else ():
            if f"effusion_{side}" in study.state["findings"] and f"effusion_{side}" in study.state["prior"]:
                still += 1
                assert not re.search(rf"{side} (pleural )?effusion has resolved", study.findings, re.IGNORECASE), (
                    study.id
                )
    assert still > 50


def test_states_are_json_and_labels_are_those_of_the_labelers(drawn):
    modality, studies = drawn
    expected = CHEXPERT if modality == "chest" else CAROTID
    for study in studies:
        assert json.loads(json.dumps(study.state)) == study.state
        assert tuple(state_labels(study.state)) == expected
    assert LABELS == CHEXPERT


def test_chest_studies_are_as_varied_as_designed(drawn):
    modality, studies = drawn
    if modality == "carotid":
        assert all(len(study.images) == 2 for study in studies)
        return
    share = {
        "normal": np.mean([not study.state["findings"] for study in studies]),
        "lateral": np.mean([len(study.images) == 2 for study in studies]),
        "prior": np.mean([bool(study.prior_images) for study in studies]),
        "several": np.mean([len(study.state["findings"]) > 1 for study in studies]),
    }
    # drawn with chances 0.30, 0.40, 0.25 and 0.42; 350 studies: four standard errors are at most 0.107
    for name, chance in {"normal": 0.3, "lateral": 0.4, "prior": 0.25, "several": 0.42}.items():
        assert abs(share[name] - chance) < 0.107, name


def test_findings_are_visible_on_their_side():
    from radflow.data.phantoms.chest_image import draw_frontal

    anatomy = np.zeros(8)

    def draw(findings):
        return draw_frontal(findings, None, anatomy, np.random.default_rng(0), 112).astype(float)

    plain = draw({})
    left = draw({"effusion_left": {"severity": 0.9}}) - plain
    # the patient's left is on the right of the image
    assert left[:, 56:].mean() > 5 and abs(left[:, :50].mean()) < 1
    dark = draw({"pneumothorax": {"severity": 0.9, "side": "right"}}) - plain
    assert dark[:, :56].min() < -20 and np.abs(dark[:, 62:]).max() <= 1  # rounding


@pytest.mark.parametrize("modality", ["chest", "carotid"])
def test_every_canvas_is_float32(modality, monkeypatch):
    """A NumPy number among Python's made them float64, which takes twice as long."""
    kinds = set()

    def watch(canvas, generator):
        kinds.add(canvas.dtype)
        return expose(canvas, generator)

    for module in (chest_image, carotid):
        monkeypatch.setattr(module, "expose", watch)
    make_studies(modality, num_train=40, num_val=0, num_test=0, seed=0)
    assert kinds == {np.dtype(np.float32)}
