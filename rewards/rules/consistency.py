"""Does the Impression follow from the Findings? A local judge built on a rule labeler."""

import re
from collections.abc import Sequence

from radflow.rewards.rules.entity_rules import sides
from radflow.rewards.rules.negation import sentences
from radflow.rewards.types import Labeler

# An Impression must name these if the Findings are certain of them.
ALWAYS_SAID = frozenset({"Edema", "Consolidation", "Pneumonia", "Pneumothorax", "Pleural Effusion"})
# An Impression need not repeat these, even if it calls the study normal: radiologists mostly do not.
MINOR = frozenset({"Fracture", "Pleural Other"})
# A sentence of the Findings with one of these words describes something old or harmless.
_HARMLESS = re.compile(
    r"\b(?<!not )(?<!non-)(?:calcifi\w+(?! plaque)|granulom\w+|scar\w*|fibro\w+|old|healed|chronic|remote|benign|nipple"
    r"|crowding|artifact\w*|summation|overlap\w*|superimpos\w+|fat|hernia|subsegmental|discoid|plate-?like|band-?like"
    r"|minimal (?:\w+ ){0,3}atelectasis)\b",
    re.IGNORECASE,
)


class ConsistencyRules:
    """+1 if Impression and Findings agree, -1 otherwise (paper 4.2; there the judge is an LLM).

    An Impression is inconsistent if it

    - asserts something abnormal that the Findings do not support, or have on the other side;
    - says that nothing is wrong although the Findings are certain of a finding that is neither minor nor old;
    - names findings and leaves out one of `ALWAYS_SAID` (with a labeler of other labels, any of its labels);
    - says neither that something is wrong nor that nothing is.

    A label may stand for those that the labeler's `covers` names. Minor and old findings may be left out. If a section
    is empty the score is -1.
    """

    name = "consistency_rules"

    def __init__(self, labeler: Labeler) -> None:
        self.labeler = labeler

    def __call__(self, findings: Sequence[str], impressions: Sequence[str]) -> list[float]:
        pairs = zip(findings, impressions, strict=True)
        return [1.0 if self.objection(f, i) is None else -1.0 for f, i in pairs]

    def objection(self, findings: str, impression: str) -> str | None:
        """What is wrong, or None if both agree."""
        if not findings.strip() or not impression.strip():
            return "a section is empty"
        current = _without_harmless(findings)
        observed, recent = self._abnormal(findings), self._abnormal(current)
        concluded = self._abnormal(impression)
        if not all(name in observed or self._stands_for(name, recent) for name in concluded):
            return "not in the Findings"
        if concluded & _on_the_other_side(findings, impression):
            return "on the other side"
        serious = self.labeler.certain(current) - self.labeler.ignorable - MINOR
        if not concluded:
            # Nothing abnormal is named: the Impression must say that this is so, and the Findings must bear it out.
            if not self.labeler([impression])[0]:
                return "says nothing"
            return "calls abnormal Findings normal" if serious else None
        required = serious & ALWAYS_SAID if set(self.labeler.labels) >= ALWAYS_SAID else serious
        left_out = {label for label in required if label not in concluded and not self._stands_for(label, concluded)}
        return "leaves a serious finding out" if left_out else None

    def _abnormal(self, text: str) -> set[str]:
        return self.labeler.abnormalities(text) - self.labeler.ignorable

    def _stands_for(self, label: str, others: set[str]) -> bool:
        """The label may stand for one of the others, or one of them for it."""
        covers = self.labeler.covers
        return any(label in covers.get(o, ()) or o in covers.get(label, ()) for o in others)


def _on_the_other_side(findings: str, impression: str) -> set[str]:
    """Observations with a side in both sections, and never the same side."""
    observed, concluded = sides(findings), sides(impression)
    return {name for name in observed.keys() & concluded.keys() if not observed[name] & concluded[name]}


def _without_harmless(findings: str) -> str:
    """The sentences that describe nothing old or harmless."""
    return "\n\n".join(sentence for sentence in sentences(findings) if not _HARMLESS.search(sentence))
