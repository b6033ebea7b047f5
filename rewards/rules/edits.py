"""One finding of a report made right against its reference: one sentence per section removed, replaced or added.

Only texts go in and out. What is written instead is a sentence of another report of the group (the policy's own words)
before one of the reference, and goes where it is in its own report. A second sentence follows if the replaced one said
something else that is true, or the finding has two sides. `FindingErrors` confirms every edit: the error is gone, and
none is new.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import chain, islice, product
from typing import Literal

from radflow.rewards.rules.consistency import ConsistencyRules
from radflow.rewards.rules.errors import FindingError, FindingErrors, Kind
from radflow.rewards.rules.section_text import (
    Detail,
    Section,
    SectionReader,
    Sentence,
    Topic,
    align,
    all_topics,
    dice,
    ended,
)
from radflow.rewards.types import Parser

EDITED: tuple[Kind, ...] = ("denied", "missed", "side", "grade", "made up", "inexact")  # in this order
MOST_CHECKED = 24  # reports compared with the reference per call
MOST_TRIED = 8  # of them for one error
OPTIONS = 3  # ways to edit a section with sentences of one source: the others, or the reference


@dataclass(frozen=True)
class Edit:
    """A report in which one finding was made right."""

    report: str
    """The whole report, as `render` writes its two sections."""
    about: str
    """What came right and how, e.g. "missed Pleural Effusion: added"."""


@dataclass(frozen=True)
class _Donor:
    """A sentence that may be written instead, and where it is in a section of the same kind."""

    sentence: Sentence
    index: int
    source: Section
    moved: bool = False
    """From the other section; then `index` and `source` are of the reference."""

    @property
    def text(self) -> str:
        return ended(self.sentence.text)


@dataclass(frozen=True)
class _Option:
    """A section after an edit."""

    text: str
    how: Literal["added", "replaced", "removed"]


@dataclass(frozen=True)
class _Task:
    """A section to be edited, and what it may be edited with."""

    section: Section
    expected: Section  # of the reference
    reference: str
    topics: frozenset[Topic]  # of the whole reference
    others: tuple[Section, ...]  # the same section of the other reports
    donors: tuple[tuple[_Donor, ...], ...]  # by source: the others, the reference
    judge: ConsistencyRules

    def calls_normal(self, names: Set[str]) -> bool:
        """The section contradicts these findings of the reference by calling all normal, which that one does not."""
        findings = " ".join(donor.text for donor in self.donors[1] if donor.sentence.asserts & names)
        contradicts = self.judge.objection(findings, self.section.text) is not None
        return self.section.normal and bool(self.expected.asserted) and contradicts


_Both = tuple[Section, Section]  # Findings, Impression


class ReportEditor:
    """Makes one finding of a candidate right.

    Args:
        parse: section parser.
        render: Findings, Impression -> report.
        errors: of a candidate against a reference; they choose what is edited and confirm it.
    """

    def __init__(self, parse: Parser, render: Callable[[str, str], str], errors: FindingErrors) -> None:
        self.parse, self.render, self.errors = parse, render, errors
        self.judge = ConsistencyRules(errors.labeler)
        self._section = SectionReader(errors.labeler)

    def __call__(
        self, candidate: str, reference: str, others: Sequence[str], *, missed_by_all: bool = False
    ) -> Edit | None:
        """The candidate with one finding made right against its reference; None if no edit is possible or needed.

        Args:
            others: other reports of the group.
            missed_by_all: edit only findings that the candidate and all others miss or deny.
        """
        written, expected = self._sections(candidate), self._sections(reference)
        if written is None or expected is None:
            return None
        reference = self.parse(reference).described  # what the metrics read
        tasks = self._tasks(written, expected, [both for o in others if (both := self._sections(o))], reference)
        before = self._errors([section.text for section in written], reference)
        left = MOST_CHECKED
        edited = (error for error in before if error.kind in EDITED)
        for error in sorted(edited, key=lambda error: (EDITED.index(error.kind), error.about)):
            if missed_by_all and not self._all_miss(error, others, reference):
                continue
            for options in islice(self._attempts(error, tasks), min(left, MOST_TRIED)):
                left -= 1
                texts = [new.text if new else old.text for new, old in zip(options, written, strict=True)]
                if self._is_right(error, before, texts, reference):
                    how = dict.fromkeys(option.how for option in options if option)
                    return Edit(self.render(*texts), f"{error.kind} {error.about}: {' and '.join(how)}")
        return None

    def _sections(self, report: str) -> _Both | None:
        parsed = self.parse(report)
        return (self._section(parsed.findings), self._section(parsed.impression)) if parsed.status == "ok" else None

    def _errors(self, texts: Sequence[str], reference: str) -> list[FindingError]:
        return self.errors(self.parse(self.render(*texts)).described, reference)

    def _all_miss(self, error: FindingError, others: Sequence[str], reference: str) -> bool:
        if error.kind not in ("missed", "denied"):
            return False
        said = (self.errors(self.parse(other).described or other, reference) for other in others)
        return all(any(e.about == error.about and e.kind in ("missed", "denied") for e in errors) for errors in said)

    def _is_right(self, error: FindingError, before: list[FindingError], texts: Sequence[str], reference: str) -> bool:
        """The error is gone, none is new, and the report is still read as these two sections."""
        after = Counter(self._errors(texts, reference))
        if error in after or not after < Counter(before):
            return False
        parsed = self.parse(self.render(*texts))
        return parsed.status == "ok" and [parsed.findings, parsed.impression] == list(texts)

    def _tasks(self, written: _Both, expected: _Both, others: Sequence[_Both], reference: str) -> list[_Task]:
        """One per section. Sentences of the same section come before those of the other one, of the candidate too."""
        topics, tasks = expected[0].topics | expected[1].topics, []
        details = {detail for section in expected for s in section.sentences for detail in s.details}
        for this, that in ((0, 1), (1, 0)):
            same = [donor for both in others for donor in _donors(both[this])]
            same += [_moved(d, expected[this]) for both in (*others, written) for d in _donors(both[that])]
            true = tuple(d for d in same if self._is_true(d.sentence, reference, details))
            own = (*_donors(expected[this]), *(_moved(d, expected[this]) for d in _donors(expected[that])))
            task = _Task(
                section=written[this],
                expected=expected[this],
                reference=reference,
                topics=topics,
                others=tuple(both[this] for both in others),
                donors=(true, own),
                judge=self.judge,
            )
            tasks.append(task)
        return tasks

    def _attempts(self, error: FindingError, tasks: Sequence[_Task]) -> Iterator[Sequence[_Option | None]]:
        """Edits of both sections before those of one, the better sentences first."""
        said = (sentence for task in tasks for sentence in task.section.sentences)
        names = next((s.asserts for s in said if s.text == error.about), frozenset({error.about}))
        options = [[*self._options(error, names, task), None] for task in tasks]
        pairs = sorted(product(*(range(len(found)) for found in options)), key=sum)
        for pair in pairs[:-1]:  # the last is no edit
            yield [found[index] for found, index in zip(options, pair, strict=True)]

    def _errors_in(self, sentence: Sentence, reference: str) -> set[FindingError]:
        """What a sentence says wrong; not what it leaves out."""
        said = (e for e in self.errors(sentence.text, reference) if e.kind not in ("missed", "unsaid"))
        return {e for e in said if e.kind != "inexact" or self._speaks_of(sentence, e.about)}

    def _is_true(self, sentence: Sentence, reference: str, details: Set[Detail]) -> bool:
        """Nothing is wrong, or only on its own: "possible left effusion" is inexact without the certain one right."""
        errors = self._errors_in(sentence, reference)
        return all(error.kind == "inexact" and sentence.details <= details for error in errors)

    def _is_wrong(self, sentence: Sentence, about: Set[str], reference: str) -> bool:
        return any(error.about in about for error in self._errors_in(sentence, reference))

    def _speaks_of(self, sentence: Sentence, about: str) -> bool:
        """About a finding, or about one that may stand for it."""
        covers = self.errors.covers
        return about == sentence.text or any(
            name == about or name in covers.get(about, ()) or about in covers.get(name, ()) for name in sentence.names
        )

    def _options(self, error: FindingError, names: frozenset[str], task: _Task) -> Iterator[_Option]:
        """The section with the finding right, in some ways; none if nothing is wrong about it here."""
        # On its own, a sentence that makes something up may only seem inexact, for it lacks what others say.
        made_up = names - {name for name, _, asserted in task.topics if asserted}
        true = {sentence.text for sentence in task.expected.sentences}
        wrong = [
            index
            for index, sentence in enumerate(task.section.sentences)
            if sentence.text not in true
            and (sentence.asserts & made_up or self._is_wrong(sentence, {*names, error.about}, task.reference))
        ]
        for index in wrong:
            yield from _corrected(task, index, names)
        if not wrong:
            wanted = frozenset(topic for topic in task.expected.topics if topic[0] in names and topic[2])
            if not wanted and task.calls_normal(names):
                wanted = frozenset(topic for topic in task.topics if topic[0] in names and topic[2])
            yield from _completed(task, wanted - task.section.topics)


def _donors(section: Section) -> list[_Donor]:
    return [_Donor(sentence, index, section) for index, sentence in enumerate(section.sentences)]


def _moved(donor: _Donor, section: Section) -> _Donor:
    """A donor of the other section, to where this section of the reference has what it says, else to its end."""
    return _Donor(donor.sentence, _first(donor.sentence, section), section, moved=True)


def _corrected(task: _Task, index: int, names: frozenset[str]) -> Iterator[_Option]:
    """The section with a wrong sentence replaced or removed."""
    wanted = frozenset(topic for topic in task.expected.topics if topic[0] in names)
    lost = _lost(task, index, wanted)
    for donor in _chosen(task, wanted & lost or lost):
        yield _Option(task.section.replaced(index, _text(donor, lost, task)), "replaced")
    for text in [] if lost else _normal_instead(task, index):
        yield _Option(task.section.replaced(index, ended(text)), "replaced")
    if len(task.section.sentences) > 1:
        yield _Option(task.section.without(index), "removed")
        return
    for other in (*task.others, task.expected):
        if other.topics == task.expected.topics and other.normal == task.expected.normal:
            yield _Option(other.text, "replaced")


def _normal_instead(task: _Task, index: int) -> list[str]:
    """What the others, or else the reference, call normal where a sentence made something up."""
    pairs = align(task.expected.sentences, task.section.sentences)
    texts = []
    for i, sentence in enumerate(task.expected.sentences):
        first = max((k for j, k in pairs.items() if j < i), default=-1)
        last = min((k for j, k in pairs.items() if j > i), default=len(task.section.sentences))
        if sentence.normal and i not in pairs and first < index < last:
            for other in task.others:
                said = align(other.sentences, task.expected.sentences)
                texts += [other.sentences[k].text for k, j in said.items() if i == j]
            texts.append(sentence.text)
    return [*dict.fromkeys(texts)][:OPTIONS]


def _completed(task: _Task, wanted: frozenset[Topic]) -> Iterator[_Option]:
    """The section with a sentence added, or written instead of the one whose part it takes."""
    for donor in _chosen(task, wanted):
        first, last = _position(donor, task.section.sentences)
        index = _taken(task, donor, first, last)
        if index is not None:
            lost = _lost(task, index, wanted)
            yield _Option(task.section.replaced(index, _text(donor, lost, task)), "replaced")
        elif (text := task.section.added(first, _text(donor, wanted, task))) is not None:
            yield _Option(text, "added")


def _lost(task: _Task, index: int, wanted: frozenset[Topic]) -> frozenset[Topic]:
    """What is to be said when a sentence is gone."""
    rest = all_topics(s for i, s in enumerate(task.section.sentences) if i != index)
    return (wanted | (task.section.sentences[index].topics & task.topics)) - rest


def _taken(task: _Task, donor: _Donor, first: int, last: int) -> int | None:
    """The sentence that a donor makes superfluous: it says no more, or it calls normal what the donor speaks of."""
    listed = task.section.sentences
    less = (i for i, s in enumerate(listed) if s.asserts and s.details <= donor.sentence.details)
    pair = align(donor.source.sentences, listed).get(donor.index)
    same = (i for i in (pair,) if i is not None and not listed[i].asserts)
    # The only sentence, or the only one between two that the donor's section has too, is about the same; of others the
    # judge knows.
    alone = len(listed) == 1 or 0 < first == last - 1 < len(listed) - 1
    kept = align(task.expected.sentences, listed).values()
    normal = (
        i
        for i in (range(len(listed)) if len(listed) == 1 else range(first, last))
        if listed[i].normal and not listed[i].asserts and i not in kept
        if alone or task.judge.objection(donor.text, listed[i].text) is not None
    )
    return next(chain(less, same, normal), None)


def _chosen(task: _Task, wanted: frozenset[Topic]) -> list[_Donor]:
    """Donors that say what is wanted, the best first, some of the others and some of the reference."""
    chosen: list[_Donor] = []
    seen = {sentence.text for sentence in task.section.sentences}
    for donors in task.donors:
        fitting = (donor for donor in donors if donor.sentence.topics & wanted and donor.text not in seen)
        best = sorted(fitting, key=lambda donor: _worth(donor, wanted, task), reverse=True)
        chosen += islice({donor.text: donor for donor in best}.values(), OPTIONS)
        seen |= {donor.text for donor in chosen}
    return sorted(chosen, key=lambda donor: _repeats(donor, task))


def _worth(donor: _Donor, wanted: frozenset[Topic], task: _Task) -> tuple[float, ...]:
    """Says most of what is wanted, repeats nothing, is of this section, adds least, is most like the first sentence of
    the reference about it: later ones tell of changes."""
    said = donor.sentence.topics
    likeness = next((dice(donor.sentence, s) for s in task.expected.sentences if s.topics & said & wanted), 0.0)
    return len(said & wanted), -_repeats(donor, task), not donor.moved, -len(said - wanted), likeness


def _repeats(donor: _Donor, task: _Task) -> int:
    """How many sentences of the section say some, but not all, of what a donor asserts without being superfluous."""
    said = donor.sentence
    listed = [s for s in task.section.sentences if s.asserts & said.asserts]
    return len(listed) - any(s.details <= said.details for s in listed)


def _text(donor: _Donor, wanted: frozenset[Topic], task: _Task) -> str:
    """The donor, and another sentence for what is wanted and it does not say, in the order of the reference."""
    both = [donor, *_chosen(task, wanted - donor.sentence.topics)[:1]]
    return " ".join(one.text for one in sorted(both, key=lambda one: _first(one.sentence, task.expected)))


def _first(sentence: Sentence, section: Section) -> int:
    """Index of the first sentence of a section that says some of the same; their number if none does."""
    listed = section.sentences
    return next((i for i, one in enumerate(listed) if one.topics & sentence.topics), len(listed))


def _position(donor: _Donor, listed: Sequence[Sentence]) -> tuple[int, int]:
    """Between which indices a donor goes, from where it is in its own section: after the nearest sentence that precedes
    it there too, else before the nearest one that follows it, else at the end."""
    pairs = align(donor.source.sentences, listed)
    last = min((k for i, k in pairs.items() if i > donor.index), default=len(listed))
    first = max((k + 1 for i, k in pairs.items() if i < donor.index), default=0 if donor.index == 0 else last)
    return first, last
