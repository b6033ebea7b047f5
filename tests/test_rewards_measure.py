"""What each metric is given of a candidate and its reference."""

import pytest

from radflow.data.sections import parse_sections
from radflow.rewards.measure import Metrics


def recorder(given):
    """A metric that keeps the pairs of texts it is given."""

    def metric(first, second):
        pairs = [*zip(first, second, strict=True)]
        given.extend(pairs)
        return [0.0] * len(pairs)

    return metric


@pytest.mark.parametrize(
    ("candidate", "compared"),
    [
        ("Findings: Clear. Impression: Normal.", "Clear."),
        ("The lungs are clear.", "The lungs are clear."),
        ("HISTORY: Lung cancer.\nFINDINGS: Clear.", "Clear."),
        (
            "Indication: Cancer. Findings: Clear. Impression: Normal. Findings: No edema.",
            "Clear.\n\nNormal.\n\nNo edema.",
        ),
        ("HISTORY: Lung cancer.", "HISTORY: Lung cancer."),  # nothing else is there to compare
    ],
)
def test_what_is_compared_with_the_findings_of_the_reference(candidate, compared):
    given = []
    metrics = Metrics(parse_sections, {"text": ("findings", recorder(given))})
    metrics([candidate], ["Findings: No effusion. Impression: Normal."])
    assert given == [(compared, "No effusion.")]


@pytest.mark.parametrize(
    ("reference", "findings", "impression", "sections"),
    [
        ("Findings: Clear. Impression: Normal.", True, True, True),
        ("Findings: Clear.", True, False, False),
        ("Impression: Normal.", False, True, False),
        ("Findings: None Impression: Normal.", False, True, False),  # the word of ReXrank for a missing section
        ("Clear.", True, True, False),  # compared as a whole
        ("Findings and impression: Clear.", True, True, False),
        ("Findings: None Impression: None", False, False, False),
        ("None", False, False, False),
        ("Indication: cough.", False, False, False),  # describes nothing
    ],
)
def test_the_reference_alone_decides_which_metrics_of_a_table_have_a_value(reference, findings, impression, sections):
    made = {"findings": "findings", "impression": "impression", "consistency": "sections"}
    metrics = Metrics(parse_sections, {name: (reads, lambda c, r: [1.0] * len(c)) for name, reads in made.items()})
    both, bare = "Findings: Clear. Impression: Normal.", "Clear."
    columns = metrics.table([both, bare], [reference] * 2).columns
    assert [value is not None for value in columns["findings"]] == [findings] * 2
    assert [value is not None for value in columns["impression"]] == [impression] * 2
    # a candidate without sections gains nothing by it: -1 wherever the other candidate has a value
    assert columns["consistency"] == ([1.0, -1.0] if sections else [None, None])


def test_a_reference_without_sections_is_compared_with_all_that_a_candidate_describes():
    given = []
    metrics = Metrics(parse_sections, {"text": ("impression", recorder(given))})
    candidate = "History: Fall. Findings: Clear. Impression: Normal."
    metrics.table([candidate] * 2, ["No effusion.", "Findings: No effusion. Impression: Fine."])
    assert given == [("Normal.", "Fine."), ("Clear.\n\nNormal.", "No effusion.")]
