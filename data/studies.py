"""A study: its images and their views, its report, its context; and the checks that a set of studies must pass."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from radflow.data.files import read_words
from radflow.data.image_files import open_image
from radflow.data.sections import render_report
from radflow.data.windowing import FULL_RANGE, WindowConfig, eight_bit

ImageSource = Path | np.ndarray  # a file, or uint8 [H, W] or [H, W, 3], or uint16 [H, W]
ViewChoice = Literal["all", "frontal", "one_frontal"]
RANK = read_words("views")["rank"]  # of a view among the images of a study
UNKNOWN = 3
SHOWN = 20  # problems that an error lists


@dataclass(frozen=True)
class Study:
    """One examination of one patient."""

    id: str
    patient_id: str
    split: str  # train, val or test
    images: tuple[ImageSource, ...]
    findings: str
    impression: str  # may be empty
    indication: str = ""
    comparison: str = ""
    prior_images: tuple[ImageSource, ...] = ()  # of the preceding study of the patient
    views: tuple[str, ...] = ()  # in the order of images
    window: WindowConfig = FULL_RANGE  # of images with more than 8 bits
    labels: Mapping[str, int] = field(default_factory=dict)  # of the owner: 1 present, 0 absent, -1 uncertain
    state: Mapping[str, object] | None = None  # the truth, if known (phantoms); JSON-able

    @property
    def report(self) -> str:
        return render_report(self.findings, self.impression)

    def load(self, source: ImageSource, *, size: int = 0) -> Image.Image:
        """One of its images as `load_image` gives it."""
        return load_image(source, study_id=self.id, window=self.window, size=size)


def change_images(study: Study, change: Callable[[ImageSource], ImageSource]) -> Study:
    """The study with `change` applied to each of its images, prior ones included."""
    images, prior = (tuple(map(change, sources)) for sources in (study.images, study.prior_images))
    return replace(study, images=images, prior_images=prior)


def load_image(source: ImageSource, *, study_id: str, window: WindowConfig = FULL_RANGE, size: int = 0) -> Image.Image:
    """Decode an image completely, to 8-bit RGB, turned as its EXIF orientation says; `window` is of deeper grey levels.

    Args:
        size: pixels of the longest side, to which larger images are scaled down; 0 leaves them as they are.

    Raises:
        ValueError: with study and file, if it is missing, truncated or unreadable.
    """
    try:
        if isinstance(source, np.ndarray):
            return _scaled(eight_bit(Image.fromarray(source), window), size)
        with open_image(source) as image:
            image.load()
            return _scaled(eight_bit(ImageOps.exif_transpose(image), window), size)
    except FileNotFoundError as error:
        advice = "correct the path or the image_root that it starts from, or drop the study"
        raise ValueError(f"study {study_id}: image {source} does not exist; {advice}") from error
    except Exception as error:  # decoders raise nearly every type for damaged files
        name = f"array {source.dtype} {source.shape}" if isinstance(source, np.ndarray) else source
        why = " ".join(str(error).split()) or type(error).__name__
        what = f"cannot be decoded ({why}); fetch it again or drop the study"
        raise ValueError(f"study {study_id}: image {name} {what}") from error


def _scaled(image: Image.Image, size: int) -> Image.Image:
    """RGB. Grey is scaled in its one channel, which takes a sixth of the time; Pillow would scale palettes and bits
    without interpolation."""
    grey = image.mode == "L"
    if not grey:
        image = image.convert("RGB")
    if size:
        image.thumbnail((size, size), Image.Resampling.BICUBIC)
    return image.convert("RGB") if grey else image


def is_frontal(view: str) -> bool:
    return RANK.get(view.lower(), UNKNOWN) < UNKNOWN


def arrange_views(study: Study, keep: ViewChoice) -> Study:
    """The study with its frontal images first (PA, AP, then others), and without those that `keep` leaves out.

    Images of unknown view count as not frontal; a study without views keeps its order, and all of its images.
    """
    if not any(study.views):
        return study
    assert len(study.views) == len(study.images), study.id
    order = sorted(range(len(study.images)), key=lambda i: RANK.get(study.views[i].lower(), UNKNOWN))
    if keep != "all":
        order = [i for i in order if is_frontal(study.views[i])][: 1 if keep == "one_frontal" else None]
    return replace(study, images=tuple(study.images[i] for i in order), views=tuple(study.views[i] for i in order))


def check_studies(studies: Sequence[Study]) -> None:
    """Raise ValueError for duplicate ids, patients in two splits, reports without Findings, studies without images."""
    refuse(list(_problems(studies)), len(studies))


def refuse(problems: Sequence[str], count: int) -> None:
    """Raise ValueError with the problems of `count` studies, the first of them in full, if there are any."""
    if problems:
        more = f"\n  ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        listed = "\n  ".join(problems[:SHOWN])
        raise ValueError(f"{len(problems)} problems in {count} studies:\n  {listed}{more}")


def _problems(studies: Sequence[Study]) -> Iterator[str]:
    for study_id, count in Counter(study.id for study in studies).items():
        if count > 1:
            yield f"study {study_id}: the id occurs {count} times; ids must be unique"
    first: dict[str, Study] = {}
    for study in studies:
        other = first.setdefault(study.patient_id, study)
        if other.split != study.split:
            where = f"in split {study.split} and, with study {other.id}, in {other.split}"
            yield f"study {study.id}: patient {study.patient_id} is {where}; keep a patient in one split"
    for study in studies:
        if not study.findings.strip():
            what = "no Findings" if study.impression.strip() else "an empty report"
            yield f"study {study.id}: {what}; there is nothing to learn from, drop the study"
        if not study.images:
            yield f"study {study.id}: no image; drop the study"
