"""Layouts of whole reports: the table in layouts.toml, every header in every way to write it, and real reports."""

import json
import multiprocessing
import tomllib
from itertools import product
from pathlib import Path

import pytest

from radflow.data.corpus import DataConfig, load_corpus
from radflow.data.header_table import load_headers
from radflow.data.sections import SectionParser, parse_sections

LAYOUTS = tomllib.loads(Path(__file__).with_name("layouts.toml").read_text(encoding="utf-8"))["layout"]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout["name"])
def test_layout(layout):
    sections = parse_sections(layout["text"])
    expected = layout["findings"], layout["impression"], layout.get("status", "ok")
    assert (sections.findings, sections.impression, sections.status) == expected


@pytest.mark.parametrize(
    "text",
    [
        "<r><id>7</id><findings>Clear.</findings><impression>Normal.</impression><by>Dr. Doe</by></r>",
        '{"id": "7", "findings": "Clear.", "impression": "Normal.", "by": "Dr. Doe"}',
        "CHEST TWO VIEWS\nFindings: Clear.\nImpression: Normal.\nSigned by Dr. Doe",
        "Clinical history: Cough.\nHallazgos: Clear.\nImpresión: Normal.\nRecomendación: None.",
    ],
)
def test_what_is_around_the_sections_describes_nothing(text):
    assert parse_sections(text).described == "Clear.\n\nNormal."


CASES = [str.upper, str.capitalize, str.title, str.lower]
FORMS = ["{}: ", "{}:\n", "{}\n", "{} - ", "**{}** ", "**{}:**\n", "1. {}: ", "## {}\n", "{}:\n\n", "{} :\t"]


def names(*sections):
    return [name for name, header in load_headers().of_name.items() if header.section in sections]


def test_every_header_in_every_way_to_write_it():
    for opened, name in [(s, name) for s in ("findings", "impression", "indication") for name in names(s)]:
        for case, form in product(CASES, FORMS):
            findings, impression = (name if opened == s else s for s in ("findings", "impression"))
            parts = [(findings, "Clear lungs."), (impression, "Normal.")]
            parts = [(name, "Cough.")] * (opened == "indication") + parts
            text = "\n".join(form.format(case(header)) + body for header, body in parts)
            sections = parse_sections(text)
            assert (sections.findings, sections.impression, sections.status) == ("Clear lungs.", "Normal.", "ok"), text


def test_no_header_in_a_sentence():
    """At the start of a line or in its middle; capitals are left out, they mark a header without any sign."""
    for name, header in load_headers().of_name.items():
        if header.reach == "sign-off" or name[-1] >= "\u2e80":
            continue
        for said in (f"{name.capitalize()} was seen again.", f"We saw {name} again.", f"No\n{name}."):
            sections = parse_sections(f"Findings: Clear.\n{said}\nImpression: Normal.")
            assert (sections.findings, sections.impression) == (f"Clear.\n{said}", "Normal."), said


def test_every_sign_off_ends_the_impression():
    closing = [name for name, header in load_headers().of_name.items() if header.reach == "sign-off"]
    for name, case, before in product(closing, [str.capitalize, str.upper], ["\n", "\n\n", " ", "\n***** "]):
        sections = parse_sections(f"Findings: Clear.\nImpression: Normal.{before}{case(name)} Dr. Doe on May 4.")
        assert sections.impression == "Normal.", name


REGIONS = ["chest", "abdomen and pelvis", "thorax", "lumbar spine", "left knee"]
TITLES = ["{0}", "portable ap {0}", "{0} two views", "xr {0} 2 views", "ct {0} without contrast", "cr {0}"]
TITLES += [
    "{0}, pa and lateral",
    "single view of the {0}",
    "ap and lateral {0} radiographs",
    "mri {0} with and without",
]


def test_names_of_examinations_open_the_findings_of_a_report_without_others():
    for region, title, case in product(REGIONS, TITLES, [str.upper, str.title]):
        name = case(title.format(region))
        for end in (":\n", ": ", "\n\n", ": 1/2/2020\n")[: 4 if name.isupper() else 3]:
            if title == "{0}" and (end == "\n\n" or not name.isupper()):
                continue  # a region alone says too little
            for before in ("", "FINAL REPORT\n", "INDICATION: Cough.\n\n")[: 3 if name.isupper() else 1]:
                sections = parse_sections(f"{before}{name}{end}Clear.\n\nIMPRESSION: Normal.")
                assert (sections.findings, sections.status) == ("Clear.", "ok"), (before, name, end)


TABLE = """
[[header]]
section = "findings"
reach = "anywhere"
names = ["Løfunn", "bilde"]

[[header]]
section = "impression"
reach = "line"
names = ["vurdering", "impression"]
"""


def test_further_headers_of_a_file(tmp_path):
    path = tmp_path / "headers.toml"
    path.write_text(TABLE.replace(', "impression"', ""), encoding="utf-8")
    parse, text = SectionParser(path), "LØFUNN: Clear.\nVurdering\nNormal."
    assert parse(text).status == "ok" and parse_sections(text).status == "missing_findings"
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # it travels to reward workers
        assert pool.apply(parse, (text,)) == parse(text)
    assert parse("Findings: Clear. Impression: Normal.").status == "ok"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "",
            "",
            "header 2: expected 'impression' as in another row, with .* reach 'anywhere', got 'impression' and 'line'",
        ),
        ('"findings"', '"finding"', "header 1: expected as section one of both, findings, .* got 'finding'"),
        ('"line"', '"start"', "header 2: expected as reach one of anywhere, line, sign-off, got 'start'"),
        ("reach =", "level =", "header 1: expected the keys section, reach and names, got .*'level'"),
        ('["Løfunn", "bilde"]', '"bilde"', "header 1: expected as names a list of words, got 'bilde'"),
        ('"bilde"', '" "', "header 1: expected as names a list of words"),
        ("[[header]]", "[header]", "expected a TOML file of headers in UTF-8, got"),
        ("[[header]]", "[[headers]]", "expected .*header.* rows only, got the keys .'headers'"),
    ],
)
def test_wrong_file_of_headers_is_refused(tmp_path, old, new, message):
    (tmp_path / "h.toml").write_text(TABLE.replace(old, new) if old else TABLE, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"h\.toml.*{message}"):
        SectionParser(tmp_path / "h.toml")("Findings: Clear.")
    with pytest.raises(ValueError, match=r"gone\.toml: expected a TOML file of headers, got No such file"):
        load_corpus(DataConfig(headers=tmp_path / "gone.toml"), seed=0)


# Where Findings and Impression begin and end, read by eye: three words each. Four reports hold several studies.
MTSAMPLES = {
    "mt10": ("A single frontal ... phase of respiration.", "1. No evidence ... of vascular congestion."),
    "mt11": ("CT examination of ... the right cheek.", "1. Mucosal thickening ... the right cheek."),
    "mt21": ("Three views of ... radiopaque foreign bodies.", "Negative right foot. ... Negative right foot."),
    "mt66": ("There is no ... cells are clear.", "Negative for acute ... acute intracranial disease."),
    "mt120": ("Examination was performed ... the deltoid muscle.", "There is extensive ... an impinging lesion."),
    "mt148": ("The right kidney ... peripheral blood flow.", "1. No evidence ... mm/dd/yy at XXX"),
    "mt150": ("The liver is ... wall is seen.", "1. Marked thickening ... cystitis is advised."),
    "mt171": ("Examination was performed ... the deltoid muscle.", "There is extensive ... an impinging lesion."),
    "mt177": ("There is no ... fracture is seen.", "Negative for acute ... acute intracranial disease."),
    "mt184": (
        "The scout radiograph ... normal-appearing appendix documented.",
        "Normal barium enema. ... Normal barium enema.",
    ),
    "mt197": (
        "Normal brainstem-cervical cord ... or endplate spondylosis.",
        "Multilevel degenerative disc ... stenosis.,Normal cervical cord.",
    ),
    "mt241": ("There are post ... upon MRI criteria.", "BIRADS CATEGORY M/5,There ... should be performed."),
    "mt242": ("The lung bases ... is not visualized.", "1. Right inguinal ... spine and pelvis."),
    "mt265": (
        "The liver, spleen, ... bladder is unremarkable.",
        "1. Resolution of ... significantly changed.,4. Cholelithiasis.",
    ),
    "mt287": ("Multiple T1 and ... intact and unremarkable.", "Unremarkable MRI of ... the left shoulder."),
    "mt292": ("Scans through the ... apices are clear.", "No acute abnormalities. ... No acute abnormalities."),
    "mt322": (
        "Uterus is enlarged ... masses are identified.",
        "Essential replacement of ... uterine fibroid embolization.",
    ),
    "mt340": ("MRI orbits/face/neck: There ... no carotid stenosis.", "1. The mass ... identified with certainty."),
    "mt349": ("Examination was performed ... a joint effusion.", "Changes within the ... correlated with radiographs."),
    "mt391": ("Three views of ... radiopaque foreign bodies.", "Negative right foot. ... Negative right foot."),
    "mt402": ("Comparison is made ... most recent exam.", "Properly positioned double-J ... or ureteral stones."),
    "mt411": (
        "The appendix is ... urinary tract infection.",
        "1.Normal appendix.,2.Moderate stool ... faxed upon dictation.",
    ),
    "mt444": ("Contours of marrow ... normal in appearance.", "Findings consistent with ... of cuboid bone."),
    "mt450": ("There is no ... fracture is seen.", "Negative for acute ... acute intracranial disease."),
    "mt455": ("There is an ... sinuses are clear.", "A 5 mm ... should be obtained."),
    "mt470": ("A single frontal ... phase of respiration.", "1. No evidence ... of vascular congestion."),
}
SEVERAL_STUDIES = ["mt66", "mt177", "mt402", "mt450"]


def ends(text):
    words = text.split()
    return f"{' '.join(words[:3])} ... {' '.join(words[-3:])}"


def test_reports_of_other_hospitals_and_modalities(shared):
    """Each with a list of keywords after its last sentence, which is no text of the Impression."""
    found = {}
    for line in (shared / "data/mtsamples_radiology/reports.jsonl").read_text(encoding="utf-8").splitlines():
        sections = parse_sections(json.loads(line)["text"])
        found[json.loads(line)["id"]] = ends(sections.findings), ends(sections.impression)
        assert sections.status == ("ambiguous" if json.loads(line)["id"] in SEVERAL_STUDIES else "ok")
        assert sections.described.startswith(sections.findings)
    assert found == MTSAMPLES
