"""Images per second: the loader with a cold and a warm cache, against a loop that decodes and scales one by one.

Radiographs of 2,544 x 3,056 pixels, JPEG as in MIMIC-CXR-JPG, scaled to a longest side of 448.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from harness import arguments, compare
from PIL import Image

from radflow.data.prefetch import ImageCache, change_studies, prefetch
from radflow.data.studies import Study, load_image

COUNT, WIDTH, HEIGHT, SIZE = 48, 2544, 3056, 448
FOLDER = "BENCHMARK_IMAGES"
WORKERS = os.cpu_count() or 1


def make_images(folder: Path) -> None:
    """Smooth shapes with the noise of a detector: about 1 MB each."""
    for number in range(COUNT):
        generator = np.random.default_rng(number)
        small = generator.uniform(40, 220, (HEIGHT // 64, WIDTH // 64)).astype(np.float32)
        smooth = np.asarray(Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        levels = (smooth + generator.normal(0, 3, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(levels).save(folder / f"{number}.jpg", quality=95)


def studies() -> Sequence[Study]:
    paths = sorted(Path(os.environ[FOLDER]).glob("*.jpg"))
    return [Study(f"s{i}", f"p{i}", "train", (path,), "Clear.", "Normal.") for i, path in enumerate(paths)]


def plain_loop() -> Callable[[], float]:
    chosen = studies()

    def work() -> float:
        loaded = 0
        for study in chosen:
            image = load_image(study.images[0], study_id=study.id)
            image.thumbnail((SIZE, SIZE), Image.Resampling.BICUBIC)
            loaded += np.asarray(image).shape[2] == 3
        return loaded

    return work


def cold_cache() -> Callable[[], float]:
    chosen = studies()
    cache = ImageCache(Path(tempfile.mkdtemp(dir=os.environ[FOLDER])), SIZE)
    return lambda: through(cache, chosen)


def warm_cache() -> Callable[[], float]:
    chosen = studies()
    cache = ImageCache(Path(os.environ[FOLDER]) / "warm", SIZE)
    change_studies(chosen, cache.fetch, title="cache", workers=WORKERS)
    return lambda: through(cache, chosen)


def through(cache: ImageCache, chosen: Sequence[Study]) -> float:
    """Fill the cache or find it filled, as a run does when it starts, then load every image as its steps do."""
    kept = change_studies(chosen, cache.fetch, title="cache", workers=WORKERS)
    loaded = prefetch(kept, lambda study: study.load(study.images[0]), workers=WORKERS)
    return float(sum(image.mode == "RGB" for _, image in loaded))


def main() -> None:
    args = arguments(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        make_images(Path(folder))
        variants = {"plain loop": plain_loop, "loader, cache cold": cold_cache, "loader, cache warm": warm_cache}
        setting = f"{COUNT} radiographs of {WIDTH} x {HEIGHT}, scaled to {SIZE}, {WORKERS} threads"
        compare("data_loading", variants, setting=setting, rounds=args.rounds, threads=args.threads, unit="images")


if __name__ == "__main__":
    main()
