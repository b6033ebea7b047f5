"""Work on the next items while the current one is used, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from typing import TypeVar

import numpy as np

from data.studies import Study, load_image

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetched(
    items: Iterable[Item], work: Callable[[Item], Result], *, workers: int, ahead: int | None = None
) -> Iterator[tuple[Item, Result]]:
    """Each item with the result of `work`, in the order of `items`.

    Threads: decoding and resizing an image lets go of the interpreter. An error of `work` is raised at its item's turn.
    `items` is read on the caller's thread, at most `ahead` beyond what was handed out, so that it may be endless.

    Args:
        workers: 0 does the work when it is asked for.
        ahead: items in work or waiting; twice the workers by default.
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


def decoded(study: Study) -> Study:
    """The study with its images in memory, uint8 [H, W, 3].

    Raises:
        ValueError: names the study and the file that cannot be decoded.
    """
    images, prior = (
        tuple(np.asarray(load_image(source, study_id=study.id, window=study.window)) for source in sources)
        for sources in (study.images, study.prior_images)
    )
    return replace(study, images=images, prior_images=prior)
