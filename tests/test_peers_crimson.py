"""CRIMSON: our score of any lists is that of its authors' package, whose prompt is sent as it is."""

from CRIMSON.generate_score import CRIMSONScore
from CRIMSON.prompt_parts import build_prompt
from hypothesis import given
from hypothesis import strategies as st

from radflow.rewards.judge.report_errors import crimson, read_crimson

LEVELS = ["urgent", "actionable_not_urgent", "not_actionable_not_urgent", "benign_expected", "another word"]
REFERENCES, PREDICTED = st.sampled_from(["R1", "R2", "R3", "R9"]), st.sampled_from(["P1", "P2", "P3", "P9"])


def findings(mark):
    levels = st.lists(st.sampled_from(LEVELS), max_size=3)
    return levels.map(lambda some: [{"id": f"{mark}{i}", "clinical_significance": x} for i, x in enumerate(some, 1)])


attribute = st.fixed_dictionaries(
    {"ref_id": REFERENCES, "pred_id": PREDICTED, "severity": st.sampled_from(["significant", "negligible", "other"])}
)
errors = st.fixed_dictionaries(
    {
        "false_findings": st.lists(PREDICTED, max_size=3),
        "missing_findings": st.lists(REFERENCES, max_size=3),
        "attribute_errors": st.lists(attribute, max_size=3),
    }
)
listings = st.fixed_dictionaries(
    {
        "reference_findings": findings("R"),
        "predicted_findings": findings("P"),
        "matched_findings": st.lists(st.fixed_dictionaries({"ref_id": REFERENCES, "pred_id": PREDICTED}), max_size=4),
        "errors": errors,
    }
)


@given(listings)
def test_the_score_is_that_of_the_package_for_any_lists_consistent_or_not(found):
    theirs = CRIMSONScore.__new__(CRIMSONScore)._calculate_crimson(found)  # its constructor loads a model
    assert read_crimson(found).score == theirs["crimson_score"]


def test_the_prompt_is_sent_as_published():
    chat = crimson().chat(["Small effusion.", "Clear lungs."])
    assert chat.user == build_prompt("Small effusion.", "Clear lungs.") and crimson().version == "crimson-score 0.2.2"
