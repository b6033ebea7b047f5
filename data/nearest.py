"""Studies with similar images, by their pixels: a baseline that copies, not a retrieval model."""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from radflow.data.studies import Study


def nearest_indices(train: Sequence[Study], test: Sequence[Study], side: int = 32) -> list[int]:
    """Index in `train` of the study whose first image is most similar, for each study of `test`."""
    known, indices = _pixels(train, side), []
    for start in range(0, len(test), 512):  # a table of all similarities would be large
        indices += (_pixels(test[start : start + 512], side) @ known.T).argmax(1).tolist()
    return indices


def _pixels(studies: Sequence[Study], side: int) -> np.ndarray:
    """[N, side * side] float32 of length 1 and mean 0, of each study's first image."""
    rows = np.empty((len(studies), side * side), dtype=np.float32)
    bar = tqdm(studies, "images", unit="study", disable=None if len(studies) > 500 else True, leave=False)
    for index, study in enumerate(bar):
        image = study.load(study.images[0]).convert("L").resize((side, side))
        row = np.asarray(image, dtype=np.float32).ravel()
        row = row - row.mean()
        rows[index] = row / max(float(np.linalg.norm(row)), 1e-6)
    return rows
