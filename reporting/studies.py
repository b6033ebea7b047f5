"""The studies of a run as a page shows them: the reference report, and the images, small, as data URIs."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.phantoms import MODALITIES, SPLITS
from data.readers.manifest import read_manifest
from data.studies import Study, load_image

MOST_IMAGES = 2  # of a study: frontal and lateral


class StudySource:
    """Finds a study by its id.

    Args:
        find: raises ValueError or KeyError for a study that it does not know.
    """

    def __init__(self, find: Callable[[str], Study]) -> None:
        self.find = find
        # A run writes its report again and again, of mostly the same studies; all of a corpus would fill the memory.
        self.images = lru_cache(maxsize=2048)(self._images)

    @classmethod
    def of_studies(cls, studies: Sequence[Study]) -> "StudySource":
        return cls({study.id: study for study in studies}.__getitem__)

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "StudySource":
        """From the resolved config of a run. A manifest that is not on this machine gives no study."""
        data = config["data"]
        if data["source"] == "phantoms":
            return cls(lambda study_id: phantom(study_id, seed=config["seed"], size=data["image_size"]))
        root = data["image_root"]
        try:
            studies = read_manifest(Path(data["manifest"]), image_root=None if root is None else Path(root))
        except ValueError:
            studies = []
        return cls.of_studies(studies)

    def reference(self, study_id: str) -> str | None:
        """The reference report; None for a study that is not to be had."""
        try:
            return self.find(study_id).report
        except (ValueError, KeyError):
            return None

    def _images(self, study_id: str, side: int) -> list[str]:
        """Data URIs of a study's images, at most `side` pixels wide and high; none where they are not to be had."""
        try:
            sources = self.find(study_id).images[:MOST_IMAGES]
            return [data_uri(load_image(source, study_id=study_id), side) for source in sources]
        except (ValueError, KeyError):  # the page shows a placeholder: a moved image is no reason to show nothing
            return []


def phantom(study_id: str, *, seed: int, size: int) -> Study:
    """A phantom, drawn again: it is a function of what its id names (`data.phantoms.make_studies`).

    Raises:
        ValueError: not the id of a phantom.
    """
    words = study_id.split("-")
    numbered = len(words) == 4 and words[2].isdecimal() and words[3].isdecimal()
    if not numbered or words[0] not in MODALITIES or words[1] not in SPLITS:
        raise ValueError(f"expected the id of a phantom, such as chest-train-00000-0, got {study_id!r}")
    modality, split, patient, examination = words
    generator = np.random.default_rng([seed, SPLITS[split], int(patient), int(examination)])
    return MODALITIES[modality].draw_study(
        study_id, patient_id=study_id.rpartition("-")[0], split=split, generator=generator, size=size
    )


def data_uri(image: Image.Image, side: int) -> str:
    """An image as JPEG in a data URI; a grey one takes a third of the room."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and (pixels[..., :1] == pixels).all():
        image = image.convert("L")
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    with io.BytesIO() as file:
        image.save(file, "JPEG", quality=72, optimize=True)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
