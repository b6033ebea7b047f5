"""Images scaled down once and kept on disk: later runs read a small file instead of a radiograph."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.prefetch import prefetched
from data.studies import ImageSource, Study, load_image, refuse
from data.windowing import FULL_RANGE, WindowConfig

VERSION = 2  # to be raised when decoding or scaling changes pixels


@dataclass(frozen=True)
class ImageCache:
    """A folder of PNG files, each a function of a source file (path, size, time of change), scale and window."""

    folder: Path
    size: int  # longest side in pixels; smaller images are kept as they are

    def fetch(self, source: Path, *, study_id: str, window: WindowConfig = FULL_RANGE) -> Path:
        """The small copy of an image file, made if it is not there yet.

        A copy that is there proves that its source was decoded completely.

        Raises:
            ValueError: names the study and the file that cannot be decoded.
        """
        path = self.path_of(source, study_id=study_id, window=window)
        if not path.exists():
            image = load_image(source, study_id=study_id, window=window)
            image.thumbnail((self.size, self.size), Image.Resampling.BICUBIC)
            write_png(path, one_plane(image))
        return path

    def path_of(self, source: Path, *, study_id: str, window: WindowConfig = FULL_RANGE) -> Path:
        try:
            facts = source.stat()
        except OSError as error:
            raise ValueError(
                f"study {study_id}: image {source} is not there ({error.strerror}); correct the path or drop the study"
            ) from error
        name = f"{VERSION} {self.size} {window} {facts.st_size} {facts.st_mtime_ns} {os.path.abspath(source)}"
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:34]}.png"


def cached_studies(studies: Sequence[Study], cache: ImageCache, *, workers: int) -> list[Study]:
    """The studies with their images read from the cache, which is filled first. Images in memory stay as they are.

    Raises:
        ValueError: names every study with an image that cannot be decoded.
    """

    def fetch(study: Study) -> Study | str:
        try:
            images, prior = (
                tuple(_fetched(cache, source, study) for source in sources)
                for sources in (study.images, study.prior_images)
            )
        except ValueError as error:
            return str(error)
        return replace(study, images=images, prior_images=prior)

    work = prefetched(studies, fetch, workers=workers, ahead=8 * workers)
    bar = tqdm(work, "caching images", len(studies), unit="study", disable=None, mininterval=1, leave=False)
    found = [result for _, result in bar]
    refuse([result for result in found if isinstance(result, str)], len(studies))
    return found


def _fetched(cache: ImageCache, source: ImageSource, study: Study) -> ImageSource:
    if isinstance(source, np.ndarray):
        return source
    return cache.fetch(source, study_id=study.id, window=study.window)


def one_plane(image: Image.Image) -> Image.Image:
    """An RGB image without colour as grey, a third of the size; the same pixels once it is RGB again."""
    red, green, blue = image.split()
    return red if red.tobytes() == green.tobytes() == blue.tobytes() else image


def write_png(path: Path, image: Image.Image) -> None:
    """Written whole, so that several runs may fill one cache and none reads half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            image.save(file, "PNG", compress_level=1)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
