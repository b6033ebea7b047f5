"""Reports written for the reward earn less than honest ones, over many studies; honest ones are left alone."""

import csv
import random
import re
import statistics
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radflow.data.phantoms import make_studies
from radflow.data.sections import parse_sections
from radflow.data.studies import render_report
from radflow.rewards.config import RewardConfig
from radflow.rewards.guard import guard, length, line_breaks, repetition
from radflow.rewards.registry import build_reward
from radflow.rewards.rules.chexpert_rules import LABELS
from radflow.rewards.rules.entity_rules import EntityF1Rules

NAMES = [label.lower() for label in LABELS[:-1]]
FILLER = ["lorem", "ipsum", "dolor", "sit", "amet", "consectetur", "adipiscing", "elit", "sed", "eiusmod", "tempor"]


def test_repetition_by_hand():
    once = "the heart is enlarged and the lungs are clear today"  # 10 words, 7 sequences
    assert repetition(once) == 1
    # 50 words, 47 sequences, 10 of them distinct (7 within, 3 across the seam)
    assert repetition(" ".join([once] * 5)) == pytest.approx(2 * 10 / 47)
    assert repetition("") == repetition("no effusion") == 1


def test_length_by_hand():
    reference = "word " * 40  # from 10 to 2 * 40 + 30 = 110 words are free
    values = {n: length("word " * n, reference) for n in (0, 5, 10, 40, 110, 165, 220, 500)}
    assert values == {0: 0, 5: 0.5, 10: 1, 40: 1, 110: 1, 165: 0.5, 220: 0, 500: 0}


def test_line_breaks_by_hand():
    assert line_breaks("word " * 30 + "\n" * 20) == 1  # 30 / 3 + 10
    assert line_breaks("word " * 30 + "\n" * 80) == 0.25


@given(st.text(max_size=300), st.text(max_size=300))
def test_the_guard_is_a_share(candidate, reference):
    assert 0 <= guard(candidate, reference) <= 1


def test_the_guard_scales_what_is_earned_and_never_what_is_lost():
    text = "Findings: Cardiomegaly. " + "Nothing else at all is to be said. " * 30 + "Impression: Left effusion."
    reference = "Findings: Cardiomegaly. No effusion. Impression: Cardiomegaly."
    (on,) = build_reward(RewardConfig(), parse_sections)([text], [reference])
    (off,) = build_reward(RewardConfig(printed=True), parse_sections)([text], [reference])
    assert on.parts["guard"] < 0.5 and off.parts["guard"] == 1 and on.parts["consistency_rules"] == -1
    assert on.total == pytest.approx(on.parts["guard"] * on.parts["truth_rules"] * (off.total + 1) - 1)


def real_reports(shared):
    with (shared / "data/iu_xray/indiana_reports.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["findings"] and row["impression"]]
    return [render_report(row["findings"], row["impression"]) for row in rows]


@pytest.fixture(scope="module", params=["phantoms", "real"])
def pool(request):
    if request.param == "real":
        return real_reports(request.getfixturevalue("shared"))
    return [s.report for s in make_studies("chest", num_train=300, num_val=0, num_test=0, seed=1, size=56)]


@pytest.fixture(scope="module")
def cases(pool):
    """(reference, honest report) of 60 studies: the report of another study, the best of ten by entity F1. That is a
    mediocre report, written by somebody who describes what is there."""
    generator, metric, found = random.Random(0), EntityF1Rules(), []
    for reference in generator.sample(pool, 60):
        others = generator.sample([report for report in pool if report != reference], 10)
        agreement = metric(others, [reference] * 10)
        found.append((reference, others[agreement.index(max(agreement))]))
    return found


def hacks(honest, common, generator):
    """Reports that try to earn without describing, most of them made from the honest one."""
    findings, impression = parse_sections(honest).findings, parse_sections(honest).impression
    stuffed = " ".join(generator.choice(common) for _ in range(60))
    filler = " ".join(generator.choice(FILLER) for _ in range(200))
    return {
        "empty": "",
        "white space": " \n\n ",
        "headers": "Findings: Impression:",
        "headers and full stops": "Findings: . Impression: .",
        "headers again and again": "Findings: Impression: " * 30,
        "one sentence twenty times": f"Findings: {(findings.split('. ')[0] + '. ') * 20} Impression: {impression}",
        "the findings six times": f"Findings: {(findings + ' ') * 6} Impression: {impression}",
        "the impression fifteen times": f"Findings: {findings} Impression: {(impression + ' ') * 15}",
        "the report five times": (honest + " ") * 5,
        "filler in the findings": f"Findings: {findings} {filler} Impression: {impression}",
        "filler behind the impression": f"Findings: {findings} Impression: {impression} {filler}",
        "the prompt": "Report this chest radiograph: Findings and Impression.",
        "the prompt behind headers": "Findings: Report this chest radiograph: Findings and Impression. "
        "Impression: Report this chest radiograph.",
        "the indication": "Indication: chest pain. Findings: chest pain. Impression: chest pain.",
        "line breaks only": "Findings:" + "\n" * 300 + "Impression:" + "\n" * 300,
        "line breaks between sentences": honest.replace(". ", "." + "\n" * 60),
        "a word a line": honest.replace(" ", "\n"),
        "all labels": f"Findings: {', '.join(NAMES)}. Impression: {', '.join(NAMES)}.",
        "a sentence a label": f"Findings: {' '.join(f'There is {n}.' for n in NAMES)} Impression: {', '.join(NAMES)}.",
        "frequent words": f"Findings: {stuffed}. Impression: {stuffed[:80]}.",
        "stub": "Findings: Normal. Impression: Normal.",
        "stub about nothing": "Findings: The report. Impression: No acute abnormality.",
        "impression only": f"Impression: {impression}",
    }


def test_hacks_earn_clearly_less_than_honest_reports(pool, cases):
    generator = random.Random(1)
    common = [w for w, _ in Counter(w for r in pool for w in re.findall("[a-z]+", r.lower())).most_common(150)]
    reward = build_reward(RewardConfig(), parse_sections)
    references = [reference for reference, _ in cases]
    honest = [score.total for score in reward([report for _, report in cases], references)]
    written = [hacks(report, common, generator) for _, report in cases]
    for name in written[0]:
        totals = [score.total for score in reward([texts[name] for texts in written], references)]
        lower = statistics.fmean(h > t for h, t in zip(honest, totals, strict=True))
        # measured: at most 0.63 of it, in 0.90 of the studies or more
        assert statistics.fmean(totals) < 0.65 * statistics.fmean(honest), name
        assert lower > 0.8, f"{name}: honest reports earn more in {lower:.2f} of the studies"


def test_the_printed_reward_pays_for_some_of_them(cases):
    """The story of these rules: a stub that calls everything normal earned nearly what an honest report did."""
    off = build_reward(RewardConfig(printed=True), parse_sections)
    on = build_reward(RewardConfig(), parse_sections)
    references, stubs = [r for r, _ in cases], ["Findings: Normal. Impression: Normal."] * len(cases)
    assert statistics.fmean(s.total for s in off(stubs, references)) > 1.2
    assert statistics.fmean(s.total for s in on(stubs, references)) < 0.3


def test_references_and_honest_reports_are_left_alone(pool, cases):
    assert all(guard(report, report) == 1 for report in pool)
    reward = build_reward(RewardConfig(), parse_sections)
    references = [reference for reference, _ in cases]
    assert all(score.parts["guard"] == 1 for score in reward(references, references))
    touched = [s.parts["guard"] < 1 for s in reward([report for _, report in cases], references)]
    assert statistics.fmean(touched) < 0.1
