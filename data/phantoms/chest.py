"""Chest radiographs: clinical state -> frontal, lateral and prior image, and the report with its imperfections."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from radflow.data.files import read_words
from radflow.data.phantoms.chest_image import draw_frontal, draw_lateral
from radflow.data.phantoms.phrasing import Wording, listing, sentence
from radflow.data.studies import ImageSource, Study

WORDS = read_words("chest")
FINDINGS, WORDINGS = WORDS["findings"], WORDS["wordings"]
LABELS = tuple(read_words("labels")["chexpert"])
BORDERLINE = 0.35  # a finding of less than this severity is near the limit of what can be seen
OMITTED = 0.4  # how often the Impression of a study with several findings leaves one of them out
SIDES, ZONES = ("left", "right"), ("upper", "mid", "lower")
EFFUSIONS = ("effusion_left", "effusion_right")


def draw_study(study_id: str, generator: np.random.Generator, size: int) -> Study:
    """One examination: state, images and report, all from `generator`."""
    patient_id, split = study_id.rpartition("-")[0], study_id.split("-")[1]
    state = draw_state(generator)
    anatomy = generator.uniform(-1, 1, 8).tolist()  # a NumPy float64 would make every canvas float64
    images, views = [draw_frontal(state["findings"], state["device"], anatomy, generator, size)], ["Frontal"]
    if generator.random() < 0.4:
        images.append(draw_lateral(state["findings"], anatomy, generator, size))
        views.append("Lateral")
    prior: tuple[ImageSource, ...] = ()
    if state["prior"] is not None:
        prior = (draw_frontal(state["prior"], state["device"], anatomy, generator, size),)
    findings, impression = write_report(state, Wording(WORDINGS, generator))
    texts = (findings, impression, _indication(state["findings"], generator), "Prior radiograph." if prior else "")
    return Study(study_id, patient_id, split, tuple(images), *texts, prior, tuple(views), state=state)


def draw_state(generator: np.random.Generator) -> dict[str, Any]:
    """The truth of one examination, JSON-able.

    findings: name -> {severity in (0, 1]}, with side and zone if the finding has them; device: name or None;
    prior: the findings of the prior examination, or None if there is none.
    """
    count = int(generator.choice(4, p=[0.3, 0.28, 0.27, 0.15]))
    chances = np.array([finding["prevalence"] for finding in FINDINGS.values()])
    chosen = generator.choice(list(FINDINGS), size=count, replace=False, p=chances / chances.sum())
    findings = {}
    for name, finding in FINDINGS.items():
        severity = round(float(generator.uniform(0.12, 1)), 3)
        traits = {"side": str(generator.choice(SIDES)), "zone": str(generator.choice(ZONES))}
        if name in chosen:
            findings[name] = {"severity": severity, **{trait: traits[trait] for trait in finding["traits"]}}
    device = str(generator.choice(WORDS["devices"])) if generator.random() < 0.15 else None
    prior = None
    if generator.random() < 0.25:
        # Effusions come and go; the rest stays as it is.
        prior = {name: dict(value) for name, value in findings.items() if name not in EFFUSIONS}
        for name in EFFUSIONS:
            if generator.random() < 0.35 or (name in findings and generator.random() < 0.5):
                prior[name] = {"severity": round(float(generator.uniform(0.4, 1)), 3)}
    return {"modality": "chest", "findings": findings, "device": device, "prior": prior}


def state_labels(state: Mapping[str, Any]) -> dict[str, int]:
    """The 14 CheXpert labels of the true state, 1 or 0."""
    present = {FINDINGS[name]["label"] for name in state["findings"]}
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
    body = [word("device", device=state["device"])] if state["device"] is not None else []
    body += [_heart(findings, hedged, word), *_lungs(findings, hedged, word), *_pleura(findings, hedged, word)]
    body += _change(findings, state, word) if state["prior"] is not None else []
    return " ".join(map(sentence, body)), _impression(findings, hedged, word)


def _heart(findings: Mapping[str, Any], hedged: set[str], word: Wording) -> str:
    if "cardiomegaly" not in findings:
        return word("heart_normal")
    if "cardiomegaly" in hedged:
        return word("heart_hedged")
    return word("heart_enlarged", degree=_grade(findings["cardiomegaly"], "mild", "moderate", "severe"))


def _lungs(findings: Mapping[str, Any], hedged: set[str], word: Wording) -> list[str]:
    said = _statements(("consolidation", "atelectasis", "nodule", "edema"), findings, hedged, word)
    if not said:
        return [word("lungs_clear")]
    return said if "consolidation" in findings else [*said, word("no_consolidation")]


def _pleura(findings: Mapping[str, Any], hedged: set[str], word: Wording) -> list[str]:
    said = _statements((*EFFUSIONS, "pneumothorax"), findings, hedged, word)
    if not said:
        return [word("pleura_clear")]
    if not any(name in findings for name in EFFUSIONS):
        said.append(word("no_effusion"))
    if "pneumothorax" not in findings:
        said.append(word("no_pneumothorax"))
    return said


def _statements(names: tuple[str, ...], findings: Mapping[str, Any], hedged: set[str], word: Wording) -> list[str]:
    """A clause for each of these findings that is present."""
    said = []
    for name in names:
        if name in findings:
            phrase, article = _phrase(name, findings[name]), FINDINGS[name]["article"]
            if name in hedged:
                said.append(word("hedged", phrase=phrase, article=article))
            else:
                said.append(word("stated", phrase=article + phrase))
    return said


def _change(findings: Mapping[str, Any], state: Mapping[str, Any], word: Wording) -> list[str]:
    said = []
    for side, name in zip(SIDES, EFFUSIONS, strict=True):
        if name in state["findings"] and name not in findings:
            continue  # overlooked: a reader who does not mention it does not call it resolved either
        now, before = (x.get(name, {"severity": 0.0})["severity"] for x in (findings, state["prior"]))
        if now == 0 and before > 0:
            said.append(word("resolved", side=side))
        elif now > 0 and before == 0:
            said.append(word("new", side=side))
        elif now > 0 and abs(now - before) > 0.2:
            said.append(word("changed", side=side, trend="increased" if now > before else "decreased"))
    return said or [word("unchanged")]


def _impression(findings: Mapping[str, Any], hedged: set[str], word: Wording) -> str:
    order = sorted(findings, key=lambda name: (-findings[name]["severity"], name))
    if not order:
        return word("normal")
    if len(order) > 1 and word.happens(OMITTED):
        order = order[:-1]
    parts = [("possible " if name in hedged else "") + _phrase(name, findings[name]) for name in order]
    return sentence(listing(parts)) if word.index(2) == 0 else " ".join(map(sentence, parts))


def _phrase(name: str, value: Mapping[str, Any]) -> str:
    """Noun phrase of a finding, the same in Findings and Impression."""
    degree, size = _grade(value, "mild", "moderate", "severe"), _grade(value, "small", "moderate", "large")
    return FINDINGS[name]["phrase"].format(**value, degree=degree, size=size)


def _grade(value: Mapping[str, Any], low: str, middle: str, high: str) -> str:
    return low if value["severity"] < 0.45 else middle if value["severity"] < 0.75 else high


def _indication(findings: Mapping[str, Any], generator: np.random.Generator) -> str:
    fitting = [FINDINGS[name]["hint"] for name in findings]
    if fitting and generator.random() < 0.3:
        return str(generator.choice(fitting))
    return str(generator.choice(WORDS["indications"]))
