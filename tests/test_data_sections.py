import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sections import parse_sections
from data.studies import render_report

sentences = st.lists(
    st.sampled_from(["The heart is normal", "No effusion", "XXXX opacity, 1.2 cm", "Clear (both sides)", "See above"]),
    min_size=1,
    max_size=4,
).map(lambda parts: ". ".join(parts) + ".")


@pytest.mark.parametrize(
    ("text", "findings", "impression", "status"),
    [
        ("Findings: Clear. Impression: Normal.", "Clear.", "Normal.", "ok"),
        ("FINDINGS:\nClear.\n\nIMPRESSION:\nNormal.", "Clear.", "Normal.", "ok"),
        ("**Findings:** Clear.\n**Impression:** Normal.", "Clear.", "Normal.", "ok"),
        ("Findings\nClear.\nConclusion\nNormal.", "Clear.", "Normal.", "ok"),
        ("findings: no full stop Impression: Normal.", "no full stop", "Normal.", "ok"),
        ("Indication: Cough. Findings: Clear. Opinion: Normal.", "Clear.", "Normal.", "ok"),
        ("Findings: my impression: none. Impression: Normal.", "my impression: none.", "Normal.", "ok"),
        ("The lungs are clear.", "", "", "missing_findings"),
        ("Findings: Clear.", "Clear.", "", "missing_impression"),
        ("Findings: Clear. Impression:", "Clear.", "", "missing_impression"),
        ("Findings: Impression: Normal.", "", "Normal.", "missing_findings"),
        ("Impression: Normal. Findings: Clear.", "Clear.", "Normal.", "ambiguous"),
        ("Findings: Clear. Impression: A. Impression: B.", "Clear.", "A.", "ambiguous"),
        ("Findings and Impression: Clear and normal.", "", "", "ambiguous"),
        ("", "", "", "missing_findings"),
    ],
)
def test_headers(text, findings, impression, status):
    sections = parse_sections(text)
    assert (sections.findings, sections.impression, sections.status) == (findings, impression, status)


@given(sentences, sentences)
def test_a_rendered_report_is_read_back(findings, impression):
    sections = parse_sections(render_report(findings, impression))
    assert (sections.findings, sections.impression, sections.status) == (findings, impression, "ok")


@pytest.mark.parametrize("degenerate", ["\n", "\n ", " \n", ". ", "\r\n", "1) ", "Findings "])
def test_parsing_time_grows_with_the_length_of_a_degenerate_report(degenerate):
    # 20,000 empty lines took 52 s when every run of them could be matched in several ways; now about 0.01 s
    start = time.perf_counter()
    parse_sections(degenerate * 20000)
    assert time.perf_counter() - start < 2


@given(st.text(max_size=200))
def test_any_text_is_parsed_and_sections_are_parts_of_it(text):
    sections = parse_sections(text)
    assert sections.findings in text and sections.impression in text


@given(st.lists(st.sampled_from(["Findings:", "Impression:", "**", "\n", " ", "a.", "Conclusion", "1."]), max_size=12))
def test_scrambled_headers_never_give_an_ok_report_without_both_sections(parts):
    sections = parse_sections("".join(parts))
    if sections.status == "ok":
        assert sections.findings and sections.impression


def test_real_reports_with_both_sections_are_read_back(shared):
    """One of 2,216 real reports repeats a header inside its Impression; it is rightly ambiguous."""
    ambiguous = 0
    for line in (shared / "data/iu_xray/manifest.jsonl").read_text().splitlines():
        row = json.loads(line)
        sections = parse_sections(render_report(row["findings"], row["impression"]))
        if not row["impression"]:
            assert sections.status == "missing_impression"
        elif sections.status == "ambiguous":
            ambiguous += 1
        else:
            assert (sections.findings, sections.impression) == (row["findings"].strip(), row["impression"].strip())
    assert ambiguous == 1
