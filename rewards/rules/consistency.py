"""Does the Impression follow from the Findings? A local judge built on a rule labeler."""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product

from radflow.rewards.memory import remember
from radflow.rewards.rules.acuity import find_serious, is_acute, is_chronic, is_minor, names, searches
from radflow.rewards.rules.denials import denies_what_is_certain
from radflow.rewards.rules.findings import GRADES
from radflow.rewards.rules.negation import sentences
from radflow.rewards.types import Finding, Labeler

_WORD = re.compile(r"[a-z]{4,}")


class ConsistencyRules:
    """+1 if Impression and Findings agree, -1 otherwise (paper 4.2; there the judge is an LLM).

    An Impression is inconsistent if it

    - asserts something abnormal that the Findings do not support, deny, or have on the other side, with a grade two
      steps away, of another size, or as old and not as new;
    - denies what the Findings are certain of, or calls the position of a device good that the Findings call bad;
    - says that nothing is wrong, or nothing acute, although the Findings are certain of more than that allows;
    - names findings and leaves an acute one out;
    - says neither that something is wrong nor that nothing is.

    So is a report whose Findings both assert and deny one thing. A label may stand for those that the labeler's
    `covers` names. What is minor or old (acuity.py) may be left out. If a section is empty the score is -1.
    """

    name = "consistency_rules"

    def __init__(self, labeler: Labeler) -> None:
        self.labeler = labeler
        # With other labels than those of a chest radiograph, nothing that is certain may be left out.
        self._grades_acuity = bool(names("acute") & {*labeler.labels})

    def __call__(self, findings: Sequence[str], impressions: Sequence[str]) -> list[float]:
        pairs = zip(findings, impressions, strict=True)
        return [1.0 if self.objection(f, i) is None else -1.0 for f, i in pairs]

    def objection(self, findings: str, impression: str) -> str | None:
        """What is wrong, or None if both agree."""
        if not findings.strip() or not impression.strip():
            return "a section is empty"
        observed, concluded = self._read(findings), self._read(impression)
        if denies_what_is_certain(observed, observed) or denies_what_is_certain(concluded, concluded):
            return "asserts and denies the same"
        if denies_what_is_certain(observed, concluded):
            return "denies what the Findings assert"
        known = _Observed(observed)
        return (
            next(filter(None, (self._unfounded(sentence, known) for sentence in _by_sentence(concluded))), None)
            or _position(findings, impression)
            or self._omission(observed, concluded, findings, impression)
        )

    def _read(self, text: str) -> list[Finding]:
        """The findings, each once: what a text repeats it says no more."""
        found = (one for one in self.labeler.findings(text) if one.name not in self.labeler.ignorable)
        return [*dict.fromkeys(found)]

    def _unfounded(self, statement: Sequence[Finding], observed: "_Observed") -> str | None:
        """What one sentence of the Impression says that the Findings do not bear out."""
        support = {one: self._support(_kind(one), observed) for one in statement if one.value != 0}
        explains = any(support.values())
        for one, supporting in support.items():
            if not supporting and not _needs_none(one, observed, explains=explains):
                return "not in the Findings"
            if one.sides and supporting and all(o.sides and not o.sides & one.sides for o in supporting):
                return "on the other side"
            if objection := _other_quality(one, [o for o in supporting if o.name == one.name], observed):
                return objection
        return None

    def _support(self, concluded: "_Kind", observed: "_Observed") -> "list[_Kind]":
        """What is observed and supports the concluded finding."""
        if concluded not in observed.support:
            related = {concluded.name, *self.labeler.covers.get(concluded.name, ())}
            kinds = (kind for name in related for kind in observed.kinds.get(name, ()) if kind.value != 0)
            observed.support[concluded] = [kind for kind in kinds if self._supports(kind, concluded)]
        return observed.support[concluded]

    def _supports(self, observed: "_Kind", concluded: "_Kind") -> bool:
        """The concluded finding is the observed one, or may stand for it."""
        if observed.name == concluded.name and (not observed.chronic or concluded.minor):
            return True
        related = observed.name in self.labeler.covers.get(concluded.name, ())
        return related and (not observed.old or concluded.chronic or concluded.name in names("incidental"))

    def _answers(self, concluded: "_Kind", observed: "_Kind") -> bool:
        """The concluded finding accounts for the observed one; "no severe stenosis" does for a mild one."""
        if concluded.value == 0:
            milder = concluded.grades and observed.grades and max(observed.grades) < min(concluded.grades)
            return bool(milder) and observed.name == concluded.name
        return self._supports(observed, concluded) or observed.name in self.labeler.implies.get(concluded.name, ())

    def _omission(
        self, observed: Sequence[Finding], concluded: Sequence[Finding], findings: str, impression: str
    ) -> str | None:
        """What the Findings are certain of and the Impression leaves out, by what it claims."""
        named = [one for one in concluded if one.value != 0]
        if not named and not self._says_something(findings, impression):
            return "says nothing"
        certain = [one for one in observed if one.value == 1]
        claims, kinds = ({_kind(one) for one in several} for several in (concluded, certain))
        missing = {kind for kind in kinds if not any(self._answers(claim, kind) for claim in claims)}
        left_out = [one for one in certain if _kind(one) in missing]
        serious = find_serious(observed).intersection(left_out) if self._grades_acuity else {*left_out}
        if named and any(is_acute(one) or not self._grades_acuity for one in serious):
            return "leaves a serious finding out"
        only_acute = searches("claims.acute", impression)
        if named and not only_acute:
            return None
        strict = not only_acute and searches("claims.normal", impression)
        wrong = serious or (strict and any(map(_is_abnormal, left_out)))
        return "calls abnormal Findings normal" if wrong else None

    def _says_something(self, findings: str, impression: str) -> bool:
        if self.labeler([impression])[0] or any(searches(f"claims.{kind}", impression) for kind in ("acute", "stable")):
            return True
        words = (set(_WORD.findall(text.lower())) for text in (findings, impression))
        shared = set.intersection(*words)
        return any(not searches("claims.vague", word) for word in shared)


@dataclass(frozen=True)
class _Kind:
    """All of a finding but its words and sizes. A long text has many findings of few kinds."""

    name: str
    value: int
    sides: frozenset[str]
    grades: frozenset[int]
    courses: frozenset[str]
    minor: bool
    chronic: bool
    old: bool
    borderline: bool


@remember
def _kind(one: Finding) -> _Kind:
    chronic = is_chronic(one)
    old, borderline = chronic or searches("words.old", one.piece), searches("words.borderline", one.piece)
    return _Kind(one.name, one.value, one.sides, one.grades, one.courses, is_minor(one), chronic, old, borderline)


class _Observed:
    """The kinds of the findings of a section."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.kinds: dict[str, set[_Kind]] = {}  # by name
        self.sizes: dict[_Kind, list[float]] = {}  # sorted
        self.support: dict[_Kind, list[_Kind]] = {}  # what supports a kind of the Impression, once it was asked
        for one in findings:
            self.kinds.setdefault(one.name, set()).add(_kind(one))
            self.sizes.setdefault(_kind(one), []).extend(one.sizes)
        for sizes in self.sizes.values():
            sizes.sort()


def _by_sentence(findings: Iterable[Finding]) -> Iterator[list[Finding]]:
    return ([*group] for _, group in groupby(findings, key=lambda one: one.sentence))


def _is_abnormal(finding: Finding) -> bool:
    """More than "a normal chest" may leave out: neither incidental nor chronic, and more than minimal."""
    minimal = finding.grades == {0}
    return not (minimal or finding.name in names("incidental") or is_chronic(finding))


def _needs_none(concluded: Finding, observed: _Observed, *, explains: bool) -> bool:
    """An Impression may say it without support: a possible cause of what has some, or a heart just below the limit."""
    if concluded.name in names("unsupported") or (explains and concluded.value == -1):
        return True
    limit = any(kind.borderline for kind in observed.kinds.get(concluded.name, ()))
    return max(concluded.grades, default=0) <= GRADES.index("mild") and limit


def _other_quality(one: Finding, same: Sequence[_Kind], observed: _Observed) -> str | None:
    """A grade, size or course that none of the same findings has."""
    near = [other for other in same if not other.sides or not one.sides or other.sides & one.sides]
    grades = {grade for other in near for grade in other.grades}
    if one.grades and grades and min(abs(a - b) for a, b in product(one.grades, grades)) > 1:
        return "of another grade"
    sizes = [known for other in near if (known := observed.sizes[other])]
    if one.sizes and sizes and not any(_is_about(*both) for both in product(one.sizes, sizes)):
        return "of another size"
    courses = {course for other in near for course in other.courses}
    if one.courses and courses and not one.courses & courses and all(other.courses for other in near):
        return "of another time"
    return None


def _is_about(size: float, sizes: Sequence[float]) -> bool:
    """Whether the next smaller or the next larger of these sorted sizes is about as large; no other one is nearer."""
    above = bisect_left(sizes, size)
    return any(abs(size - b) <= max(2, 0.3 * max(size, b)) for b in sizes[max(0, above - 1) : above + 1])


def _position(findings: str, impression: str) -> str | None:
    """The position of a device is bad in one section, and good or not worth a word in the other."""
    observed, concluded = positions(findings), positions(impression)
    claims = {kind for kind in ("acute", "normal") if searches(f"claims.{kind}", impression)}
    if ("bad" in observed and "bad" not in concluded and (claims or "good" in concluded)) or (
        "bad" in concluded and observed == {"good"}
    ):
        return "another position of a device"
    return None


def positions(text: str) -> set[str]:
    """good and bad, as a text says of the position of any device."""
    return {
        kind
        for sentence in sentences(text)
        if searches("position.device", sentence)
        for kind in ("bad", "good")
        if searches(f"position.{kind}", sentence)
    }
