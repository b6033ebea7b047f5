"""Which grey levels of an image deeper than 8 bits become black and which white."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class WindowConfig:
    """Grey levels between the two bounds are stretched to 0..255, levels beyond them are clipped."""

    percentiles: tuple[float, float] = (0.0, 100.0)
    """Bounds as percentiles of an image's own pixels: 0 and 100 are its darkest and its brightest, 1 and 99 leave out
    what few pixels hold, such as burnt-in letters."""
    levels: tuple[float, float] | None = None
    """Bounds as grey levels, the same for every image: centre - width / 2 and centre + width / 2 of a window."""

    def __post_init__(self) -> None:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"expected window.percentiles rising within 0 and 100, got {low} and {high}")
        if self.levels is not None and not -math.inf < self.levels[0] < self.levels[1] < math.inf:
            raise ValueError(f"expected window.levels rising, got {self.levels[0]} and {self.levels[1]}")
        if self.levels is not None and self.percentiles != (0.0, 100.0):
            got = f"{self.percentiles} and {self.levels}"
            raise ValueError(f"expected window.percentiles or window.levels, got both, {got}")


FULL_RANGE = WindowConfig()


def eight_bit(image: Image.Image, window: WindowConfig) -> Image.Image:
    """The image itself if it has 8 bits per channel, else its grey levels through the window; ValueError for NaN."""
    # Pillow clips deeper grey levels at 255, which turns a 12-bit radiograph white.
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image
    pixels = np.asarray(image, dtype=np.float64)
    if not np.isfinite(pixels).all():
        raise ValueError("some pixels are not finite numbers")
    low, high = window.levels or np.percentile(pixels, window.percentiles)
    share = ((pixels - low) / max(high - low, 1e-9)).clip(0, 1)
    return Image.fromarray((share * 255).round().astype(np.uint8))
