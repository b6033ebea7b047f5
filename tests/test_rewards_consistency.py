"""The judge of consistency: what an Impression may say next to which Findings."""

import itertools
import time

import pytest

from radflow.data.phantoms import make_studies
from radflow.data.sections import parse_sections
from radflow.rewards.rules.acuity import is_acute, is_minor
from radflow.rewards.rules.carotid import CarotidRules
from radflow.rewards.rules.chexpert_rules import ChexpertRules
from radflow.rewards.rules.consistency import ConsistencyRules
from radflow.rewards.rules.findings import read_findings
from radflow.rewards.rules.patterns import read_patterns

JUDGE = ConsistencyRules(ChexpertRules(parse_sections))
NORMAL = "calls abnormal Findings normal"
LEFT_OUT = "leaves a serious finding out"
BOTH = "asserts and denies the same"


@pytest.mark.parametrize(
    ("findings", "impression", "objection"),
    [
        ("There is a left effusion.", "Left effusion.", None),
        ("There is a left effusion.", "No acute abnormality.", NORMAL),
        ("Large right pneumothorax. Moderate edema.", "Normal chest.", NORMAL),
        ("There is a left effusion.", "Stable exam.", NORMAL),
        ("No effusion.", "Left effusion.", "not in the Findings"),
        ("The lungs are clear.", "Pneumonia.", "not in the Findings"),
        ("Phleboliths in the pelvis.", "Left lung nodule.", "not in the Findings"),
        ("Calcified granuloma.", "New left lung nodule.", "not in the Findings"),
        ("There is a left effusion.", "Right effusion.", "on the other side"),
        ("Bilateral effusions.", "Left effusion.", None),
        ("Moderate cardiomegaly. Left effusion.", "Moderate cardiomegaly.", LEFT_OUT),
        ("Pneumomediastinum. Scoliosis.", "Scoliosis.", LEFT_OUT),
        ("Moderate cardiomegaly. Possible left effusion.", "Moderate cardiomegaly.", None),  # hedged
        ("Left effusion. Calcified granuloma. Old rib fractures.", "Left effusion.", None),  # old and minor
        ("Right lower airspace opacity.", "Pneumonia.", None),  # explains the opacity
        ("Right basilar opacity.", "Right basilar opacity, possibly scarring or metastasis.", None),  # a possible cause
        ("The lungs are clear. Heart size is normal.", "No acute cardiopulmonary process.", None),
        ("Heart size is upper limits of normal.", "Borderline heart size.", None),
        ("Pacemaker. The lungs are clear.", "Normal.", None),
        ("The lungs are clear.", "Lorem ipsum.", "says nothing"),
        ("There is a left effusion.", "Clinical correlation is recommended.", "says nothing"),
        # what no label names
        ("The uterus is replaced by fibroids.", "Replacement of the uterus by fibroids.", None),
        ("Tear of the supraspinatus tendon.", "Partial tear of the supraspinatus.", None),
        ("Tear of the supraspinatus tendon.", "Please correlate with the left side.", "says nothing"),
        ("", "Normal.", "a section is empty"),
        ("The lungs are clear.", " ", "a section is empty"),
    ],
)
def test_consistency_by_hand(findings, impression, objection):
    assert JUDGE.objection(findings, impression) == objection
    assert JUDGE([findings], [impression]) == [1.0 if objection is None else -1.0]


NOTHING_ACUTE = [
    "No acute cardiopulmonary abnormality.",
    "Without acute cardiopulmonary abnormality.",
    "Nothing acute.",
    "No evidence of acute disease.",
    "No acute process.",
    "Negative for acute cardiopulmonary disease.",
    "No radiographic evidence of an acute cardiopulmonary process.",
    "No active disease.",
    "Chest without acute findings.",
    "There is no acute intrathoracic pathology.",
]
MINOR = [
    "Mild cardiomegaly. Lungs are clear.",
    "Mild bibasilar atelectasis.",
    "Borderline cardiomegaly.",
    "5 mm nodule, stable since 2010.",
    "Trace left pleural effusion.",
    "Small right pleural effusion, unchanged from the prior study.",
    "Mild pulmonary vascular congestion.",
    "Stable moderate cardiomegaly.",
    "Rib fractures, old and healed.",
    "Severe degenerative changes. Moderate hiatal hernia. Emphysema.",
    "Linear opacity at the left base, likely scarring.",
    "Streaky left basilar opacity.",
    "Chronic compression deformity of T8.",
    "Expected volume loss after right upper lobectomy.",
    "Calcified granuloma. Tortuous aorta.",
    "Bibasilar opacities, likely atelectasis.",
]


@pytest.mark.parametrize("impression", NOTHING_ACUTE)
def test_what_is_mild_old_or_chronic_is_no_acute_abnormality(impression):
    assert [JUDGE.objection(findings, impression) for findings in MINOR] == [None] * len(MINOR)


SERIOUS = [
    "Moderate left pleural effusion.",
    "Small left apical pneumothorax.",
    "Right lower lobe consolidation.",
    "Mild pulmonary edema.",
    "Free air under the diaphragm.",
    "Large pneumomediastinum.",
    "Aortic dissection.",
    "Acute displaced rib fractures.",
    "Displaced fracture of the right sixth rib.",
    "Acute compression fracture of T12.",
    "The endotracheal tube terminates in the right main bronchus.",
    "Nasogastric tube tip is in the esophagus and should be advanced.",
    "Severe cardiomegaly.",
    "New right upper lobe opacity.",
    "Worsening bibasilar opacities.",
    "Small left effusion, increased since yesterday.",
    "A 3 cm mass in the right upper lobe.",
    "Collapse of the left lung.",
]


@pytest.mark.parametrize("impression", [*NOTHING_ACUTE, "Normal chest.", "No abnormality."])
def test_what_is_serious_or_new_is_not_denied(impression):
    assert [JUDGE.objection(findings, impression) is None for findings in SERIOUS] == [False] * len(SERIOUS)


@pytest.mark.parametrize(
    ("findings", "allowed"),
    [
        ("Minimal left basilar atelectasis.", True),
        ("Mild degenerative changes.", True),
        ("Calcified granuloma.", True),
        ("Mild cardiomegaly.", False),
        ("Stable cardiomegaly.", False),
        ("Bibasilar atelectasis.", False),
    ],
)
def test_a_normal_chest_is_a_stronger_claim_than_nothing_acute(findings, allowed):
    for impression in ("Normal chest.", "No abnormality.", "Unremarkable chest radiograph."):
        assert (JUDGE.objection(findings, impression) is None) == allowed


@pytest.mark.parametrize(
    ("findings", "impression", "objection"),
    [
        ("Right lower lobe consolidation.", "Left lower lobe pneumonia.", "on the other side"),
        ("Left basilar opacity.", "Right pneumonia.", "on the other side"),
        ("Small left effusion.", "Large left effusion.", "of another grade"),
        ("Mild edema.", "Severe pulmonary edema.", "of another grade"),
        ("Small right and large left effusions.", "Large left effusion.", None),
        ("Mild edema.", "Moderate pulmonary edema.", None),  # one step
        ("Old left rib fractures.", "Acute left rib fractures.", "of another time"),
        ("Stable left effusion.", "New left effusion.", "of another time"),
        ("Cardiomegaly, no acute abnormality.", "Stable cardiomegaly.", None),  # nothing is said of its time
        ("A 5 mm nodule in the left lung.", "A 15 mm nodule in the left lung.", "of another size"),
        ("A 2.2 x 1.6 cm nodule.", "2 cm nodule.", None),
        ("The endotracheal tube is in the right main bronchus.", "Lines and tubes in good position.", "position"),
        ("Enteric tube coiled in the esophagus.", "Enteric tube in satisfactory position.", "position"),
        ("ETT in standard position.", "The ETT is malpositioned.", "position"),
        ("ETT in the right mainstem bronchus. NGT in good position.", "ETT should be withdrawn. NGT is fine.", None),
        ("Mass in the neck.", "Mass, with the airway in good position.", None),  # no device
    ],
)
def test_side_grade_time_size_and_position_contradict(findings, impression, objection):
    said = JUDGE.objection(findings, impression)
    assert said is None if objection is None else objection in (said or "")


@pytest.mark.parametrize(
    "findings",
    [
        "Large effusion. There is no effusion.",
        "Moderate cardiomegaly. The heart is normal in size.",
        "Left lower lobe atelectasis. No atelectasis is seen.",
        "A 2 cm nodule. There is no nodule.",
        "Mild pulmonary edema. There is no mild pulmonary edema.",
        "Calcified granuloma. There is no calcified granuloma.",
        "Right rib fracture. Without fracture.",
        "Thoracic spondylosis. No degenerative change.",
        "Hyperexpanded lungs. No emphysema.",
        "Hypoinflated lungs. No low lung volumes.",
        "Atherosclerotic aorta. No calcification.",
        "Levoscoliosis. No scoliosis.",
        "Elevated right hemidiaphragm. No elevation of the diaphragm.",
        "Airspace disease in the right lower lobe. No right lung opacity.",
        "Blunted left costophrenic angle. No blunting of the costophrenic angle.",
    ],
)
def test_findings_that_assert_and_deny_one_thing_are_refused(findings):
    own = findings.split(". ")[0] + "."
    assert JUDGE.objection(own, own) is None
    assert JUDGE.objection(findings, own) == BOTH
    assert JUDGE.objection(own, findings) is not None  # in the Impression alone, or across the sections


@pytest.mark.parametrize(
    "findings",
    [
        "Small left effusion. No right effusion.",
        "Small left effusion. No large effusion.",
        "Left effusion is unchanged. No new effusion.",
        "Right effusion. The left effusion has resolved.",
        "Bibasilar opacities. No focal opacity.",
        "Calcified granuloma. No suspicious nodule.",
        "Old rib fractures. No acute fracture.",
        "Mild vascular congestion without edema.",
        "Possible small effusion. No effusion is seen on the lateral view.",
        "No pneumothorax on the right. Small left pneumothorax.",
        "Nodule in the left lung. No other nodule.",
        "Calcified nodules. No suspicious masses or nodules.",
        "Aneurysm of the descending aorta. No dissection.",
        "Hyperinflated lungs. No bullae.",
        "Ileus. No bowel obstruction.",
        "Enlarged pulmonary arteries. No hilar adenopathy.",
        "Apical pleural thickening. No pleural calcification.",
        "Mild scoliosis. No kyphosis.",
        "Low lung volumes. No crowding.",
        "Nipple shadows. No soft tissue swelling.",
        "C4-5: Endplate spondylosis. C5-6: No spondylosis.",
        "Degenerative changes of the spine. The shoulders show no degenerative change.",
        "Atherosclerotic aorta. No calcified nodules.",
    ],
)
def test_honest_pairs_of_a_finding_and_a_denial_are_no_contradiction(findings):
    assert JUDGE.objection(findings, findings) is None


@pytest.mark.parametrize("kind", ["chest", "carotid"])
def test_an_honest_phantom_says_nothing_both_ways(kind):
    judge = ConsistencyRules(ChexpertRules(parse_sections) if kind == "chest" else CarotidRules(parse_sections))
    studies = make_studies(kind, num_train=200, num_val=0, num_test=0, seed=5, size=56)
    said = [judge.objection(study.findings, study.impression) for study in studies]
    # phantoms leave a finding out now and then, on purpose
    assert {*said} <= {None, LEFT_OUT} and said.count(None) > 0.8 * len(said)


# The way other hospitals write, in made-up reports.
REPORTS = [
    (
        "ET tube tip is 4.2 cm above the carina. Right IJ catheter terminates in the mid SVC. Low lung volumes. Mild"
        " vascular congestion. Small bilateral effusions with adjacent atelectasis. No pneumothorax.",
        "1. Lines and tubes in standard position. 2. Mild congestion with small bilateral effusions.",
    ),
    (
        "The endotracheal tube ends 1.5 cm above the carina and could be withdrawn 2 cm. Moderate effusions are"
        " unchanged. Bibasilar opacities likely reflect atelectasis, though infection cannot be excluded.",
        "Low-lying endotracheal tube. Unchanged moderate effusions; opacities, atelectasis versus infection.",
    ),
    (
        "As compared to the previous radiograph, the patient has been extubated. Moderate cardiomegaly with mild fluid"
        " overload is unchanged. No larger effusions.",
        "As above: extubation, otherwise unchanged mild fluid overload.",
    ),
    ("Tracheostomy in place. Retrocardiac opacity persists. Stably enlarged heart.", "No significant interval change."),
    (
        "Interval decrease of the right pneumothorax, now small. Subcutaneous emphysema along the chest wall.",
        "Small residual right pneumothorax following chest tube placement.",
    ),
    (
        "Status post sternotomy and CABG. Stable silhouette. No consolidation. Mild degenerative changes.",
        "No acute cardiopulmonary process.",
    ),
    (
        "Interval left pneumonectomy with expected near complete opacification of the left hemithorax.",
        "Expected appearance after left pneumonectomy. No acute abnormality on the right.",
    ),
    (
        "Diffuse reticular opacities are unchanged, compatible with known fibrosis. Heart size is top normal.",
        "Stable pulmonary fibrosis. No acute superimposed process.",
    ),
    (
        "Interval worsening of perihilar opacities with Kerley B lines. Moderate right effusion has increased.",
        "Worsening pulmonary edema with increased right effusion.",
    ),
    (
        "Lucency beneath the right hemidiaphragm is consistent with free intraperitoneal air.",
        "Pneumoperitoneum, concerning for perforation. Urgent consultation is advised.",
    ),
    (
        "Bilateral nodules, the largest 2.3 cm, have increased in size. Right hilar mass.",
        "Progression of metastatic disease in the chest.",
    ),
    (
        "Persistent low lung volumes. Stable bibasilar opacities and small left effusion. No pneumothorax.",
        "1. INTERVAL EXTUBATION. 2. STABLE BIBASILAR OPACITIES AND SMALL LEFT PLEURAL EFFUSION.",
    ),
]


def test_the_own_impressions_of_long_reports_are_accepted():
    assert [JUDGE.objection(findings, impression) for findings, impression in REPORTS] == [None] * len(REPORTS)


ABNORMAL = [
    "Moderate left effusion.",
    "Severe cardiomegaly.",
    "Right lower lobe consolidation.",
    "Small pneumothorax.",
    "Pulmonary edema.",
    "A 2 cm noncalcified nodule.",
    "Patchy opacity in the left base.",
]
VAGUE = [
    "No acute disease.",
    "Normal.",
    "Stable.",
    "Stable chest.",
    "As above.",
    "Unremarkable exam.",
    "Clear lungs.",
    "No change.",
    "Findings as described.",
    "Correlate clinically.",
    "Left base.",
    ".",
    "Impression",
]


@pytest.mark.parametrize("findings", ABNORMAL)
def test_no_vague_impression_agrees_with_abnormal_findings(findings):
    # otherwise a policy would learn to write one Impression for everything
    assert JUDGE([findings] * len(VAGUE), VAGUE) == [-1.0] * len(VAGUE)


def test_a_grade_decides_between_minor_and_acute():
    def judged(text):
        (finding,) = read_findings(text)
        return is_minor(finding), is_acute(finding)

    assert judged("Trace effusion.") == (True, False)
    assert judged("Small effusion.") == (False, True)
    assert judged("Small effusion, unchanged.") == (True, False)
    assert judged("Large effusion, unchanged.") == (False, True)
    assert judged("Moderate cardiomegaly.") == (False, False)
    assert judged("Small new effusion.") == (False, True)


@pytest.mark.parametrize(
    "findings",
    [
        "The heart is enlarged. The lungs are clear.",
        "Nodular density at the left base, likely a nipple shadow. No effusion.",
        "Nodular opacity in the right lung may represent calcified granulomas.",
        "Left costophrenic opacity may represent pericardial fat.",
        "Right upper opacity may represent overlying telemetry leads.",
        "Small rounded densities over both axillae, suggestive of artifacts.",
        "Mild linear opacities at the bases.",
        "Healing right rib fractures. The lungs are clear.",
        "Chronic dislocation of the left shoulder. The lungs are clear.",
        "Stable mediastinal shift after right pneumonectomy.",
        "Osteopenia, scoliosis and old compression deformities. Tortuous aorta.",
    ],
)
def test_what_is_harmless_by_what_explains_it_is_no_acute_abnormality(findings):
    assert JUDGE.objection(findings, "No acute cardiopulmonary abnormality.") is None


@pytest.mark.parametrize(
    "findings",
    [
        "Nodular opacity in the left lung, likely malignancy.",
        "Right opacity may represent pneumonia or a nipple shadow.",
        "Left lung nodule. Scoliosis.",
        "New nodular density, likely a nipple shadow.",
        "Cardiomegaly, vascular prominence and interstitial markings, suspicious for developing pulmonary edema.",
        "Aneurysm of the descending aorta.",
        "Extensive subcutaneous emphysema.",
        "Moderate pericardial effusion.",
        "Shift of the mediastinum to the left.",
        "Anterior dislocation of the right shoulder.",
        "Destructive lesion of the left clavicle.",
        "New compression deformity of T8.",
        "Miliary tuberculosis.",
        "Ingested button battery in the stomach.",
    ],
)
def test_what_is_urgent_or_unexplained_is_an_acute_abnormality(findings):
    assert JUDGE.objection(findings, "No acute cardiopulmonary abnormality.") == NORMAL


@pytest.mark.parametrize(
    ("findings", "impression"),
    [
        ("Heart size at the upper limits of normal.", "Mild cardiomegaly."),
        ("Globular heart, increased in size.", "Pericardial effusion."),
        ("Loss of height of T8.", "Deformity of T8."),
        ("Displaced fracture of the seventh rib. Healing fracture of the eighth rib.", "Acute seventh rib fracture."),
        ("Calcified nodules in both lungs. No suspicious masses or nodules.", "Calcified nodules."),
        ("Stable left effusion. No new consolidation, effusion or pneumothorax.", "Stable left effusion."),
    ],
)
def test_the_same_thing_in_other_words_needs_no_objection(findings, impression):
    assert JUDGE.objection(findings, impression) is None


def test_the_table_of_seriousness_knows_the_names_that_the_labeler_gives_and_no_others():
    given = {term["name"] for file in ("chexpert", "other_findings") for term in read_patterns(file).content["term"]}
    table = read_patterns("consistency").content
    for listed in (table["minor_up_to"], *table["names"].values()):
        assert not {*listed} - given
    assert not table["minor_up_to"].keys() & {*table["names"]["incidental"]}  # the grade of these is not looked at


def test_a_carotid_report_may_leave_nothing_certain_out():
    judge = ConsistencyRules(CarotidRules(parse_sections))
    assert judge.objection("Plaque on the left with severe stenosis.", "Left plaque.") == LEFT_OUT
    assert judge.objection("Plaque on the left.", "Plaque on the right.") == "on the other side"
    assert judge.objection("Mild stenosis on the left.", "Severe stenosis.") == "of another grade"
    assert judge.objection("No plaque. No stenosis.", "Normal carotid arteries.") is None


@pytest.mark.parametrize("piece", ["no ", "tube ", "in the ", "consider ", "normal ", "a-", ", ", "no acute, "])
def test_long_repetitions_take_no_time(piece):
    text = piece * (5_000 // len(piece))
    began = time.process_time()
    for findings, impression in itertools.product([text, "Left effusion."], repeat=2):
        JUDGE.objection(findings, impression)
    assert time.process_time() - began < 5
