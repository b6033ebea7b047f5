"""Does the Impression follow from the Findings? A local judge built on a rule labeler."""

from collections.abc import Sequence

from rewards.base import Labeler


class ConsistencyRules:
    """+1 where Impression and Findings agree, -1 otherwise (paper 4.2; there the judge is an LLM).

    Inconsistent is an Impression that asserts a label which the Findings do not support, that calls the study normal
    although the Findings hold something significant, or that leaves out what the Findings are certain of. A broader
    label may stand for a narrower one. Without one of the sections there is nothing to agree with: -1.
    """

    name = "consistency_rules"

    def __init__(self, labeler: Labeler) -> None:
        self.labeler = labeler

    def __call__(self, findings: Sequence[str], impressions: Sequence[str]) -> list[float]:
        return [self._one(f, i) for f, i in zip(findings, impressions, strict=True)]

    def _one(self, findings: str, impression: str) -> float:
        if not findings.strip() or not impression.strip():
            return -1.0
        observed, concluded = (labels - self.labeler.ignorable for labels in self.labeler([findings, impression]))
        if not concluded and not observed:
            # Neither names an abnormality; the Impression must still say that it is normal.
            return 1.0 if self.labeler.normal in self.labeler([impression])[0] or self._device(impression) else -1.0
        certain = self.labeler.certain(findings) - self.labeler.ignorable
        unsupported = {label for label in concluded if not self._supported(label, observed)}
        left_out = {label for label in certain if not self._supported(label, concluded)}
        return -1.0 if unsupported or left_out else 1.0

    def _supported(self, label: str, others: set[str]) -> bool:
        """The label itself is among the others, or a broader or narrower one."""
        covers = self.labeler.covers
        return label in others or any(label in covers.get(o, ()) or o in covers.get(label, ()) for o in others)

    def _device(self, impression: str) -> bool:
        return bool(self.labeler([impression])[0])
