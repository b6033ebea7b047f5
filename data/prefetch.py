"""Images ready before they are needed: read ahead by threads, kept in memory, or as small copies in a folder."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from radflow.data.files import replacing
from radflow.data.image_files import split_frame
from radflow.data.studies import ImageSource, Study, change_images, refuse

Item = TypeVar("Item")
Result = TypeVar("Result")
VERSION = 3  # of cached images; raise it when decoding or scaling changes pixels


def prefetch(
    items: Iterable[Item], work: Callable[[Item], Result], *, workers: int, ahead: int | None = None
) -> Iterator[tuple[Item, Result]]:
    """Each item with the result of `work`, in the order of `items`.

    Threads suffice: decoding and resizing an image releases the interpreter lock. Without workers the work is done when
    it is asked for. An error of `work` is raised at its item's turn. `items` is read on the caller's thread, at most
    `ahead` (by default twice the workers) beyond what was handed out, so that it may be endless.
    """
    if workers == 0:
        for item in items:
            yield item, work(item)
        return
    source = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="prefetch") as pool:
        waiting = deque((item, pool.submit(work, item)) for item in islice(source, ahead or 2 * workers))
        try:
            while waiting:
                item, result = waiting.popleft()
                done = result.result()
                waiting.extend((more, pool.submit(work, more)) for more in islice(source, 1))
                yield item, done
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def decode_studies(studies: Sequence[Study], *, keep_size: int = 0) -> list[Study]:
    """Decode every image once, since a truncated file is not noticed otherwise; raises as `change_studies` does.

    With `keep_size`, images are scaled down to this longest side and kept in memory; 0 keeps the files.
    """

    def keep(study: Study, source: ImageSource) -> ImageSource:
        image = study.load(source, size=keep_size)
        return np.asarray(image) if keep_size else source

    return change_studies(studies, keep, title="checking images", workers=0)


def change_studies(
    studies: Sequence[Study], change: Callable[[Study, ImageSource], ImageSource], *, title: str, workers: int
) -> list[Study]:
    """The studies with `change` applied to each image by threads; one ValueError names every study it refuses."""

    def changed(study: Study) -> Study | str:
        try:
            return change_images(study, lambda source: change(study, source))
        except ValueError as error:
            return str(error)

    work = prefetch(studies, changed, workers=workers, ahead=8 * workers)
    bar = tqdm(work, title, len(studies), unit="study", disable=None, mininterval=1, leave=False)
    results = [result for _, result in bar]
    refuse([result for result in results if isinstance(result, str)], len(studies))
    return [result for result in results if isinstance(result, Study)]


@dataclass(frozen=True)
class ImageCache:
    """A folder of PNG files, each a function of a source file (path, size, time of change), scale and window."""

    folder: Path
    size: int  # longest side in pixels; smaller images are kept as they are

    def fetch(self, study: Study, source: ImageSource) -> ImageSource:
        """The small copy of an image file, made if it is not there yet; an image in memory as it is.

        A copy proves that its source was decoded completely; if it cannot be, a ValueError names study and file.
        """
        if isinstance(source, np.ndarray):
            return source
        path = self.path_of(study, source)
        if not path.exists():
            image = study.load(source, size=self.size)
            red, green, blue = image.split()
            if red.tobytes() == green.tobytes() == blue.tobytes():
                image = red  # a third of the size; the same pixels once it is RGB again
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, "wb") as file:  # several runs may fill one cache: none reads half a file
                image.save(file, "PNG", compress_level=1)
        return path

    def path_of(self, study: Study, source: Path) -> Path:
        try:
            facts = split_frame(source)[0].stat()
        except OSError as error:
            advice = f"({error.strerror}); correct the path or drop the study"
            raise ValueError(f"study {study.id}: image {source} is not there {advice}") from error
        name = f"{VERSION} {self.size} {study.window} {facts.st_size} {facts.st_mtime_ns} {os.path.abspath(source)}"
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:34]}.png"
