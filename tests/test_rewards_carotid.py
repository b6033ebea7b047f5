# ruff: noqa: RUF001
"""Carotid ultrasound in English and Chinese: which Impressions follow from the Findings, in made-up reports."""

import time

import pytest

from radflow.data.sections import parse_sections
from radflow.rewards.config import RewardConfig
from radflow.rewards.registry import build_reward
from radflow.rewards.rules.carotid import CarotidRules
from radflow.rewards.rules.consistency import ConsistencyRules

RULES = CarotidRules(parse_sections)
JUDGE = ConsistencyRules(RULES)
REWARD = build_reward(RewardConfig(expert="carotid_rules"), parse_sections)

CONSISTENT = [
    ("Plaque in the right carotid bulb, 12 x 3 mm.", "Right carotid plaque without significant stenosis."),
    ("Soft plaque is seen in the left internal carotid artery. No stenosis.", "Left carotid plaque."),
    ("Calcified plaque at the right bifurcation.", "Right carotid atherosclerotic disease."),
    ("Mild stenosis of the right internal carotid artery. No severe stenosis.", "Mild right stenosis."),
    (
        "Mixed plaque in the left bulb with mild stenosis. No hemodynamically significant stenosis.",
        "Left carotid plaque; no hemodynamically significant stenosis.",
    ),
    ("Plaque in the right bulb. No plaque in the right internal carotid artery.", "Right bulb plaque."),
    ("Plaque in the left common carotid artery. No other plaque.", "Left plaque."),
    (
        "RIGHT: Intima-media thickness is normal. Hypoechoic plaque in the bulb. LEFT: Flow is normal. No plaque.",
        "Right carotid plaque.",
    ),
    ("On the left, plaque is seen. On the right, the wall is smooth. No plaque.", "Left carotid plaque."),
    ("Intima-media thickening on both sides. Left carotid plaque.", "Left carotid plaque."),
    ("Left and right carotid plaque.", "Bilateral carotid plaque."),
    (
        "Severe stenosis of the left internal carotid artery. Velocity is increased.",
        "Severe left stenosis.",
    ),
    ("Stenosis of 60% in the right internal carotid artery.", "Moderate right carotid stenosis."),
    ("Occlusion of the left internal carotid artery with absent flow.", "Left internal carotid occlusion."),
    ("The vessels are tortuous. Plaque in the right bulb.", "Right plaque."),
    (
        "Right ICA: plaque with 50-69% stenosis, peak systolic velocity 180 cm/s. Left ICA: no stenosis.",
        "Moderate (50-69%) right internal carotid artery stenosis. Right plaque.",
    ),
    (
        "Atherosclerotic plaque in both bulbs. No hemodynamically significant stenosis on either side.",
        "Bilateral carotid atherosclerosis. No hemodynamically significant stenosis.",
    ),
    ("Intimal thickening on the right. No plaque.", "Right intima-media thickening."),
    ("No plaque or stenosis. Normal flow.", "Normal carotid ultrasound."),
    (
        "双侧颈动脉内中膜不均匀增厚，右侧窦部可见低回声斑块。",
        "双侧颈动脉硬化伴右侧斑块形成。",
    ),
    ("右侧颈总动脉分叉处可见强回声斑块，大小约12x3mm。", "右侧颈动脉斑块形成。"),
    ("左侧颈总动脉内中膜增厚，厚约1.3mm。左侧颈内动脉未见斑块。", "左侧颈动脉内中膜增厚。"),
    ("双侧颈动脉内中膜增厚。右侧颈动脉窦部混合回声斑块。", "双侧颈动脉粥样硬化并右侧斑块形成。"),
    ("右侧颈总动脉可见斑块，右侧颈内动脉未见斑块。", "右侧颈总动脉斑块。"),
    ("左侧颈动脉窦部可见软斑，余颈动脉未见斑块。", "左侧颈动脉斑块形成。"),
    ("左侧颈内动脉起始处轻度狭窄，未见重度狭窄。", "左侧颈内动脉轻度狭窄。"),
    ("右侧颈动脉斑块处管腔未见明显狭窄。", "右侧颈动脉斑块，未引起管腔狭窄。"),
    ("右侧颈内动脉狭窄率约75%，流速增快。", "右侧颈内动脉重度狭窄。"),
    ("右侧：内中膜增厚。可见斑块。左侧：内中膜正常。未见斑块。", "右侧颈动脉内中膜增厚伴斑块形成。"),
    ("双侧颈动脉走行正常，内膜光滑，未见斑块及狭窄。", "双侧颈动脉未见明显异常。"),
    ("左侧及右侧颈动脉均可见斑块。", "双侧颈动脉多发斑块。"),
    ("右侧颈动脉窦部可见无回声斑块。", "右侧颈动脉斑块。"),
    ("左侧颈内动脉闭塞，闭塞处血流信号消失。", "左侧颈内动脉闭塞。"),
    ("双侧颈动脉内膜毛糙，管腔通畅。", "双侧颈动脉硬化。"),
    ("左侧颈总动脉：内膜增厚，见多发斑块。右侧颈总动脉：内膜光滑，未见斑块。", "左侧颈动脉多发斑块。"),
    ("右侧颈总动脉分叉处见低回声斑块，致管腔轻度狭窄。", "右侧颈动脉斑块形成伴轻度狭窄。"),
    ("右侧颈动脉窦部低回声斑块，不排除软斑。", "右侧颈动脉斑块。"),
    ("双侧颈动脉走行迂曲，右侧可见斑块。", "右侧颈动脉斑块形成。"),
]
CONTRADICTING = [
    ("Plaque in the right carotid bulb.", "Left carotid plaque."),
    ("Plaque in the right carotid bulb.", "No carotid plaque."),
    ("Plaque in the right carotid bulb.", "Normal carotid ultrasound."),
    ("No plaque. No stenosis.", "Plaque in both carotid arteries."),
    ("Soft plaque in the left bulb.", "Left hard plaque."),
    ("Mild stenosis of the left internal carotid artery.", "Severe left stenosis."),
    ("Severe stenosis of the right internal carotid artery.", "No significant stenosis."),
    ("Stenosis of 80% on the left.", "Mild left stenosis."),
    ("Plaque on the left with severe stenosis.", "Left plaque."),
    ("Occlusion of the right internal carotid artery.", "Right carotid plaque."),
    ("Intima-media thickness is normal. No plaque.", "Carotid atherosclerosis."),
    ("Left plaque. No plaque in the left carotid artery.", "Left plaque."),
    ("右侧颈动脉窦部可见低回声斑块。", "左侧颈动脉斑块形成。"),
    ("右侧颈动脉窦部可见低回声斑块。", "双侧颈动脉未见斑块。"),
    ("右侧颈动脉窦部可见低回声斑块。", "双侧颈动脉未见明显异常。"),
    ("双侧颈动脉未见斑块及狭窄。", "右侧颈动脉斑块形成。"),
    ("右侧颈动脉可见软斑。", "右侧颈动脉硬斑。"),
    ("左侧颈内动脉轻度狭窄。", "左侧颈内动脉重度狭窄。"),
    ("左侧颈内动脉重度狭窄。", "左侧颈内动脉未见明显狭窄。"),
    ("右侧颈内动脉狭窄率约75%。", "右侧颈内动脉轻度狭窄。"),
    ("右侧颈内动脉闭塞。左侧可见斑块。", "左侧颈动脉斑块。"),
    ("双侧颈动脉内膜光滑，未见斑块。", "双侧颈动脉硬化伴斑块形成。"),
    ("双侧颈动脉内中膜增厚，可见斑块。", "请结合临床。"),
    ("左侧颈动脉可见斑块，左侧颈动脉未见斑块。", "左侧颈动脉斑块。"),
]


@pytest.mark.parametrize(("findings", "impression"), CONSISTENT)
def test_an_impression_that_follows_is_accepted(findings, impression):
    assert JUDGE.objection(findings, impression) is None


@pytest.mark.parametrize(("findings", "impression"), CONTRADICTING)
def test_an_impression_that_contradicts_is_refused(findings, impression):
    assert JUDGE.objection(findings, impression) is not None


@pytest.mark.parametrize(("findings", "impression"), CONSISTENT)
def test_a_copy_of_a_reference_earns_everything(findings, impression):
    chinese = not findings.isascii()
    report = (
        f"超声所见：{findings}超声提示：{impression}" if chinese else f"Findings: {findings} Impression: {impression}"
    )
    (score,) = REWARD([report], [report])
    assert score.total == pytest.approx(4) and score.truth == 1 and not score.left_out


@pytest.mark.parametrize(
    ("reference", "candidate", "truth"),
    [
        ("右侧颈动脉斑块。", "左侧颈动脉斑块。", 1 / 10),  # side 9: 1 / (1 + 9)
        ("右侧颈动脉斑块。", "右侧颈动脉未见斑块。", 1 / 10),  # missed 1, denied 8
        ("Right severe stenosis.", "No significant right stenosis.", 1 / 10),  # missed 1, denied 8
        ("Right mild stenosis.", "No severe right stenosis.", 1 / 2),  # missed 1; what is denied is another grade
        ("Plaque in the right bulb.", "Plaque in the right bulb. No internal carotid plaque.", 1),
        ("右侧斑块，厚12mm的低回声。", "右侧斑块，厚20mm的低回声。", 1 / 10),  # measurement 9
        ("右侧斑块，大小1.2×0.3厘米。", "右侧斑块，大小12mm*3mm。", 1),
        ("右侧颈内动脉狭窄率约75%。", "右侧颈内动脉狭窄率约30%。", 1 / 19),  # grade 9, measurement 9
    ],
)
def test_truth_of_a_carotid_report_by_hand(reference, candidate, truth):
    assert REWARD.metrics.metrics["truth_rules"][1]([candidate], [reference]) == [pytest.approx(truth)]


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("双侧颈动脉硬化伴右侧斑块形成。", {"right"}),
        ("左侧、右侧颈动脉斑块。", {"left", "right"}),
        ("Left and right carotid plaque.", {"left", "right"}),
        ("Plaque with severe stenosis on the left.", {"left"}),
        ("LEFT: Normal flow. Plaque in the bulb.", {"left"}),
        ("左侧：内膜光滑。右侧：内膜增厚。可见斑块。", {"right"}),
        ("Left flow is normal. Plaque in the bulb.", set()),
    ],
)
def test_the_side_is_that_of_the_plaque(text, sides):
    (plaque,) = [one for one in RULES.findings(text) if one.name == "plaque"]
    assert plaque.sides == sides


@pytest.mark.parametrize(
    ("text", "grades"),
    [
        ("Left stenosis of less than 50%.", {1}),
        ("左侧颈内动脉狭窄率<50%。", {1}),
        ("Left 50-69% stenosis.", {2}),
        ("Left stenosis of 70 to 99%.", {3}),
        ("左侧颈内动脉狭窄率约75.5%。", {3}),
        ("Mild to moderate left stenosis.", {1, 2}),
        ("左侧颈内动脉狭窄（中度）。", {2}),
        ("No significant left stenosis.", {2, 3}),
        ("No left stenosis.", set()),
    ],
)
def test_the_grade_of_a_stenosis_is_that_of_its_share(text, grades):
    assert [one.grades for one in RULES.findings(text)] == [grades]


@pytest.mark.parametrize(
    "piece", ["plaque ", "left plaque, ", "no stenosis ", "斑块", "左侧斑块、", "未见狭窄", "9", "5-%"]
)
def test_long_repetitions_take_no_time(piece):
    text = f"Stenosis {piece * (5_000 // len(piece))}"
    began = time.process_time()
    JUDGE.objection(text, text)
    assert time.process_time() - began < 5
