"""Long reports: what is compared by indices and bits has the value of the definition that compares pair by pair."""

import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radflow.data.sections import parse_sections
from radflow.rewards.rules import negation, spelling
from radflow.rewards.rules.chexpert_rules import ChexpertRules
from radflow.rewards.rules.consistency import ConsistencyRules
from radflow.rewards.rules.denials import denies_what_is_certain
from radflow.rewards.rules.findings import measurements, read_findings
from radflow.rewards.rules.keywords import Lexicon, _both_sides
from radflow.rewards.rules.sentences import changed_sentences, new_advice, new_measurements

LENGTHS = st.lists(st.sampled_from([f"{n / 10} {unit}" for n in range(0, 60, 3) for unit in ("mm", "cm", "%")]))
_THINGS = ["effusion", "opacity", "edema", "nodule", "focal opacity", "focal consolidation", "atelectasis"]
_QUALITIES = ["", "left ", "right ", "small ", "large left ", "moderate ", "old ", "12 mm ", "worrisome "]
SENTENCES = st.lists(
    st.builds(
        "{}{}{}.".format, st.sampled_from(["", "No ", "No other "]), *map(st.sampled_from, (_QUALITIES, _THINGS))
    ),
    max_size=8,
)


@given(LENGTHS, LENGTHS)
def test_a_measurement_is_new_if_none_of_the_reference_is_within_a_tenth(text, reference):
    text, reference = ", ".join(text), ", ".join(reference)
    pairs = measurements(text), measurements(reference)
    near = [any(u == unit and abs(value - v) <= 0.1 * v for v, u in pairs[1]) for value, unit in pairs[0]]
    expected = [f"{value:g} {unit}" for (value, unit), known in zip(pairs[0], near, strict=True) if not known]
    assert new_measurements(text, reference) == expected


ADVICE = st.lists(
    st.lists(st.sampled_from(["chest", "scan", "repeat", "with", "contrast", "in", "two", "weeks"]), max_size=7).map(
        lambda words: f"Recommend {' '.join(words)}."
    ),
    max_size=6,
)


@given(ADVICE, ADVICE)
def test_advice_is_known_if_one_of_the_reference_shares_half_of_its_words(text, reference):
    def letters(sentence):
        return set(re.findall("[a-z]{3,}", sentence.lower()))

    text, reference = (new_advice(" ".join(side), "") for side in (text, reference))  # what is advice at all
    new = [a for a in text if not any(2 * len(letters(a) & letters(b)) >= len(letters(a)) for b in reference)]
    assert new_advice(" ".join(text), " ".join(reference)) == new


def test_a_changed_sentence_by_hand_among_others_of_the_same_words():
    # the reference says "small left" nowhere, and the text says "large right" and "small right" nowhere: right is the
    # other side, small the nearer grade; what both say somewhere is no change
    (change,) = changed_sentences("Small left effusion. Mild edema.", "Large right effusion. Small right effusion.")
    assert (change.sentence, change.side, change.steps) == ("Small left effusion.", True, 0)
    assert not [*changed_sentences("Small left effusion. Large right effusion.", "Large right effusion.")]


@settings(max_examples=60)
@given(SENTENCES, SENTENCES)
def test_texts_contradict_each_other_if_two_of_their_findings_do(asserted, denied):
    asserted, denied = (read_findings(" ".join(side)) for side in (asserted, denied))
    pairs = any(denies_what_is_certain([one], [other]) for one, other in product(asserted, denied))
    assert denies_what_is_certain(asserted, denied) == pairs


CUES = ["no", "not", "without", "cannot exclude", "may", "if", "likely", "history of", "due to", "is", "but", "with"]
CUES += [",", ";", "and", "or", "edema", "small", "lung"]


@given(st.lists(st.sampled_from(CUES), max_size=14), st.lists(st.sampled_from(CUES), max_size=5))
def test_the_last_cue_of_a_kind_reaches_a_mention_if_any_does(before, after):
    before, after, ends = f"{' '.join(before)} ", f" {' '.join(after)}", negation.load_cues().ends
    cues = [*negation.load_cues().before.finditer(before)]
    reaching = {cue.lastgroup for cue in cues if negation._reaches(cue, before, after, ends)}
    last = {cue.lastgroup: cue for cue in cues}
    assert reaching == {kind for kind, cue in last.items() if negation._reaches(cue, before, after, ends)}


@given(st.lists(st.sampled_from(["left", "right", "bilateral", "plaque", "and", ",", "with", "."]), max_size=16))
def test_a_keyword_has_the_sides_of_its_piece_or_the_one_before_or_after(words):
    sentence, lexicon = " ".join(words), Lexicon.load()
    named = [*lexicon._side_pattern.finditer(sentence)]
    for word in re.finditer(r"\w+", sentence):
        start, end = word.span()
        here = [match for match in named if match.start() < end and match.end() > start]
        earlier = [match for match in named if match.end() <= start][-1:]
        comma = sentence.find(",", end) if "," in sentence[end:] else len(sentence)
        later = [match for match in named if end <= match.start() < comma][:1]
        assert lexicon._sides(sentence, start, end) == _both_sides(here or earlier or later)


def test_the_judge_compares_kinds_of_findings_and_not_findings(monkeypatch):
    judge, asked = ConsistencyRules(ChexpertRules(parse_sections)), []
    supports = ConsistencyRules._supports
    monkeypatch.setattr(ConsistencyRules, "_supports", lambda *pair: asked.append(pair) or supports(*pair))
    counts = []
    for number in (20, 80):
        findings = " ".join(f"Left nodule of {n} mm in zone {n}." for n in range(number))
        asked.clear()
        assert judge.objection(findings, findings.replace("zone", "region")) is None
        counts.append(len(asked))
    assert counts[0] == counts[1]


def test_a_sentence_is_cut_once_however_many_keywords_it_mentions():
    misses = []
    for number in (20, 80):
        negation.cut_points.cache_clear()
        Lexicon.load().mentions("left plaque with 50% stenosis, " * number)
        misses.append(negation.cut_points.cache_info().misses)
    assert misses[0] == misses[1]


def test_a_text_without_blanks_is_no_misspelt_word(monkeypatch):
    # what is left of 40,000 letters without two of them filled the memory
    monkeypatch.setattr(spelling, "_shortened", None)
    assert spelling.mended_word("effusion" * 5000) == "effusion" * 5000


@pytest.mark.parametrize("text", ["." * 200_000, "7" * 200_000, "1." * 100_000, "left " * 40_000])
def test_runs_of_one_sign_are_read_at_once(text):
    # each took time with the square of its length, hours for these
    assert new_measurements(text, text) == [] and [*changed_sentences(text, "Normal.")] == []
