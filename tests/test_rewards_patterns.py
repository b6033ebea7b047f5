"""The files of wordings: parts, and errors that name file and entry."""

import re
import subprocess
import sys

import pytest

from radflow.data.sections import parse_sections
from radflow.rewards.rules import patterns, terms
from radflow.rewards.rules.chexpert_rules import LABELS, ChexpertRules
from radflow.rewards.rules.negation import load_cues
from radflow.rewards.rules.terms import load_terms


def write(tmp_path, text):
    path = tmp_path / "wordings.toml"
    path.write_text(text, encoding="utf-8")
    return patterns.PatternFile(path)


def test_a_part_stands_for_its_expression_and_a_list_for_alternatives(tmp_path):
    file = write(tmp_path, "[parts]\nbig = ['large', 'huge']\nvery_big = '(?:very )?<big>'\n")
    pattern = file.compile(["<very_big> heart", r"(?P<big>wide) (?<!x)aorta"], "entry", r"\b(?:{})\b")
    assert pattern.pattern == r"\b(?:(?:very )?(?:large|huge) heart|(?P<big>wide) (?<!x)aorta)\b"
    assert pattern.search("A very HUGE heart.") and not pattern.search("A huge hearts.")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[parts", r"wordings\.toml: expected TOML, got"),
        ("[parts]\na = '<b>'\nb = 'x'\n", r"wordings\.toml: parts\.a: expected <b> among parts above it, got \[\]"),
        ("[parts]\na = ['x', '(y']\n", r"wordings\.toml: parts\.a: expected a regular expression, got '\(y'"),
        ("[parts]\na = []\n", r"wordings\.toml: parts\.a: expected a list of regular expressions, got \[\]"),
        ("[parts]\na = ['x', 1]\n", r"wordings\.toml: parts\.a: expected a list of regular expressions"),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_entry(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, text)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ("wordings = ['x', 'y)']", r"term 1 \(Edema\)\.wordings: expected a regular expression, got 'y\)'"),
        ("wordings = 'x'", r"term 1 \(Edema\)\.wordings: expected a list of regular expressions, got 'x'"),
        ("denies = true", r"term 1 \(Edema\)\.wordings: expected a list of regular expressions, got None"),
        ("wordings = ['x']\nunless = ['[']", r"term 1 \(Edema\)\.unless: expected a regular expression, got '\['"),
        ("wordings = ['x']\ndenies = 0", r"term 1 \(Edema\): expected name, wordings, denies \(true or false\)"),
        ("wordings = ['x']\nunles = ['y']", r"term 1 \(Edema\): expected name, .*, unless, got .*unles"),
    ],
)
def test_a_wrong_term_is_refused_by_file_and_entry(tmp_path, monkeypatch, term, message):
    monkeypatch.setattr(terms, "read_patterns", lambda _: write(tmp_path, f"[[term]]\nname = 'Edema'\n{term}\n"))
    with pytest.raises(ValueError, match=r"wordings\.toml: " + message):
        load_terms.__wrapped__("chexpert")


def test_every_label_has_wordings_and_every_covered_name_is_known():
    labels = {term.name for term in load_terms("chexpert")}
    assert labels == set(LABELS) - {"No Finding"}
    known = labels | {term.name for term in load_terms("other_findings")}
    covers = ChexpertRules(parse_sections).covers
    assert covers.keys() <= known and set().union(*covers.values()) <= known


def test_cues_are_named_by_what_they_make_of_a_mention():
    cues = load_cues()
    assert set(cues.before.groupindex) == {"neutral", "other", "anyhow", "uncertain", "denied"}
    assert cues.after.keys() == {"other", "denied", "uncertain"} and cues.ends.keys() == {
        "clause",
        "stop",
        "list",
        "listed",
        "cause",
    }
    assert all(pattern.flags & re.IGNORECASE for pattern in (cues.before, *cues.after.values(), *cues.ends.values()))


def test_importing_the_rules_reads_no_file_and_loads_nothing_heavy():
    code = (
        "import radflow.rewards.rules.consistency, sys; from radflow.rewards.rules.patterns import read_patterns;"
        "print(read_patterns.cache_info().currsize, *{'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
