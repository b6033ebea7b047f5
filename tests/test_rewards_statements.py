"""What single sentences say of a finding, by kind: doubt, time, denial, words, other parts of the body, names."""

import pytest

from radflow.rewards.rules.chexpert_rules import label_report
from radflow.rewards.rules.findings import read_findings


def abnormal(text):
    """Names of what a text asserts, hedged or not."""
    return {found.name for found in read_findings(text) if found.value != 0}


def rows(table):
    """Name of each block of sentences, and each of its sentences, which are between bars or on lines of their own."""
    return [pytest.param(name, text, id=text) for name, block in table.items() for text in split(block)]


def split(block):
    return [text for line in block.splitlines() for piece in line.split("|") if (text := piece.strip())]


# (what a sentence says, label) -> sentences
ASKS_AND_PLANS = {
    (None, "Pneumonia"): """
        Please correlate clinically for pneumonia. | Clinical correlation for pneumonia is recommended.
        Correlate with clinical signs of infection. | Recommend correlation with symptoms of pneumonia.
        Please correlate for signs and symptoms of infection.
        Follow-up radiographs are advised after treatment of pneumonia. | Is there pneumonia?
        """,
    (None, "Lung Lesion"): """
        CT is recommended to exclude an underlying mass. | Follow-up to ensure there is no underlying mass.
        Nonemergent CT to evaluate for malignancy. | Repeat radiograph in 6 weeks to rule out underlying neoplasm.
        """,
}
DOUBT = {
    (-1, "Pneumonia"): """
        In the appropriate clinical setting, this is compatible with pneumonia.
        In the right clinical context these findings are consistent with pneumonia.
        Given the appropriate clinical setting, this represents pneumonia.
        Findings compatible with pneumonia in the proper clinical context.
        Atypical infection is another consideration. | Atypical pneumonia is also a consideration.
        Pneumonia would be a consideration. | Superimposed infection should be considered.
        Superimposed pneumonia must be considered. | Early pneumonia needs to be considered in the right setting.
        Superimposed infection is not excluded. | A developing pneumonia is not entirely excluded.
        Pneumonia cannot be completely excluded. | Underlying pneumonia would be difficult to exclude.
        Underlying infection may be superimposed. | Right lower lobe opacity concerning for pneumonia.
        The opacity raises concern for pneumonia. | The differential includes pneumonia.
        Differential considerations include aspiration and pneumonia. | Differential diagnosis: pneumonia.
        This could reflect pneumonia. | This may be due to pneumonia. | Pneumonia is not unlikely.
        Pneumonia remains in the differential. | Pneumonia is of concern. | Pneumonia is less likely.
        Less likely, this represents pneumonia. | Findings worrisome for pneumonia. | Pneumonia is a possibility.
        Pneumonia is favored. | Pneumonia is thought less likely. | The presence of pneumonia cannot be confirmed.
        An early infectious process is hard to exclude. | One cannot rule out an early pneumonia.
        It is impossible to exclude pneumonia. | Infection could have a similar appearance.
        Pneumonia might be present. | Pneumonia cannot be ruled out in the appropriate clinical setting.
        Question of pneumonia. | ? pneumonia in the right base.
        Pneumonia should remain in the differential diagnosis. | It is unclear whether this is pneumonia.
        Indeterminate for pneumonia. | Equivocal for pneumonia. | This can be seen with pneumonia.
        """,
    (-1, "Pleural Effusion"): """
        Small left effusion is not excluded. | A trace right effusion may be present.
        A small effusion would be difficult to exclude. | Possible trace left effusion.
        Small pleural effusions cannot be excluded. | A tiny left pleural effusion is suspected.
        There may be a small left pleural effusion. | Trace effusion is not entirely excluded.
        """,
    (-1, "Pneumothorax"): """
        The absence of pneumothorax cannot be confirmed.
        The absence of pneumothorax cannot be established on this supine film.
        Absence of pneumothorax is not certain. | Pneumothorax cannot be confidently excluded.
        It is uncertain whether there is a pneumothorax. | A small apical pneumothorax would be hard to rule out.
        """,
}
TIME = {
    (1, "Pneumothorax"): """
        Near-complete resolution of the left pneumothorax. | Near complete resolution of the left pneumothorax.
        The pneumothorax has almost completely resolved. | The pneumothorax has nearly resolved.
        Nearly resolved left pneumothorax. | The left pneumothorax is nearly completely resolved.
        Partial resolution of the pneumothorax. | Incomplete resolution of the pneumothorax.
        The pneumothorax has not resolved. | The pneumothorax has not completely resolved.
        The left pneumothorax is almost resolved. | The pneumothorax is not completely resolved.
        Marked decrease in the left pneumothorax. | The pneumothorax is no longer large.
        """,
    (1, "Pleural Effusion"): """
        The right pleural effusion has markedly improved. | The left effusion has decreased.
        Interval decrease in size of the effusion. | Previously seen effusion is smaller.
        Effusion seen on the prior study persists. | Near total clearing of the right effusion.
        The effusion has partially cleared. | Resolving effusion. | The effusion has nearly cleared.
        No interval change in effusion since the prior study.
        Compared with the prior study, in which there was no effusion, there is now a moderate effusion.
        """,
    (1, "Edema"): """
        Interval improvement in pulmonary edema. | Edema has improved but not resolved. | Improving edema.
        Residual edema. | There is no improvement in the pulmonary edema.
        """,
    (0, "Pleural Effusion"): """
        Previously seen effusion is no longer present. | The previously noted left effusion is no longer visualized.
        Interval resolution of the effusion. | Complete resolution of the right effusion. | No residual effusion.
        Lungs are clear without residual effusion. | The effusion has completely resolved. | Resolved effusion.
        The effusion is now resolved. | Resolution of previously seen effusion.
        Previously described pleural effusion has cleared. | The effusion seen on the prior exam has resolved.
        Interval clearing of the effusion. | The effusion has disappeared.
        There has been resolution of the effusion. | No recurrent effusion.
        """,
    (None, "Pleural Effusion"): """
        Compared with the prior study, in which there was a large effusion, the lungs are now clear.
        Compared to the prior radiograph, which showed a large effusion, the lungs are clear.
        In comparison to the prior exam where there was a moderate effusion, the chest is clear.
        The prior study showed a large effusion. | The previous CT demonstrated a small effusion.
        On the prior study there was a large effusion. | There was a large effusion on the prior study.
        A prior film demonstrating an effusion is available.
        """,
}
DENIAL = {
    (0, "Pleural Effusion"): """
        Sharp costophrenic angles arguing against pleural effusion. | The sharp angles argue against an effusion.
        This speaks against effusion. | Without convincing evidence of effusion.
        There is nothing to suggest effusion. | No effusion, left or right. | No sizable effusion.
        No pneumothorax, effusion. | No focal opacity or pneumothorax, effusion or edema. | Negative for effusion.
        No demonstrable effusion. | Neither lung has an effusion. | Effusions: none. | Effusion is not appreciated.
        An effusion is not identified. | Effusion has been excluded. | Without evidence for effusion.
        Failure to demonstrate an effusion. | Free of effusion. | Effusion is absent.
        """,
    (0, "Pneumonia"): """
        The pattern does not favor pneumonia. | The opacity is not believed to represent pneumonia.
        This is unlikely to represent pneumonia. | Low suspicion for pneumonia.
        There is low likelihood of pneumonia. | Pneumonia is felt to be unlikely. | Pneumonia is highly unlikely.
        This is not thought to be pneumonia. | This is not typical of pneumonia.
        Atelectasis rather than pneumonia. | No convincing radiographic evidence of pneumonia.
        This does not have the appearance of pneumonia. | The findings do not represent pneumonia.
        No signs of pneumonia. | Not suggestive of pneumonia. | No findings to suggest pneumonia.
        No finding concerning for pneumonia. | Inconsistent with pneumonia. | Pneumonia is doubtful.
        It is doubtful that this is pneumonia. | There is little evidence for pneumonia.
        """,
    (1, "Pneumonia"): """
        No reason to doubt pneumonia. | There is no reason to question the diagnosis of pneumonia.
        No doubt this is pneumonia. | This is without doubt pneumonia. | Undoubtedly pneumonia.
        Pneumonia cannot be denied.
        """,
    (1, "Cardiomegaly"): """
        No pneumothorax or effusion, cardiomegaly. | No effusion or consolidation, cardiomegaly.
        No edema or pneumothorax, cardiomegaly noted. | No focal opacity, pneumothorax or effusion, cardiomegaly.
        Neither effusion nor edema, cardiomegaly. | Without effusion or pneumothorax, cardiomegaly is present.
        """,
}
WORDS = {
    (1, "Pneumonia"): """
        RLL PNA. | Left PNA. | Findings c/w PNA. | Multifocal PNA. | Bibasilar pna. | Pnuemonia.
        Right lower lobe pneumona.
        """,
    (1, "Pleural Effusion"): """
        Small left pl eff. | L pleural eff. | Bilateral pl. effusions. | Small pleural effusoin. | Tiny effusons.
        Right pleural effussion. | Left efusion. | Pleural fluid on the left. | Fluid in the pleural space.
        Fluid in the left pleural cavity. | Small effs bilaterally. | Layering pleural liquid.
        """,
    (1, "Lung Opacity"): """
        Complete whiteout of the left lung. | White-out of the left hemithorax. | White out of the right lung.
        Opacitiy in the right base. | Right opactiy. | Left basilar opactity. | Patchy infilterates.
        Whited out left lung. | Total opacification of the left hemithorax. | Infiltarte in the left base.
        """,
    (1, "Cardiomegaly"): """
        The cardiothoracic ratio is increased. | Increased cardiothoracic ratio. | Cardiothoracic ratio of 0.6.
        CTR 0.58. | CTR = 55%. | Cardio-thoracic ratio is 62 %. | The cardiothoracic ratio exceeds 50%.
        Cardiothoracic ratio is greater than 0.5. | Cardiomegally. | Mild cardiomegly. | Cardimegaly.
        Enlarged heart. | Enlarged cardiac silhouette. | The heart size is increased. | Heart is big.
        Heart size is above normal. | Cardiac enlargement. | The heart is large.
        The cardiac silhouette is prominent. | Increase in heart size. | Enlargement of the cardiac silhouette.
        Cardiac size is enlarged. | Globular heart. | Oversized heart.
        Cardiac silhouette is at least mildly enlarged. | LV enlargement.
        """,
    (1, "Pneumothorax"): """
        Left pnuemothorax. | Small pnemothorax. | Apical pneumothroax. | R ptx. | Pnumothorax. | Tension ptx.
        """,
    (1, "Atelectasis"): """
        Atelectais. | Bibasilar atx. | Left base atelactasis. | Basilar atelectesis. | Volume loss in the left base.
        Collapse of the left lower lobe. | Linear ateletasis. | LLL collapse. | Plate-like atelectatic change.
        """,
    (1, "Consolidation"): """
        Consolidaton in the left base. | Right conslidation. | RUL consolidaiton.
        Consolidative change at the base.
        """,
    (1, "Edema"): """
        Pulmonary edmea. | Pulmonary oedema. | Pulm edema. | Interstital edema. | Vascular congeston.
        """,
    (1, "Fracture"): """
        Rib fx. | Left rib fracutre. | Rib fractrue on the right.
        """,
    (1, "Lung Lesion"): """
        RUL nodlue. | Left granulma. | Pulmonary nodues.
        """,
    (0, "Cardiomegaly"): """
        The cardiothoracic ratio is normal. | Normal cardiothoracic ratio.
        Cardiothoracic ratio within normal limits. | CTR 0.45. | Cardiothoracic ratio of 48%.
        Cardiothoracic ratio is less than 50%. | Heart size normal. | Heart size is normal. | Heart WNL.
        Heart size wnl. | Heart not enlarged. | Normal heart. | The heart is of normal size. | Normal-sized heart.
        """,
    (0, "Pleural Effusion"): """
        No pl eff. | No effusoin. | w/o effusion. | Pleural spaces clear. | No pleural fluid. | Neg for effusion.
        """,
    (0, "Pneumonia"): """
        No PNA. | No e/o PNA. | No evidnece of pneumonia.
        """,
}
CASES = [row for kind in (ASKS_AND_PLANS, DOUBT, TIME, DENIAL, WORDS) for row in rows(kind)]


@pytest.mark.parametrize(("said", "text"), CASES)
def test_what_a_sentence_says_of_a_finding(said, text):
    value, label = said
    assert label_report(text)[label] == value


NORMAL = [
    "No acute cardiopulmonary abnormality.",
    "Without acute cardiopulmonary abnormality.",
    "No radiographic evidence of acute cardiopulmonary disease.",
    "Negative chest.",
    "Chest is negative.",
    "Clear chest.",
    "WNL.",
    "Chest within normal limits.",
    "Normal study.",
    "Nothing acute.",
    "No acute findings.",
    "Free of acute disease.",
    "No active disease.",
    "Unremarkable radiograph of the chest.",
    "NAD.",
    "No abnormality detected.",
    "No acute cardiac or pulmonary process.",
    "No evidence of acute intrathoracic pathology.",
    "Absence of acute cardiopulmonary disease.",
    "No cardiopulmonary disease.",
    "There is no acute process.",
    "No significant abnormality.",
    "Lungs are clear.",
    "No radiographic abnormality.",
    "Without evidence of acute disease.",
    "Lack of acute findings.",
    "No pathology.",
    # another part of the body, another person, another time
    "Lungs are clear. KNEE: Moderate joint effusion, degenerative change.",
    "CHEST: No acute disease.\nLEFT KNEE: Moderate suprapatellar effusion. Osteophytes.",
    "No acute disease.\nRIGHT HIP, 2 VIEWS: Comminuted fracture. Soft tissue swelling.\n\nNormal chest.",
    "Chest. Lungs are clear. Left knee. Marked narrowing, large osteophytes.",
    "The lungs are clear. The right knee shows a moderate effusion.",
    "The lungs are clear. Suprapatellar effusion.",
    "The lungs are clear. Small bowel edema.",
    "The lungs are clear. Mass in the left kidney.",
    "The lungs are clear. Small fracture of the left ankle.",
    "The lungs are clear. There is cerebral edema.",
    "The lungs are clear. Degenerative change of both hips.",
    "The lungs are clear. Maxillary sinus opacification.",
    "The lungs are clear. LUMBAR SPINE: Degenerative disc disease at L4-5.",
    "ABDOMEN: Diffuse bowel wall edema. CHEST: The lungs are clear.",
    "Lungs are clear. Her sister had lung cancer.",
    "Lungs are clear. His father died of lung cancer.",
    "Lungs are clear. Family history of lung cancer.",
    "Lungs are clear. Mother with breast cancer metastatic to lung.",
    "Compared with the prior study, in which there was a large effusion, the lungs are now clear.",
]


@pytest.mark.parametrize("text", NORMAL)
def test_a_normal_chest_has_no_finding(text):
    assert label_report(text)["No Finding"] == 1 and not abnormal(text)


@pytest.mark.parametrize(
    "text",
    [
        "The chest is not normal.",
        "Lungs are not clear.",
        "Abnormal chest.",
        "Not a normal study.",
        "The exam is not negative.",
        "",
    ],
)
def test_a_text_that_says_nothing_normal_has_no_label_of_normality(text):
    assert label_report(text)["No Finding"] is None


# Beyond the labels: name -> wordings that mean the same.
NAMES = {
    "Scoliosis": """
        Mild scoliosis. | Spinal curvature to the right. | Curvature of the spine. | Dextroscoliosis. | Kyphosis.
        The spine is curved.
        """,
    "Degenerative change": """
        Degenerative changes of the spine. | Spondylosis. | Osteophytes. | DJD. | Osteoarthritis of the shoulders.
        Spurring of the thoracic spine. | Disc space narrowing. | Degenerative disk disease.
        Age-related changes of the spine. | Arthritic changes.
        """,
    "Tortuous aorta": """
        Tortuous aorta. | Unfolded aorta. | Ectatic aorta. | Aortic tortuosity. | Uncoiled aorta. | Elongated aorta.
        Prominent aortic knob.
        """,
    "Aortic aneurysm or dissection": """
        Aortic dissection. | Thoracic aortic aneurysm. | Aneurysmal dilatation of the aorta. | Dissecting aorta.
        Ruptured aorta. | Aortic transection.
        """,
    "Free air": """
        Pneumoperitoneum. | Free air under the diaphragm. | Free intraperitoneal air. | Free subdiaphragmatic gas.
        Air beneath the right hemidiaphragm. | Intraperitoneal free air.
        """,
    "Pneumomediastinum": """
        Large pneumomediastinum. | Mediastinal air. | Air in the mediastinum. | Mediastinal emphysema.
        Pneumopericardium.
        """,
    "Subcutaneous emphysema": """
        Subcutaneous emphysema. | Subcutaneous air in the chest wall. | Subcutaneous gas. | Air in the soft tissues.
        Chest wall emphysema.
        """,
    "Emphysema": """
        Emphysema. | COPD. | Hyperinflation. | Hyperexpanded lungs. | Lungs are overinflated.
        Flattened diaphragms. | Hyperaerated lungs. | Bullous change. | The lungs are hyperinflated.
        """,
    "Foreign body": """
        Retained bullet. | Radiopaque foreign body. | Shrapnel over the right chest. | Metallic pellets.
        Ingested coin in the esophagus. | Swallowed button battery.
        """,
    "Hernia": """
        Hiatal hernia. | Intrathoracic stomach. | Large hiatus hernia. | Diaphragmatic hernia. | Morgagni hernia.
        """,
    "Bowel": """
        Dilated loops of bowel. | Small bowel obstruction. | Ileus. | Distended colon.
        Gaseous distention of bowel. | Volvulus.
        """,
    "Mediastinal shift": """
        Mediastinal shift to the left. | Shift of the mediastinum. | Tracheal deviation.
        The trachea is deviated to the right. | The heart is shifted to the left.
        Rightward deviation of the trachea.
        """,
    "Pericardial effusion": """
        Pericardial effusion. | Fluid in the pericardium. | Pericardial fluid. | Hemopericardium.
        Water bottle heart.
        """,
    "Dislocation": """
        Shoulder dislocation. | Subluxation of the humeral head. | AC separation. | The clavicle is dislocated.
        Glenohumeral subluxation.
        """,
    "Raised diaphragm": """
        Elevated right hemidiaphragm. | Elevation of the diaphragm. | Right hemidiaphragm is raised.
        The left diaphragm is high. | Paralysis of the left hemidiaphragm.
        """,
    "Osteopenia": """
        Osteopenia. | Osteoporosis. | Bones are demineralized. | Decreased bone density. | Osteoporotic bones.
        Diffuse bony demineralization.
        """,
    "Bone lesion": """
        Lytic lesion of the rib. | Sclerotic focus in the scapula. | Blastic metastases. | Destructive rib lesion.
        Erosion of the clavicle.
        """,
    "Vertebral compression": """
        Compression deformity of T8. | Wedging of a mid thoracic vertebra. | Loss of height of T7.
        Vertebral body height loss. | Compressed vertebral body.
        """,
    "Scar": """
        Scarring in the apex. | Pulmonary fibrosis. | Fibrotic change. | Honeycombing. | Apical scars.
        """,
    "Low volumes": """
        Low lung volumes. | Poor inspiration. | Hypoinflation. | Shallow inspiratory effort. | Underinflated lungs.
        Low inspiratory volumes.
        """,
    "Hilum or lymph nodes": """
        Hilar prominence. | Lymphadenopathy. | Enlarged hila. | Hilar fullness. | Enlarged lymph nodes.
        Prominent pulmonary arteries.
        """,
    "Airways and interstitium": """
        Interstitial prominence. | Increased interstitial markings. | Bronchiectasis. | Peribronchial cuffing.
        Reticular pattern. | Bronchitis. | Coarse markings.
        """,
    "Tuberculosis or sarcoidosis": """
        Tuberculosis. | Active TB. | Sarcoidosis. | Miliary pattern. | Sarcoid.
        """,
    "Calcification": """
        Calcified aorta. | Atherosclerosis. | Calcified lymph nodes. | Coronary calcification.
        Sequela of granulomatous disease.
        """,
}


@pytest.mark.parametrize(("name", "text"), rows(NAMES))
def test_a_finding_beyond_the_labels_has_one_name_in_any_words(name, text):
    assert name in abnormal(text) and label_report(text)["No Finding"] is None


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("RLL pneumonia.", "right"),
        ("RML opacity.", "right"),
        ("RUL consolidation.", "right"),
        ("LUL mass.", "left"),
        ("LLL atelectasis.", "left"),
        ("B/L effusions.", "left right"),
        ("Rightward mediastinal shift.", "right"),
        ("Leftward mediastinal shift.", "left"),
        ("Left atrial enlargement.", ""),
        ("Aspirated tooth in the right main bronchus.", ""),
    ],
)
def test_the_side_of_a_finding_in_short_and_long_words(text, sides):
    assert {" ".join(sorted(one.sides)) for one in read_findings(text)} == {sides}


@pytest.mark.parametrize("kind", ["degenerative", "fibrotic", "emphysematous", "arthritic"])
def test_a_finding_named_as_a_change_is_not_old_for_being_denied(kind):
    assert [(one.value, one.courses) for one in read_findings(f"No {kind} changes.")] == [(0, frozenset())]


@pytest.mark.parametrize(
    "course",
    [
        "without change",
        "no significant interval change",
        "not significantly changed",
        "with no appreciable change",
        "without evidence of any change",
    ],
)
def test_what_has_not_changed_is_old(course):
    assert {one.courses for one in read_findings(f"Left pleural effusion, {course}.")} == {frozenset({"old"})}
