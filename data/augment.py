"""Small random changes of an image that leave its report true."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance


def jitter(seed: int) -> Callable[[Image.Image], Image.Image]:
    """A function that shifts (6 %), scales (8 %), turns (5 degrees) and relights (15 %) each image it is given anew.

    No mirroring: left and right matter in a report.
    """
    generator = np.random.default_rng(seed)

    def change(image: Image.Image) -> Image.Image:
        dx, dy = generator.uniform(-0.06, 0.06, 2) * image.size
        scale, angle = generator.uniform(0.92, 1.08), np.radians(generator.uniform(-5, 5))
        brightness, contrast = generator.uniform(0.85, 1.15, 2)
        cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
        cx, cy = image.width / 2, image.height / 2
        # PIL maps output to input: turn and scale about the centre, then shift.
        matrix = (cos, sin, cx - cos * (cx + dx) - sin * (cy + dy), -sin, cos, cy + sin * (cx + dx) - cos * (cy + dy))
        image = image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        return ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(brightness)).enhance(contrast)

    return change
