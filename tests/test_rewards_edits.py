"""One finding of a report made right: which sentence, in whose words, and where."""

import random
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from radflow.data.phantoms import draw_phantom
from radflow.data.sections import parse_sections, render_report
from radflow.rewards.rules.carotid import CarotidRules
from radflow.rewards.rules.chexpert_rules import ChexpertRules
from radflow.rewards.rules.edits import ReportEditor
from radflow.rewards.rules.errors import COSTS, FindingErrors
from radflow.rewards.rules.negation import sentences

LABELERS = {"chest": ChexpertRules(parse_sections), "carotid": CarotidRules(parse_sections)}
EDITORS = {
    kind: ReportEditor(parse_sections, render_report, FindingErrors(labeler)) for kind, labeler in LABELERS.items()
}
REFERENCE = (
    "Findings: The heart is mildly enlarged. There is right basilar atelectasis. Small left pleural effusion. "
    "No pneumothorax. Impression: Small left pleural effusion. Mild cardiomegaly."
)


def edited(candidate, *others, reference=REFERENCE, kind="chest", **options):
    edit = EDITORS[kind](candidate, reference, others, **options)
    return None if edit is None else (edit.report, edit.about)


def test_a_missed_finding_is_added_to_both_sections_in_the_order_of_the_reference():
    candidate = "Findings: The heart is mildly enlarged. There is right basilar atelectasis. No pneumothorax. "
    assert edited(candidate + "Impression: Mild cardiomegaly.") == (REFERENCE, "missed Pleural Effusion: added")


def test_the_words_of_the_group_come_before_those_of_the_reference():
    candidate = (
        "Findings: Mild cardiomegaly is seen. There is right basilar atelectasis. No pneumothorax. "
        "Impression: Mild cardiomegaly."
    )
    other = (
        "Findings: Mild cardiomegaly is seen. The lungs are clear. A small effusion is noted on the left. "
        "No pneumothorax. Impression: Small left effusion."
    )
    report, about = edited(candidate, other)
    assert about == "missed Pleural Effusion: added"
    assert report == (
        "Findings: Mild cardiomegaly is seen. A small effusion is noted on the left. "
        "There is right basilar atelectasis. No pneumothorax. Impression: Small left effusion. Mild cardiomegaly."
    )


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ("A small right effusion.", "Small left pleural effusion."),  # says it wrong
        ("A small effusion is noted on the left.", "A small effusion is noted on the left."),
        ("A large left effusion.", "Small left pleural effusion."),
        ("There is a small left effusion and edema.", "Small left pleural effusion."),  # makes something up
    ],
)
def test_another_report_gives_only_what_is_true(other, expected):
    candidate = (
        "Findings: The heart is mildly enlarged. There is right basilar atelectasis. No pneumothorax. "
        "Impression: Small left pleural effusion. Mild cardiomegaly."
    ).replace("Small left pleural effusion. Mild", "Mild")
    report, _ = edited(candidate, f"Findings: {other} No pneumothorax. Impression: Mild cardiomegaly.")
    assert expected in report.partition("Impression:")[0]


@pytest.mark.parametrize(
    ("reference", "candidate", "expected", "about"),
    [
        pytest.param(
            "Findings: Heart size is normal. A small left effusion. No pneumothorax. Impression: Small left effusion.",
            "Findings: Normal heart size. No pleural effusion or pneumothorax. Impression: No acute abnormality.",
            "Findings: Normal heart size. A small left effusion. No pneumothorax. Impression: Small left effusion.",
            "denied Pleural Effusion: replaced",
            id="denied: replaced with what it denied besides, and the normal Impression too",
        ),
        pytest.param(
            "Findings: The lungs are clear. A small left effusion. Impression: Small left effusion.",
            "Findings: The lungs are clear. A small right effusion. Impression: Small right effusion.",
            "Findings: The lungs are clear. A small left effusion. Impression: Small left effusion.",
            "side Pleural Effusion: replaced",
            id="wrong side",
        ),
        pytest.param(
            "Findings: The heart is mildly enlarged. No edema. Impression: Mild cardiomegaly.",
            "Findings: The heart is severely enlarged. No edema. Impression: Mild cardiomegaly.",
            "Findings: Mild cardiomegaly. No edema. Impression: Mild cardiomegaly.",
            "grade Cardiomegaly: replaced",
            id="wrong grade in one section: the words of the other",
        ),
        pytest.param(
            "Findings: Heart size is normal. No edema. Impression: Normal chest.",
            "Findings: Heart size is normal. No edema. There is a hiatal hernia. Impression: Hiatal hernia.",
            "Findings: Heart size is normal. No edema. Impression: Normal chest.",
            "made up",
            id="made up: removed, and an Impression of nothing else says what the reference concludes",
        ),
        pytest.param(
            "Findings: Heart size is normal. No edema. Impression: Normal chest.",
            "Findings: Heart size is normal. There is mild edema. Impression: Normal chest.",
            "Findings: Heart size is normal. No edema. Impression: Normal chest.",
            "made up Edema: replaced",
            id="made up and denied by the reference: denied",
        ),
        pytest.param(
            "Findings: Cardiomegaly. A left rib fracture. Impression: Left rib fracture.",
            "Findings: Cardiomegaly. A left rib fracture and a large nodule. Impression: Left rib fracture.",
            "Findings: Cardiomegaly. Left rib fracture. Impression: Left rib fracture.",
            "made up Lung Lesion: replaced",
            id="made up with something true: the latter stays",
        ),
        pytest.param(
            "Findings: The lungs are clear. Heart size is normal. A tube is in the trachea. Impression: Normal.",
            "Findings: There is mild edema. Heart size is normal. A tube is in the trachea. Impression: Normal.",
            "Findings: The lungs are clear. Heart size is normal. A tube is in the trachea. Impression: Normal.",
            "made up Edema: replaced",
            id="made up in the place of what is normal",
        ),
    ],
)
def test_each_kind_of_error_by_hand(reference, candidate, expected, about):
    report, came_right = edited(candidate, reference=reference)
    assert report == expected
    assert came_right.startswith(about)


def test_what_is_normal_gives_way_only_if_the_reference_does_not_say_it_too():
    reference = "Findings: Normal heart size. {}Small left effusion. Impression: Small left effusion."
    candidate = "Findings: Normal heart size. The lungs are clear. Impression: Small left effusion."
    other = "Findings: Normal heart size. There is a small left effusion. Impression: Same as before."
    for said, expected in (
        ("", "Findings: Normal heart size. There is a small left effusion. "),
        ("Lungs are clear. ", "Findings: Normal heart size. There is a small left effusion. The lungs are clear. "),
    ):
        report, _ = edited(candidate.replace("left", "right"), other, reference=reference.format(said))
        assert report.startswith(expected)


@pytest.mark.parametrize(
    ("finding", "findings", "expected"),
    [
        # what is added does not speak of it
        ("A pacemaker is seen.", "The lungs are clear.", "A pacemaker is seen. The lungs are clear."),
        ("Low lung volumes.", "The bones are intact.", "Low lung volumes. The bones are intact."),
        # and here it does
        ("There is mild edema.", "The lungs are clear.", "There is mild edema."),
        ("There is mild edema.", "The lungs are clear. Clips are seen.", "There is mild edema. Clips are seen."),
    ],
)
def test_only_what_an_added_finding_contradicts_gives_way(finding, findings, expected):
    reference = f"Findings: Heart size is normal. {finding} Impression: Normal bones."
    report, _ = edited(f"Findings: Heart size is normal. {findings} Impression: Normal bones.", reference=reference)
    assert report.startswith(f"Findings: Heart size is normal. {expected}")


def test_an_impression_that_calls_all_normal_gives_way_to_what_contradicts_it():
    reference = "Findings: Clear lungs. {} Small hernia. Impression: Small hernia."
    candidate = "Findings: Clear lungs. Small hernia. Impression: No acute disease."
    report, _ = edited(candidate, reference=reference.format("A large left effusion."))
    assert report == "Findings: Clear lungs. A large left effusion. Small hernia. Impression: A large left effusion."
    report, _ = edited(candidate, reference=reference.format("Aortic calcification."))
    assert report == "Findings: Clear lungs. Aortic calcification. Small hernia. Impression: No acute disease."


@pytest.mark.parametrize(
    ("findings", "expected"),
    [
        ("1. Mild edema. 2. Hernia. 3. Clips.", "1. Mild edema. 2. Clips."),
        ("1. Hernia. 2. Mild edema. 3. Clips.", "1. Mild edema. 3. Clips."),
        ("1. Mild edema. 2. Clips. 3. Hernia.", "1. Mild edema. 2. Clips."),
        ("Mild edema.  Hernia.\nClips.", "Mild edema.  Clips."),
    ],
)
def test_a_sentence_is_removed_with_its_number_or_the_space_next_to_it(findings, expected):
    reference = "Findings: Mild edema. Clips. Impression: Mild edema."
    report, about = edited(f"Findings: {findings} Impression: Mild edema.", reference=reference)
    assert about.endswith(": removed")
    assert report == f"Findings: {expected} Impression: Mild edema."


def test_nothing_is_added_to_a_sentence_without_an_end():
    reference = "Findings: There is cardiomegaly. Clips are seen. Impression: Cardiomegaly."
    candidate = "Findings: There is cardiomegaly{} Impression: Cardiomegaly."
    assert edited(candidate.format("."), reference=reference) == (reference, "missed Support Devices: added")
    assert edited(candidate.format(""), reference=reference) is None


@pytest.mark.parametrize(
    ("reference", "candidate", "expected"),
    [
        (
            "Findings: Left intima-media thickness is increased at 1 mm. No left carotid plaque. Left flow is normal. "
            "Impression: Increased left intima-media thickness.",
            "Findings: Left intima-media thickness is normal. No left carotid plaque. Left flow is normal. "
            "Impression: Normal carotid arteries.",
            "missed increased_imt: replaced",
        ),
        (
            "Findings: There is soft plaque in the right common carotid artery. Right flow is normal. "
            "Impression: Right soft carotid plaque.",
            "Findings: There is soft plaque in the left common carotid artery. Right flow is normal. "
            "Impression: Left soft carotid plaque.",
            "side plaque: replaced",
        ),
        (
            "Findings: No plaque in the left carotid artery. Left flow is normal. Impression: Normal study.",
            "Findings: Hard plaque in the left carotid artery. Left flow is normal. Impression: Normal study.",
            "made up plaque: replaced",
        ),
    ],
)
def test_carotid_reports_by_hand(reference, candidate, expected):
    assert edited(candidate, reference=reference, kind="carotid") == (reference, expected)


def test_only_what_the_whole_group_misses_if_told_so():
    misses_both = "Findings: There is right basilar atelectasis. Impression: Right basilar atelectasis."
    misses_one = "Findings: The heart is mildly enlarged. Impression: Mild cardiomegaly."
    report, about = edited(misses_both, misses_one, missed_by_all=True)
    assert about.startswith("missed Pleural Effusion") and "heart" not in report
    says_both = "Findings: The heart is mildly enlarged. Small left effusion. Impression: Small left effusion."
    assert edited(misses_both, misses_one, says_both, missed_by_all=True) is None
    assert edited(REFERENCE.replace("left", "right"), misses_one, missed_by_all=True) is None  # wrong, not missed


@pytest.mark.parametrize(
    "candidate", ["", "The heart is enlarged.", "Findings: No effusion.", "Impression: Normal. Findings: No effusion."]
)
def test_a_report_without_two_sections_is_not_edited(candidate):
    assert edited(candidate) is None
    assert edited(REFERENCE, reference=candidate) is None


def test_other_reports_without_two_sections_are_no_obstacle():
    candidate = REFERENCE.replace("Small left pleural effusion. ", "")
    assert edited(candidate, "", "Findings: Small left effusion.") == edited(candidate)


def test_the_rest_of_a_report_stays_byte_for_byte():
    candidate = (
        "Findings: 1. HEART  enlarged mildly!\n2. No effusion;  no pneumothorax. 3. Odd \t gap. Impression: 1. Same."
    )
    report, about = edited(candidate)
    assert about == "denied Pleural Effusion: replaced and added"
    assert report.startswith("Findings: 1. HEART  enlarged mildly!\n2. Small left pleural effusion.  no pneumothorax. ")
    assert " 3. Odd \t gap. Impression: " in report
    assert report.endswith("Impression: 1. Small left pleural effusion. Same.")


def damaged(section, how, generator, foreign):
    """The section with one sentence dropped, negated or mirrored, or one of another study added."""
    listed = list(sentences(section))
    index = generator.randrange(len(listed))
    if how == "dropped" and len(listed) > 1:
        del listed[index]
    elif how == "negated":
        listed[index] = "No " + listed[index][0].lower() + listed[index][1:]
    elif how == "mirrored":
        listed = [re.sub("left|right", lambda m: "right" if m[0] == "left" else "left", s) for s in listed]
    elif how == "made up":
        listed.insert(index, generator.choice(sentences(foreign)))
    return " ".join(listed)


def errors(kind, candidate, reference):
    """As the metrics count them: of what both texts describe."""
    return EDITORS[kind].errors(parse_sections(candidate).described, parse_sections(reference).described)


def cost(found):
    return sum(COSTS[error.kind] for error in found)


@pytest.mark.parametrize("kind", ["chest", "carotid"])
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400), st.sampled_from(["dropped", "negated", "mirrored", "made up"]), st.integers(0, 99))
def test_an_edit_leaves_fewer_errors_and_no_new_one(kind, number, how, seed):
    own, other = (draw_phantom(f"{kind}-train-{n:05d}-0", seed=0, size=8) for n in (number, number + 1))
    generator = random.Random(seed)
    reference = render_report(own.findings, own.impression)
    candidate = render_report(
        damaged(own.findings, how, generator, other.findings), damaged(own.impression, how, generator, other.impression)
    )
    group = [render_report(other.findings, other.impression)]
    assert EDITORS[kind](reference, reference, [candidate]) is None
    edit = EDITORS[kind](candidate, reference, group)
    assume(edit is not None)
    left, after = errors(kind, candidate, reference), errors(kind, edit.report, reference)
    assert cost(after) < cost(left)
    for error in after:
        left.remove(error)  # ValueError if it is new
    assert edit.about.startswith(tuple(f"{error.kind} {error.about}: " for error in left))
    for old, new in zip(_sections(candidate), _sections(edit.report), strict=True):
        kept = [sentence for sentence in old if sentence in new]
        assert len(old) - len(kept) <= 1  # one is replaced or removed
        assert kept == [sentence for sentence in new if sentence in old]
    missed = EDITORS[kind](candidate, reference, group, missed_by_all=True)
    if missed is not None:
        left = [error for error in errors(kind, group[0], reference) if error.kind in ("missed", "denied")]
        assert any(f" {error.about}: " in missed.about for error in left)


def _sections(report):
    parsed = parse_sections(report)
    return sentences(parsed.findings), sentences(parsed.impression)


@pytest.mark.parametrize("kind", ["chest", "carotid"])
def test_nearly_every_damaged_phantom_can_be_edited(kind):
    wrong = found = 0
    for number in range(60):
        own = draw_phantom(f"{kind}-train-{number:05d}-0", seed=1, size=8)
        foreign = draw_phantom(f"{kind}-train-{number + 1:05d}-0", seed=1, size=8)
        reference, generator = render_report(own.findings, own.impression), random.Random(number)
        for how in ("dropped", "negated", "mirrored", "made up"):
            candidate = render_report(damaged(own.findings, how, generator, foreign.findings), own.impression)
            kinds = {error.kind for error in errors(kind, candidate, reference)}
            if kinds - {"unsaid", "measurement"}:
                wrong += 1
                found += EDITORS[kind](candidate, reference, []) is not None
    assert found >= 0.9 * wrong > 40  # not if two sides were exchanged: one sentence alone makes another error
