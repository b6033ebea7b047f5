"""Carotid ultrasound: clinical state -> a longitudinal image with its flow curve for each side, and the report."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from radflow.data.files import read_words
from radflow.data.phantoms.drawing import Canvas, ellipse, expose, grid
from radflow.data.phantoms.phrasing import Wording, listing, sentence
from radflow.data.studies import Study

WORDS = read_words("carotid")
LABELS, LOCATIONS, WORDINGS = tuple(WORDS["labels"]), WORDS["locations"], WORDS["wordings"]
SIDES = ("left", "right")
THICK = 1.0  # mm; a thicker intima-media is reported as increased
FAST = 125  # cm/s; a faster systolic peak is reported as increased
OMITTED = 0.4  # how often the Impression of a study with several findings leaves one of them out


def draw_study(study_id: str, generator: np.random.Generator, size: int) -> Study:
    """One examination: state, images and report, all from `generator`."""
    patient_id, split = study_id.rpartition("-")[0], study_id.split("-")[1]
    state = draw_state(generator)
    findings, impression = write_report(state, Wording(WORDINGS, generator))
    images = tuple(draw_side(state[side], generator, size) for side in SIDES)
    texts = (findings, impression, str(generator.choice(WORDS["indications"])))
    return Study(study_id, patient_id, split, images, *texts, views=("Left carotid", "Right carotid"), state=state)


def draw_state(generator: np.random.Generator) -> dict[str, Any]:
    """left and right: imt in mm; plaque as {kind, location} or None; narrowing of the lumen in [0, 1); peak in cm/s."""
    state: dict[str, Any] = {"modality": "carotid"}
    for side in SIDES:
        plaque, narrowing = None, 0.0
        if generator.random() < 0.4:
            plaque = {"kind": str(generator.choice(WORDS["kinds"])), "location": str(generator.choice(list(LOCATIONS)))}
            narrowing = round(float(generator.uniform(0.1, 0.9)), 2)
        thickest = 1.4 if generator.random() < 0.4 else 0.9
        state[side] = {
            "imt": round(float(generator.uniform(0.5, thickest)), 1),
            "plaque": plaque,
            "narrowing": narrowing,
            "velocity": int(70 + 25 * generator.random() + 160 * max(0.0, narrowing - 0.4)),
        }
    return state


def state_labels(state: Mapping[str, Any]) -> dict[str, int]:
    """The keyword labels of the true state, 1 or 0."""
    present = set()
    for side in SIDES:
        value = state[side]
        if value["plaque"]:
            present |= {f"plaque_{side}", f"{value['plaque']['kind']}_plaque"}
        if grade := stenosis(value["narrowing"]):
            present.add(f"stenosis_{grade}")
        if value["imt"] > THICK:
            present.add("increased_imt")
        if value["velocity"] > FAST:
            present.add("increased_velocity")
    return {label: int(label in (present or {"normal"})) for label in LABELS}


def stenosis(narrowing: float) -> str | None:
    """Grade of a narrowing of the lumen; below 20 % there is none to report."""
    grades = ((0.7, "severe"), (0.5, "moderate"), (0.2, "mild"))
    return next((grade for bound, grade in grades if narrowing >= bound), None)


def write_report(state: Mapping[str, Any], word: Wording) -> tuple[str, str]:
    """Findings and Impression; `word` decides the phrasing and what is left out or overlooked."""
    said: list[str] = []
    conclusions: list[str] = []
    for side in SIDES:
        value = dict(state[side])
        if value["plaque"] and value["narrowing"] < 0.25 and word.happens(0.4):
            value |= {"plaque": None, "narrowing": 0.0}
        findings, concluded = _describe(side, value, word)
        said, conclusions = said + findings, conclusions + concluded
    text = " ".join(map(sentence, said))
    if not conclusions:
        return text, word("normal")
    if len(conclusions) > 1 and word.happens(OMITTED):
        del conclusions[word.index(len(conclusions))]
    return text, sentence(listing(conclusions))


def _describe(side: str, value: Mapping[str, Any], word: Wording) -> tuple[list[str], list[str]]:
    """What the Findings and what the Impression say of one side."""
    imt, plaque, velocity, grade = value["imt"], value["plaque"], value["velocity"], stenosis(value["narrowing"])
    narrowed = f" with {grade} stenosis" if grade else ""
    said, conclusions = [], [f"{side} {plaque['kind']} carotid plaque{narrowed}"] if plaque else []
    if imt > THICK:
        said.append(f"{side} intima-media thickness is increased at {imt} mm")
        conclusions.append(f"increased {side} intima-media thickness")
    else:
        said.append(word("imt", side=side, imt=imt))
    if plaque:
        said.append(word("plaque", plaque=f"{plaque['kind']} plaque in the {side} {plaque['location']}") + narrowed)
    else:
        said.append(word("no_plaque", side=side))
    if velocity > FAST:
        said.append(f"{side} peak systolic velocity is increased at {velocity} cm/s")
        conclusions.append(f"increased {side} flow velocity")
    else:
        said.append(word("velocity", side=side))
    return said, conclusions


def draw_side(value: Mapping[str, Any], generator: np.random.Generator, size: int) -> np.ndarray:
    """uint8 [size, size]: the vessel in the upper two thirds, the flow curve below."""
    x, y = grid(size)
    centre = 0.33 + 0.015 * np.sin(5 * x + generator.uniform(0, 6)) + generator.uniform(-0.02, 0.02)
    radius = 0.12 + 0.05 * np.exp(-(((x - 0.5) / 0.12) ** 2))
    wall = np.abs(np.abs(y - centre) - radius)
    tissue = 0.32 + 0.1 * generator.normal(0, 1, x.shape).astype(np.float32)
    canvas = np.where(np.abs(y - centre) < radius, 0.06, tissue)
    canvas = canvas + 0.55 * np.exp(-((wall / (0.008 + 0.022 * (value["imt"] - 0.5))) ** 2))
    if value["plaque"]:
        canvas = _plaque(canvas, x, y, centre, radius, value)
    return expose(np.where(y > 0.68, _flow(x, y, value["velocity"]), canvas), generator)


def _plaque(canvas: Canvas, x: Canvas, y: Canvas, centre: Canvas, radius: Canvas, value: Mapping[str, Any]) -> Canvas:
    """On the far wall: soft is dark grey, hard is bright with a shadow below, mixed has a bright half."""
    at, height = LOCATIONS[value["plaque"]["location"]], 0.04 + 0.16 * value["narrowing"]
    shape = ellipse(x, y - centre - radius, (at, 0.0), (0.1, height), 0.1) * (y < centre + radius)
    kind = value["plaque"]["kind"]
    bright = {"soft": 0.3, "hard": 0.95}.get(kind, np.where(x < at, 0.95, 0.3).astype(np.float32))
    canvas = canvas * (1 - shape) + bright * shape
    shadow = (np.abs(x - at) < 0.07) & (y > centre + radius)
    return np.where(shadow & (kind == "hard"), canvas * 0.25, canvas)


def _flow(x: Canvas, y: Canvas, velocity: int) -> Canvas:
    """Three heart beats; the height of a peak is the velocity, 250 cm/s at the top."""
    beat = (x * 3) % 1
    curve = 0.3 + 0.7 * np.exp(-(((beat - 0.2) / 0.1) ** 2))
    top = 0.97 - 0.27 * (velocity / 250) * curve
    return np.where(y > top, 0.75, 0.03).astype(np.float32) * (y <= 0.97)
