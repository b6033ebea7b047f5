"""Draws a chest radiograph. Radiological convention: the patient's left is on the right of a frontal image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from radflow.data.phantoms.drawing import Canvas, ellipse, expose, grid, soft, stroke

ZONE_HEIGHT = {"upper": 0.3, "mid": 0.48, "lower": 0.64}


def draw_frontal(
    findings: Mapping[str, Any], device: str | None, anatomy: Sequence[float], generator: np.random.Generator, size: int
) -> np.ndarray:
    """uint8 [size, size]. `anatomy`: eight numbers in [-1, 1], the same for the prior image."""
    x, y = grid(size)
    middle = 0.5 + 0.02 * anatomy[0]
    lungs = {"right": _lung(x, y, middle, -1, anatomy), "left": _lung(x, y, middle, 1, anatomy)}
    canvas = 0.08 + 0.5 * ellipse(x, y, (middle, 0.62), (0.46 + 0.02 * anatomy[1], 0.66), 0.04)
    for lung in lungs.values():
        canvas = canvas - 0.34 * lung
    canvas = canvas + 0.16 * np.exp(-(((x - middle) / 0.05) ** 2)) + _ribs(x, y, middle, lungs, anatomy)
    severity = {name: value["severity"] for name, value in findings.items()}
    width = 0.13 + 0.015 * anatomy[2] + 0.11 * severity.get("cardiomegaly", 0.0)
    canvas = canvas + 0.3 * ellipse(x, y, (middle + 0.05, 0.64), (width, 0.15 + 0.4 * (width - 0.13)), 0.1)
    for side, sign in (("right", -1), ("left", 1)):
        if "pneumothorax" in findings and findings["pneumothorax"]["side"] == side:
            canvas = _air(canvas, x, y, middle + sign * 0.16, lungs[side], severity["pneumothorax"])
        canvas = canvas + 0.42 * _fluid(x, y, middle, sign, severity.get(f"effusion_{side}", 0.0))
    canvas = canvas + _haze(x, y, middle, severity.get("edema", 0.0), generator) + _focal(x, y, middle, findings)
    return expose(_wires(canvas, x, y, middle, device), generator)


def draw_lateral(
    findings: Mapping[str, Any], anatomy: Sequence[float], generator: np.random.Generator, size: int
) -> np.ndarray:
    """uint8 [size, size]; the patient faces left, so fluid gathers at the lower right."""
    x, y = grid(size)
    severity = {name: value["severity"] for name, value in findings.items()}
    canvas = 0.08 + 0.48 * ellipse(x, y, (0.5, 0.6), (0.38, 0.62), 0.04)
    canvas = canvas - 0.3 * ellipse(x, y, (0.5, 0.46), (0.27, 0.34), 0.08)
    canvas = canvas + 0.2 * np.exp(-(((x - 0.78 - 0.05 * np.sin(4 * y)) / 0.05) ** 2))
    depth = 0.12 + 0.015 * anatomy[2] + 0.09 * severity.get("cardiomegaly", 0.0)
    canvas = canvas + 0.28 * ellipse(x, y, (0.4, 0.62), (depth, depth), 0.12)
    fluid = max(severity.get("effusion_left", 0.0), severity.get("effusion_right", 0.0))
    thorax = ellipse(x, y, (0.55, 0.5), (0.27, 0.34), 0.08)
    canvas = canvas + 0.35 * soft(0.78 - 0.3 * fluid - y + 0.5 * (0.75 - x), 0.02) * thorax * (fluid > 0)
    return expose(canvas + _haze(x, y, 0.5, severity.get("edema", 0.0), generator), generator)


def _lung(x: Canvas, y: Canvas, middle: float, sign: int, anatomy: Sequence[float]) -> Canvas:
    height = 0.31 + 0.02 * anatomy[3]
    return ellipse(x, y, (middle + sign * (0.2 + 0.01 * anatomy[4]), 0.45), (0.135 + 0.01 * anatomy[5], height), 0.09)


def _ribs(x: Canvas, y: Canvas, middle: float, lungs: Mapping[str, Canvas], anatomy: Sequence[float]) -> Canvas:
    curve = y - 0.9 * (np.abs(x - middle) - 0.2) ** 2 * 2
    waves = np.cos((curve + 0.02 * anatomy[6]) * 2 * np.pi / 0.085)
    return 0.035 * waves * (lungs["left"] + lungs["right"])


def _chest(x: Canvas, middle: float, sign: int) -> Canvas:
    """The half of the thorax that holds one lung, costophrenic angle included."""
    return soft(0.05 - sign * (x - middle), 0.02) * soft(sign * (x - middle) - 0.34, 0.012)


def _fluid(x: Canvas, y: Canvas, middle: float, sign: int, severity: float) -> Canvas:
    """Below a level that climbs towards the chest wall (meniscus)."""
    if severity == 0:
        return np.zeros_like(x)
    lateral = np.clip(sign * (x - middle) - 0.07, 0, 0.3) / 0.28
    level = 0.745 - 0.3 * severity - 0.07 * lateral**2
    base = 0.77 + 0.06 * lateral
    return soft(level - y, 0.012) * soft(y - base, 0.015) * _chest(x, middle, sign)


def _air(canvas: Canvas, x: Canvas, y: Canvas, centre: float, lung: Canvas, severity: float) -> Canvas:
    """Pneumothorax: black, markless space outside a bright edge of the collapsed lung."""
    shrink = 1 - 0.4 * severity
    collapsed = ellipse(x, y, (centre, 0.5), (0.15 * shrink, 0.28 * shrink), 0.05)
    edge = collapsed * (1 - collapsed) * 4
    return canvas - 0.16 * lung * (1 - collapsed) + 0.14 * lung * collapsed + 0.2 * edge * lung


def _haze(x: Canvas, y: Canvas, middle: float, severity: float, generator: np.random.Generator) -> Canvas:
    """Edema: bright around both hila, in a coarse texture."""
    coarse = generator.normal(0, 1, (x.shape[0] // 7 + 1,) * 2).astype(np.float32)
    if severity == 0:
        return np.zeros_like(x)
    texture = np.kron(coarse, np.ones((7, 7), dtype=np.float32))[: x.shape[0], : x.shape[1]]
    hila = sum(ellipse(x, y, (middle + sign * 0.16, 0.47), (0.13, 0.22), 0.5) for sign in (-1, 1))
    return severity * hila * (0.2 + 0.06 * texture)


def _focal(x: Canvas, y: Canvas, middle: float, findings: Mapping[str, Any]) -> Canvas:
    """Consolidation, nodule, atelectasis."""
    canvas = np.zeros_like(x)
    for name in ("consolidation", "nodule", "atelectasis"):
        if name not in findings:
            continue
        value = findings[name]
        sign = 1 if value["side"] == "left" else -1
        height, severity = ZONE_HEIGHT[value.get("zone", "lower")], value["severity"]
        if name == "consolidation":
            radius = 0.06 + 0.05 * severity
            canvas += (0.18 + 0.17 * severity) * ellipse(x, y, (middle + sign * 0.21, height), (radius, radius), 0.3)
        elif name == "nodule":
            radius, centre = 0.02 + 0.025 * severity, (middle + sign * 0.23, height + 0.03)
            canvas += (0.2 + 0.15 * severity) * ellipse(x, y, centre, (radius, radius), 0.15)
        else:
            start, end = (middle + sign * 0.13, 0.68), (middle + sign * 0.29, 0.62)
            canvas += (0.16 + 0.2 * severity) * stroke(x, y, start, end, 0.012 + 0.008 * severity)
    return canvas


def _wires(canvas: Canvas, x: Canvas, y: Canvas, middle: float, device: str | None) -> Canvas:
    if device == "pacemaker":
        box = (np.abs(x - middle - 0.24) < 0.05) & (np.abs(y - 0.22) < 0.035)
        lead = stroke(x, y, (middle + 0.22, 0.25), (middle + 0.04, 0.66), 0.008)
        return np.maximum(canvas, 0.95 * np.maximum(box, lead))
    if device == "central venous catheter":
        corner = (middle - 0.05, 0.24)
        upper, lower = ((middle - 0.2, 0.1), corner), (corner, (middle - 0.04, 0.5))
        return np.maximum(canvas, 0.9 * np.maximum(stroke(x, y, *upper, 0.007), stroke(x, y, *lower, 0.007)))
    if device == "endotracheal tube":
        return np.maximum(canvas, 0.85 * stroke(x, y, (middle, 0.0), (middle, 0.3), 0.012))
    return canvas
