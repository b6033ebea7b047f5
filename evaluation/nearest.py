"""Studies whose images are alike, by their pixels: a baseline that copies, and no retrieval model."""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from data.studies import Study, load_image


def nearest_places(train: Sequence[Study], test: Sequence[Study], side: int = 32) -> list[int]:
    """Place in `train` of the study whose first image is most alike, for each study of `test`."""
    known, places = _pixels(train, side), []
    for start in range(0, len(test), 512):  # a whole table of likenesses would be large
        places += (_pixels(test[start : start + 512], side) @ known.T).argmax(1).tolist()
    return places


def _pixels(studies: Sequence[Study], side: int) -> np.ndarray:
    """[N, side * side] float32 of length 1 and mean 0, of each study's first image."""
    rows = np.empty((len(studies), side * side), dtype=np.float32)
    bar = tqdm(studies, "images", unit="study", disable=None if len(studies) > 500 else True, leave=False)
    for place, study in enumerate(bar):
        image = load_image(study.images[0], study_id=study.id, window=study.window)
        row = np.asarray(image.convert("L").resize((side, side)), dtype=np.float32).ravel()
        row = row - row.mean()
        rows[place] = row / max(float(np.linalg.norm(row)), 1e-6)
    return rows
