# ruff: noqa: RUF001
import json

import pytest

from radflow.data.sections import parse_sections
from radflow.rewards.rules.carotid import CarotidRules
from radflow.rewards.rules.keywords import CAROTID, KeywordMatch, Lexicon, positive_keywords

MATCH = KeywordMatch.with_lexicon()


def of(text):
    return positive_keywords(text, MATCH.lexicon)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Soft plaque in the left carotid bulb with severe stenosis.",
            {"plaque_left", "soft_plaque", "stenosis_severe"},
        ),
        ("No plaque in the right carotid artery.", {"normal"}),
        ("No plaque, stenosis or intima-media thickening.", {"normal"}),
        ("Left intima-media thickness is increased at 1.3 mm.", {"increased_imt"}),
        ("Right peak systolic velocity is increased at 180 cm/s.", {"increased_velocity"}),
        ("Normal carotid ultrasound.", {"normal"}),
        ("", set()),
    ],
)
def test_labels_of_the_phantoms_by_hand(text, expected):
    assert CarotidRules(parse_sections)([text]) == [expected]


def test_labels_are_not_read_from_the_history():
    report = "PATIENT HISTORY: Soft plaque.\nFINDINGS: Left severe stenosis.\nRECOMMENDATION: Exclude right plaque."
    rules = CarotidRules(parse_sections)
    assert rules([report]) == [rules.certain(report)] == [rules.abnormalities(report)] == [{"stenosis_severe"}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "左侧颈动脉内中膜增厚，可见低回声斑块，未见明显狭窄。右侧未见斑块。",
            {"increased_imt", "plaque_left", "soft_plaque"},
        ),
        ("双侧颈动脉强回声斑块。", {"plaque_left", "plaque_right", "hard_plaque"}),
        ("右侧颈内动脉管腔重度狭窄，流速增快。", {"stenosis", "stenosis_severe", "increased_velocity"}),
        ("左侧颈动脉斑块形成。未见狭窄、闭塞及血栓。", {"plaque_left"}),
        ("右侧未见狭窄但可见斑块。", {"plaque_right"}),
        ("双侧颈动脉未见明显异常。", {"normal"}),
        ("未见斑块。", {"normal"}),
    ],
)
def test_chinese_reports_by_hand(text, expected):
    assert of(text) == expected


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("Hypoechoic plaque in the left carotid artery.", "左侧颈动脉低回声斑块。"),
        ("No stenosis of the right carotid artery.", "右侧颈动脉未见狭窄。"),
        ("Thickened intima-media.", "内中膜增厚。"),
    ],
)
def test_both_languages_say_the_same(english, chinese):
    assert of(english) == of(chinese) and MATCH([english], [chinese]) == [1.0]


def test_f1_by_hand():
    # candidate: plaque left, soft; reference: plaque left, plaque right, soft, increased imt: 2 x 2 / (2 + 4)
    candidate, reference = "Left soft plaque.", "Soft plaques on both sides. Increased intima-media thickness."
    assert MATCH([candidate, "Normal."], [reference, "Normal."]) == [pytest.approx(4 / 6), 1.0]


def test_the_wrong_side_is_no_agreement():
    assert MATCH(["Left plaque."], ["Right plaque."]) == [0.0]


def test_silence_is_no_agreement():
    assert MATCH(["", "Foo.", "Foo."], ["Foo.", "Foo.", "Left plaque."]) == [0.0, 1.0, 0.0]


def test_a_lexicon_of_ones_own(tmp_path):
    content = json.loads(CAROTID.read_text(encoding="utf-8"))
    content["keywords"] = {"cyst": {"terms": ["cyst", "囊肿"], "sided": True}}
    path = tmp_path / "thyroid.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    match = KeywordMatch.with_lexicon(path)
    assert match(["Left cyst."], ["左侧囊肿。"]) == [1.0] and positive_keywords("No cyst.", match.lexicon) == {"normal"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("sides"), r"lexicon.json: expected the keys .*sides"),
        (lambda c: c["keywords"].update(cyst={"terms": []}), r"lexicon.json: cyst.terms: expected a list of words"),
        (lambda c: c["keywords"].update(cyst={"words": ["x"]}), r"lexicon.json: cyst: expected the keys \['terms'\]"),
        (
            lambda c: c["keywords"].update(cyst={"terms": ["x"], "sided": "yes"}),
            "sided: expected true or false, got 'yes'",
        ),
    ],
)
def test_a_wrong_lexicon_is_refused_by_name(tmp_path, change, message):
    content = json.loads(CAROTID.read_text(encoding="utf-8"))
    change(content)
    path = tmp_path / "lexicon.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        Lexicon.load(path)


def test_a_lexicon_that_is_no_json_names_its_line(tmp_path):
    path = tmp_path / "lexicon.json"
    path.write_text('{\n"name": }', encoding="utf-8")
    with pytest.raises(ValueError, match=r"lexicon.json: expected a lexicon in JSON, got .*line 2"):
        Lexicon.load(path)
