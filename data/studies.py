"""A study: its images, its reference report, its context; and the checks that a set of studies must pass."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from data.images import open_image
from data.windowing import FULL_RANGE, WindowConfig, eight_bit

ImageSource = Path | np.ndarray  # a file, or uint8 [H, W] or [H, W, 3], or uint16 [H, W]


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
    state: Mapping[str, object] | None = None  # the truth, where it is known (phantoms); JSON-able

    @property
    def report(self) -> str:
        return render_report(self.findings, self.impression)


def render_report(findings: str, impression: str) -> str:
    """A report as the model is taught to write it, and as metrics read it (ReXrank's order and headers)."""
    return f"Findings: {findings} Impression: {impression}"


def load_image(source: ImageSource, *, study_id: str, window: WindowConfig = FULL_RANGE) -> Image.Image:
    """Decode an image completely, to 8-bit RGB, turned as its EXIF orientation says.

    Args:
        window: of images with deeper grey levels.

    Raises:
        ValueError: missing, truncated or unreadable; names the study and the file.
    """
    try:
        if isinstance(source, np.ndarray):
            return eight_bit(Image.fromarray(source), window).convert("RGB")
        with open_image(source) as image:
            image.load()
            return eight_bit(ImageOps.exif_transpose(image), window).convert("RGB")
    except FileNotFoundError as error:
        raise ValueError(
            f"study {study_id}: image {source} does not exist; correct the path or drop the study"
        ) from error
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        name = f"array {source.dtype} {source.shape}" if isinstance(source, np.ndarray) else source
        raise ValueError(
            f"study {study_id}: image {name} cannot be decoded ({error}); fetch it again or drop the study"
        ) from error


def check_studies(studies: Sequence[Study]) -> None:
    """Refuse a set of studies that would corrupt a run.

    Raises:
        ValueError: a duplicate id, a patient in two splits, a report without Findings, a study without images; every
            problem names its study.
    """
    refuse([*_duplicates(studies), *_leaks(studies), *_gaps(studies)], len(studies))


def decode_studies(studies: Sequence[Study], *, keep_size: int = 0) -> list[Study]:
    """Decode every image once: a truncated file is not seen otherwise.

    Args:
        keep_size: scale images down to this longest side and keep them in memory; 0 keeps the files.

    Raises:
        ValueError: names every study with an image that cannot be decoded.
    """
    problems, decoded = [], []
    for study in tqdm(studies, "checking images", unit="study", disable=None, mininterval=1, leave=False):
        try:
            images, prior = (
                tuple(_kept(source, study, keep_size) for source in sources)
                for sources in (study.images, study.prior_images)
            )
            decoded.append(replace(study, images=images, prior_images=prior))
        except ValueError as error:
            problems.append(str(error))
    refuse(problems, len(studies))
    return decoded


def _kept(source: ImageSource, study: Study, size: int) -> ImageSource:
    image = load_image(source, study_id=study.id, window=study.window)
    if not size:
        return source
    image.thumbnail((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def refuse(problems: Sequence[str], count: int, most: int = 20) -> None:
    """Raise ValueError with the problems of `count` studies, the first of them word for word; none, nothing."""
    if problems:
        more = f"\n  ... and {len(problems) - most} more" if len(problems) > most else ""
        listed = "\n  ".join(problems[:most])
        raise ValueError(f"{len(problems)} problems in {count} studies:\n  {listed}{more}")


def _duplicates(studies: Iterable[Study]) -> Iterator[str]:
    for study_id, count in Counter(study.id for study in studies).items():
        if count > 1:
            yield f"study {study_id}: the id occurs {count} times; ids must be unique"


def _leaks(studies: Iterable[Study]) -> Iterator[str]:
    first: dict[str, Study] = {}
    for study in studies:
        other = first.setdefault(study.patient_id, study)
        if other.split != study.split:
            yield (
                f"study {study.id}: patient {study.patient_id} is in split {study.split} and, with study {other.id}, "
                f"in {other.split}; keep a patient in one split"
            )


def _gaps(studies: Iterable[Study]) -> Iterator[str]:
    for study in studies:
        if not study.findings.strip():
            what = "no Findings" if study.impression.strip() else "an empty report"
            yield f"study {study.id}: {what}; there is nothing to learn from, drop the study"
        if not study.images:
            yield f"study {study.id}: no image; drop the study"
