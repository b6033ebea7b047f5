"""Chest radiographs: clinical state -> frontal, lateral and prior image, and the report with its imperfections."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data.phantoms.chest_image import draw_frontal, draw_lateral
from data.phantoms.phrasing import Wording, listing, sentence
from data.studies import Study

LABELS = (
    "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia",
    "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices", "No Finding",
)  # fmt: skip
LABEL_OF = {
    "cardiomegaly": "Cardiomegaly", "edema": "Edema", "consolidation": "Consolidation", "atelectasis": "Atelectasis",
    "nodule": "Lung Lesion", "effusion_left": "Pleural Effusion", "effusion_right": "Pleural Effusion",
    "pneumothorax": "Pneumothorax",
}  # fmt: skip
PHRASES = {
    "cardiomegaly": "{degree} cardiomegaly",
    "edema": "{degree} pulmonary edema",
    "consolidation": "{side} {zone} lung consolidation",
    "atelectasis": "{side} basilar atelectasis",
    "nodule": "{side} {zone} lung nodule",
    "effusion_left": "{size} left pleural effusion",
    "effusion_right": "{size} right pleural effusion",
    "pneumothorax": "{size} {side} pneumothorax",
}
PREVALENCE = {
    "effusion_left": 0.2, "effusion_right": 0.2, "cardiomegaly": 0.22, "consolidation": 0.14, "atelectasis": 0.12,
    "edema": 0.1, "pneumothorax": 0.1, "nodule": 0.1,
}  # fmt: skip
BORDERLINE = 0.35  # a finding of less than this severity is near the limit of what can be seen
OMITTED = 0.4  # how often the Impression of a study with several findings leaves one of them out
SIDED, ZONED = ("consolidation", "nodule", "atelectasis", "pneumothorax"), ("consolidation", "nodule")
COUNTED = ("nodule", "effusion_left", "effusion_right", "pneumothorax")  # take an article
SIDES, ZONES = ("left", "right"), ("upper", "mid", "lower")
DEVICES = ("pacemaker", "central venous catheter", "endotracheal tube")


def draw_study(study_id: str, *, patient_id: str, split: str, generator: np.random.Generator, size: int) -> Study:
    """One examination: state, images and report, all from `generator`."""
    state = draw_state(generator)
    anatomy = generator.uniform(-1, 1, 8)
    images, views = [draw_frontal(state["findings"], state["device"], anatomy, generator, size)], ["Frontal"]
    if generator.random() < 0.4:
        images.append(draw_lateral(state["findings"], anatomy, generator, size))
        views.append("Lateral")
    prior = ()
    if state["prior"] is not None:
        prior = (draw_frontal(state["prior"], state["device"], anatomy, generator, size),)
    findings, impression = write_report(state, Wording(generator))
    return Study(
        id=study_id, patient_id=patient_id, split=split, images=tuple(images), findings=findings, impression=impression,
        indication=_indication(state["findings"], generator), comparison="Prior radiograph." if prior else "",
        prior_images=prior, views=tuple(views), state=state,
    )  # fmt: skip


def draw_state(generator: np.random.Generator) -> dict[str, Any]:
    """The truth of one examination, JSON-able.

    findings: name -> {severity in (0, 1]}, with side and zone where the finding has them; device: name or None;
    prior: the findings of the prior examination, or None when there is none.
    """
    count = int(generator.choice(4, p=[0.3, 0.28, 0.27, 0.15]))
    chances = np.array(list(PREVALENCE.values()))
    chosen = generator.choice(list(PREVALENCE), size=count, replace=False, p=chances / chances.sum())
    findings = {}
    for name in PREVALENCE:
        severity, side, zone = (
            round(float(generator.uniform(0.12, 1)), 3),
            generator.choice(SIDES),
            generator.choice(ZONES),
        )
        if name in chosen:
            placed = {"side": str(side)} if name in SIDED else {}
            placed |= {"zone": str(zone)} if name in ZONED else {}
            findings[name] = {"severity": severity, **placed}
    device = str(generator.choice(DEVICES)) if generator.random() < 0.15 else None
    prior = None
    if generator.random() < 0.25:
        # Effusions come and go; the rest stays as it is.
        prior = {name: dict(value) for name, value in findings.items() if not name.startswith("effusion")}
        for name in ("effusion_left", "effusion_right"):
            if generator.random() < 0.35 or (name in findings and generator.random() < 0.5):
                prior[name] = {"severity": round(float(generator.uniform(0.4, 1)), 3)}
    return {"modality": "chest", "findings": findings, "device": device, "prior": prior}


def perfect_report(state: Mapping[str, Any]) -> tuple[str, str]:
    """Complete, certain and consistent Findings and Impression."""
    return write_report(state, Wording(None))


def state_labels(state: Mapping[str, Any]) -> dict[str, int]:
    """The 14 CheXpert labels of the true state, 1 or 0."""
    present = {LABEL_OF[name] for name in state["findings"]}
    labels = {label: int(label in present) for label in LABELS}
    labels["Support Devices"] = int(state["device"] is not None)
    labels["No Finding"] = int(not present)
    return labels


def write_report(state: Mapping[str, Any], word: Wording) -> tuple[str, str]:
    """Findings and Impression; `word` decides the phrasing and what is left out, hedged or overlooked."""
    findings = dict(state["findings"])
    hedged = set()
    for name, value in state["findings"].items():
        if value["severity"] < BORDERLINE and word.happens(0.75):
            if word.happens(0.5):
                del findings[name]
            else:
                hedged.add(name)
    body = [*_device(state, word), *_heart(findings, hedged, word), *_lungs(findings, hedged, word)]
    body += [*_pleura(findings, hedged, word), *_change(findings, state, word)]
    return " ".join(map(sentence, body)), _impression(findings, hedged, word)


def _device(state: Mapping[str, Any], word: Wording) -> list[str]:
    if state["device"] is None:
        return []
    return [word(f"{state['device']} is in place", f"a {state['device']} is seen", f"{state['device']} is unchanged")]


def _heart(findings: Mapping[str, Any], hedged: set[str], word: Wording) -> list[str]:
    if "cardiomegaly" not in findings:
        return [
            word("heart size is normal", "the heart is normal in size", "cardiac silhouette is within normal limits")
        ]
    if "cardiomegaly" in hedged:
        return [word("possible mild cardiomegaly", "the heart may be mildly enlarged")]
    degree = _degree(findings["cardiomegaly"])
    return [word(f"there is {degree} cardiomegaly", f"the heart is {_adverb(degree)} enlarged")]


def _lungs(findings: Mapping[str, Any], hedged: set[str], word: Wording) -> list[str]:
    present = [name for name in ("consolidation", "atelectasis", "nodule", "edema") if name in findings]
    said = [_statement(name, findings, hedged, word) for name in present]
    if not said:
        return [word("the lungs are clear", "no focal consolidation", "lungs are clear without consolidation")]
    if "consolidation" not in findings:
        said.append(word("no focal consolidation", "there is no consolidation"))
    return said


def _pleura(findings: Mapping[str, Any], hedged: set[str], word: Wording) -> list[str]:
    effusions = [name for name in ("effusion_left", "effusion_right") if name in findings]
    present = [*effusions, *(["pneumothorax"] if "pneumothorax" in findings else [])]
    said = [_statement(name, findings, hedged, word) for name in present]
    if not said:
        return [word("no pleural effusion or pneumothorax", "there is no pleural effusion or pneumothorax")]
    if not effusions:
        said.append(word("no pleural effusion", "there is no pleural effusion"))
    if "pneumothorax" not in findings:
        said.append(word("no pneumothorax", "there is no pneumothorax"))
    return said


def _statement(name: str, findings: Mapping[str, Any], hedged: set[str], word: Wording) -> str:
    phrase = describe(name, findings[name], name in hedged)
    if name in hedged:
        return word(
            phrase, f"{phrase} is noted", f"there may be {_article(name)}{describe(name, findings[name], False)}"
        )
    phrase = _article(name) + phrase
    return word(f"there is {phrase}", f"{phrase} is seen", f"{phrase} is present")


def _article(name: str) -> str:
    return "a " if name in COUNTED else ""


def _change(findings: Mapping[str, Any], state: Mapping[str, Any], word: Wording) -> list[str]:
    prior = state["prior"]
    if prior is None:
        return []
    said = []
    for side in SIDES:
        name = f"effusion_{side}"
        if name in state["findings"] and name not in findings:
            continue  # overlooked: a reader who does not mention it does not call it resolved either
        now, before = (x.get(name, {"severity": 0.0})["severity"] for x in (findings, prior))
        if now == 0 and before > 0:
            said.append(
                word(f"the previously seen {side} pleural effusion has resolved", f"{side} effusion has resolved")
            )
        elif now > 0 and before == 0:
            said.append(word(f"the {side} effusion is new since the prior study", f"{side} effusion is new"))
        elif now > 0 and abs(now - before) > 0.2:
            trend = "increased" if now > before else "decreased"
            said.append(word(f"the {side} effusion has {trend} since the prior study", f"{side} effusion has {trend}"))
    return said or [word("no change since the prior study", "findings are unchanged from the prior study")]


def _impression(findings: Mapping[str, Any], hedged: set[str], word: Wording) -> str:
    order = sorted(findings, key=lambda name: (-findings[name]["severity"], name))
    if not order:
        return word(
            "No acute cardiopulmonary abnormality.", "No acute cardiopulmonary process.", "Normal chest radiograph."
        )
    if len(order) > 1 and word.happens(OMITTED):
        order = order[:-1]
    parts = [describe(name, findings[name], name in hedged) for name in order]
    return sentence(listing(parts)) if word(*"ab") == "a" else " ".join(map(sentence, parts))


def describe(name: str, value: Mapping[str, Any], hedged: bool) -> str:
    """Noun phrase of a finding, the same in Findings and Impression."""
    phrase = PHRASES[name].format(**value, degree=_degree(value), size=_size(value))
    return f"possible {phrase}" if hedged else phrase


def _degree(value: Mapping[str, Any]) -> str:
    return "mild" if value["severity"] < 0.45 else "moderate" if value["severity"] < 0.75 else "severe"


def _adverb(degree: str) -> str:
    return {"mild": "mildly", "moderate": "moderately", "severe": "severely"}[degree]


def _size(value: Mapping[str, Any]) -> str:
    return "small" if value["severity"] < 0.45 else "moderate" if value["severity"] < 0.75 else "large"


def _indication(findings: Mapping[str, Any], generator: np.random.Generator) -> str:
    hints = {
        "edema": "Shortness of breath.", "consolidation": "Fever and cough.", "pneumothorax": "Chest pain.",
        "cardiomegaly": "Heart failure.", "nodule": "Weight loss.", "effusion_left": "Dyspnea.",
        "effusion_right": "Dyspnea.", "atelectasis": "Postoperative.",
    }  # fmt: skip
    fitting = [hints[name] for name in findings]
    if fitting and generator.random() < 0.3:
        return str(generator.choice(fitting))
    return str(generator.choice(["Cough.", "Chest pain.", "Dyspnea.", "Routine.", "Fever and cough.", "Trauma."]))
