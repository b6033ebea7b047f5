"""What each metric is given of a candidate and its reference."""

import pytest

from radflow.data.sections import parse_sections
from radflow.rewards.measure import Metrics


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
    metrics = Metrics(parse_sections, {"text": ("findings", lambda c, r: [f"{c[0]} / {r[0]}"])})
    measured = metrics([candidate], ["Findings: No effusion. Impression: Normal."])
    assert measured.values["text"] == [f"{compared} / No effusion."]
