"""Soft shapes on a unit square: x to the right, y downwards, intensities in [0, 1]."""

import numpy as np

Canvas = np.ndarray  # float32 [size, size]
Point = tuple[float, float]


def grid(size: int) -> tuple[Canvas, Canvas]:
    """x and y of every pixel centre."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    return np.meshgrid(axis, axis)


def soft(distance: Canvas, width: float) -> Canvas:
    """1 where distance is well below 0, 0 where well above, smooth over `width`."""
    return 1 / (1 + np.exp(np.clip(distance / width, -30, 30)))


def ellipse(x: Canvas, y: Canvas, centre: Point, radii: Point, width: float) -> Canvas:
    """Soft mask of an ellipse; `width` is relative to its radii."""
    away = np.sqrt(((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2)
    return soft(away - 1, width)


def stroke(x: Canvas, y: Canvas, start: Point, end: Point, thickness: float) -> Canvas:
    """Soft mask of a straight line between two points."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
    away = np.hypot(x - start[0] - along * dx, y - start[1] - along * dy)
    return np.exp(-((away / thickness) ** 2))


def expose(canvas: Canvas, generator: np.random.Generator) -> np.ndarray:
    """Detector noise and a varying exposure -> uint8 [size, size]."""
    gain, offset = generator.uniform(0.88, 1.12), generator.uniform(-0.04, 0.04)
    grain = generator.normal(0, 0.035, canvas.shape).astype(np.float32)
    return (np.clip(canvas * gain + offset + grain, 0, 1) * 255).astype(np.uint8)
