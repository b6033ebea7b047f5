"""What a report gets wrong about the findings of its reference, and how far the report is true.

Side, grade and measurement are part of a finding: with the wrong one, the finding is missed and another is made up.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Literal

from radflow.rewards.memory import remember
from radflow.rewards.rules.sentences import changed_sentences, new_advice, new_measurements
from radflow.rewards.types import Finding, Labeler

Kind = Literal["missed", "made up", "denied", "side", "grade", "measurement", "advice", "inexact", "unsaid"]
COSTS: Mapping[Kind, float] = {
    "missed": 1,
    "made up": 1,
    # What misleads leaves a tenth: less than a report without its findings earns, however many a sentence has.
    "denied": 8,  # in addition to being missed, or to being asserted elsewhere
    "side": 9,
    "grade": 9,  # two steps or more
    "measurement": 9,
    "advice": 9,
    "inexact": 0.5,  # side or grade added or left out, a grade off by one, certain or not, a broader finding
    "unsaid": 0.25,  # what the reference denies and the report does not speak of
}
CONTRADICTIONS: frozenset[Kind] = frozenset({"denied", "side", "grade", "measurement", "advice"})


@dataclass(frozen=True)
class FindingError:
    """One error of a report."""

    kind: Kind
    about: str
    """The finding, the measurement or the sentence."""


class FindingErrors:
    """Errors of a report against its reference, from the findings that the two texts state.

    A finding that may stand for another one (the labeler's `covers`) is inexact, and not made up.
    """

    def __init__(self, labeler: Labeler) -> None:
        self.labeler, self.findings, self.covers = labeler, labeler.findings, labeler.covers
        self._remembered = remember(self._find)  # several metrics ask for the same pair

    def __call__(self, candidate: str, reference: str) -> list[FindingError]:
        return list(self._remembered(candidate, reference))

    def _find(self, candidate: str, reference: str) -> tuple[FindingError, ...]:
        written, expected = self.findings(candidate), self.findings(reference)
        said, true = _asserted(written), _asserted(expected)
        found = [(kind, name) for name in said.keys() & true.keys() for kind in _compare(said[name], true[name])]
        missed, extra = [n for n in true if n not in said], [n for n in said if n not in true]
        for name in missed:
            hedged = not _certain(true[name])
            found.append(("inexact" if hedged or self._related(name, extra) else "missed", name))
        found += [("made up", name) for name in extra if not self._related(name, missed)]
        found += [("denied", name) for name in _denied(written, expected)]
        found += [("unsaid", name) for name in self._unsaid(written, expected)]
        found += [("measurement", value) for value in new_measurements(candidate, reference)]
        found += [("advice", sentence) for sentence in new_advice(candidate, reference)]
        known = {kind for kind, _ in found}
        found += [one for one in self._changed(candidate, reference) if one[0] not in known]
        return tuple(FindingError(*one) for one in found)

    def _changed(self, candidate: str, reference: str) -> list[tuple[Kind, str]]:
        """Sentences about a finding that differ from one of the reference in nothing but sides or grades."""
        changed = [change for change in changed_sentences(candidate, reference) if self._asserts(change.sentence)]
        true = {name: _sides(mentions) for name, mentions in _asserted(self.findings(reference)).items()}
        sides: list[tuple[Kind, str]] = [
            ("side", change.sentence)
            for change in changed
            if change.side and not self._has_true_side(change.sentence, true)
        ]
        return sides + [("grade" if c.steps > 1 else "inexact", c.sentence) for c in changed if c.steps]

    def _has_true_side(self, sentence: str, true: Mapping[str, Set[str]]) -> bool:
        """Whether the reference has each finding of a sentence on the one side that the sentence names."""
        said = [finding for finding in self.findings(sentence) if finding.value]
        return all(len(finding.sides) == 1 and finding.sides <= true.get(finding.name, set()) for finding in said)

    def _asserts(self, sentence: str) -> bool:
        return any(finding.value for finding in self.findings(sentence))

    def _unsaid(self, written: Iterable[Finding], expected: Sequence[Finding]) -> list[str]:
        spoken, asserted = {f.name for f in written}, {f.name for f in expected if f.value}
        denied = sorted({f.name for f in expected if f.value == 0} - asserted - spoken)
        return [name for name in denied if not self._related(name, spoken)]

    def _related(self, name: str, others: Iterable[str]) -> bool:
        return any(other in self.covers.get(name, ()) or name in self.covers.get(other, ()) for other in others)


class TruthRules:
    """How far a report is true: 1 / (1 + cost of its errors), in (0, 1]; 1 for a report without any.

    Nothing is gained by saying less: a finding left out costs as much as one made up.
    """

    name = "truth_rules"

    def __init__(self, errors: FindingErrors) -> None:
        self.errors = errors

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        return [truth(self.errors(c, r)) for c, r in zip(candidates, references, strict=True)]


class ContradictionsRules:
    """Number of errors by which a report contradicts its reference, instead of saying more, less or less exactly."""

    name = "contradictions_rules"

    def __init__(self, errors: FindingErrors) -> None:
        self.errors = errors

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        pairs = zip(candidates, references, strict=True)
        return [float(sum(error.kind in CONTRADICTIONS for error in self.errors(c, r))) for c, r in pairs]


def truth(errors: Iterable[FindingError]) -> float:
    """1 / (1 + cost of the errors)."""
    return 1 / (1 + _cost(error.kind for error in errors))


def _asserted(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Finding -> its mentions, without denials."""
    said: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.value:
            said.setdefault(finding.name, []).append(finding)
    return said


def _compare(said: Sequence[Finding], true: Sequence[Finding]) -> list[Kind]:
    """Errors about a finding that both texts assert."""
    written, expected = _sides(said), _sides(true)
    grades, true_grades = ({(m.sides, m.grades) for m in mentions if m.grades} for mentions in (said, true))
    kinds: set[Kind] = {kind for graded in grades for kind in _wrong_grade(*graded, true_grades)}
    if bool(written) != bool(expected):
        kinds.add("inexact")
    elif any(mention.sides and not mention.sides & expected for mention in said):
        kinds.add("side")
    else:
        kinds |= {"made up"} if written - expected else set()
        kinds |= {"missed"} if expected - written else set()
    if _certain(said) != _certain(true) or any(m.grades for m in said) != any(m.grades for m in true):
        kinds.add("inexact")
    return sorted(kinds)


def _wrong_grade(sides: Set[str], grades: Set[int], true: Set[tuple[Set[str], Set[int]]]) -> list[Kind]:
    """Against the nearest grade that the reference gives to the finding, on the same side if it tells them apart.

    Args:
        true: sides and grades of each mention of it in the reference that has a grade.
    """
    same = [others for where, others in true if not (sides and where) or sides & where]
    near = {grade for others in same or (others for _, others in true) for grade in others}
    steps = max(min(abs(grade - g) for g in near) for grade in grades) if near else 0
    return ["grade"] if steps > 1 else ["inexact"] * steps


def _cost(kinds: Iterable[Kind]) -> float:
    return sum(COSTS[kind] for kind in kinds)


def _certain(mentions: Iterable[Finding]) -> bool:
    return any(mention.value == 1 for mention in mentions)


def _sides(mentions: Iterable[Finding]) -> frozenset[str]:
    return frozenset[str]().union(*(mention.sides for mention in mentions))


def _denied(written: Sequence[Finding], expected: Sequence[Finding]) -> list[str]:
    """Findings that the reference asserts, does not deny itself, and the candidate denies whatever their grade."""
    true = _asserted(expected)
    for finding in expected:
        if finding.value == 0:
            true.pop(finding.name, None)
    asserted = {name: _together(mentions) for name, mentions in true.items()}
    denials = [f for f in written if f.value == 0 and f.name in true and "recent" not in f.courses]
    return sorted({f.name for f in denials if _is_denied(asserted[f.name], f)})


def _together(mentions: Sequence[Finding]) -> Finding:
    """The first mention, with the sides, grades and regions of all."""
    grades = frozenset(grade for mention in mentions for grade in mention.grades)
    regions = frozenset(region for mention in mentions for region in mention.regions)
    return replace(mentions[0], sides=_sides(mentions), grades=grades, regions=regions)


def _is_denied(asserted: Finding, denial: Finding) -> bool:
    """What is denied may be of a side and in a part, and is of a grade, that is asserted."""
    elsewhere = (denial.sides and asserted.sides and not denial.sides & asserted.sides) or (
        denial.regions and asserted.regions and not denial.regions & asserted.regions
    )
    return not elsewhere and (not denial.grades or bool(denial.grades & asserted.grades))
