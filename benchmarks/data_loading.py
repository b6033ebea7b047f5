"""Images per second: the loader with a cold and a warm cache, against Pillow and pydicom in as many threads.

Radiographs of 2,544 x 3,056 pixels, JPEG as in MIMIC-CXR-JPG and DICOM with 12 bits and a window, scaled to a longest
side of 448. "decoding alone" reads the pixels and does nothing else: no loader can be faster.
"""

import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
from harness import arguments, compare
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_windowing
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from radflow.data.prefetch import ImageCache, change_studies, prefetch
from radflow.data.studies import Study

COUNT, WIDTH, HEIGHT, SIZE = 48, 2544, 3056, 448
WORKERS = os.cpu_count() or 1
SUFFIXES = {"JPEG": ".jpg", "DICOM": ".dcm"}


def make_images(folder: Path) -> None:
    """Smooth shapes with the noise of a detector: about 1 MB each as JPEG, 16 MB as DICOM."""
    for number in range(COUNT):
        generator = np.random.default_rng(number)
        small = generator.uniform(40, 220, (HEIGHT // 64, WIDTH // 64)).astype(np.float32)
        smooth = np.asarray(Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        levels = (smooth + generator.normal(0, 3, smooth.shape)).clip(0, 255)
        Image.fromarray(levels.astype(np.uint8)).save(folder / f"{number}.jpg", quality=95)
        _write_dicom(folder / f"{number}.dcm", (16 * levels).astype(np.uint16))


def _write_dicom(path: Path, levels: np.ndarray) -> None:
    dataset, dataset.file_meta = Dataset(), FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = levels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.WindowCenter, dataset.WindowWidth = 2048, 3600
    dataset.PixelData = levels.tobytes()
    dataset.save_as(path, enforce_file_format=True)


def studies(folder: Path, kind: str) -> Sequence[Study]:
    paths = sorted(folder.glob(f"*{SUFFIXES[kind]}"))
    return [Study(f"s{i}", f"p{i}", "train", (path,), "Clear.", "Normal.") for i, path in enumerate(paths)]


def decoded(path: Path) -> object:
    return pydicom.dcmread(path).pixel_array if path.suffix == ".dcm" else Image.open(path).load()


def scaled(path: Path) -> Image.Image:
    """RGB of at most SIZE x SIZE, as a user of the libraries would write it."""
    if path.suffix == ".dcm":
        dataset = pydicom.dcmread(path)
        levels = apply_windowing(apply_modality_lut(dataset.pixel_array, dataset), dataset)
        low, high = levels.min(), levels.max()
        image = Image.fromarray(((levels - low) / (high - low) * 255).round().astype(np.uint8))
    else:
        image = Image.open(path)
    image = image.convert("RGB")
    image.thumbnail((SIZE, SIZE), Image.Resampling.BICUBIC)
    return image


def libraries(folder: Path, kind: str, load: Callable[[Path], object]) -> Callable[[], float]:
    paths = [study.images[0] for study in studies(folder, kind)]

    def work() -> float:
        with ThreadPoolExecutor(WORKERS) as pool:
            return float(sum(image is not None for image in pool.map(load, paths)))

    return work


def cold_cache(folder: Path, kind: str) -> Callable[[], float]:
    chosen, cache = studies(folder, kind), ImageCache(Path(tempfile.mkdtemp(dir=folder)), SIZE)
    return lambda: through(cache, chosen)


def warm_cache(folder: Path, kind: str) -> Callable[[], float]:
    chosen, cache = studies(folder, kind), ImageCache(folder / f"warm {kind}", SIZE)
    change_studies(chosen, cache.fetch, title="cache", workers=WORKERS)
    return lambda: through(cache, chosen)


def through(cache: ImageCache, chosen: Sequence[Study]) -> float:
    """Fill the cache or find it filled, as a run does when it starts, then load every image as its steps do."""
    kept = change_studies(chosen, cache.fetch, title="cache", workers=WORKERS)
    loaded = prefetch(kept, lambda study: study.load(study.images[0]), workers=WORKERS)
    return float(sum(image.mode == "RGB" for _, image in loaded))


if __name__ == "__main__":
    options = arguments(__doc__)
    with tempfile.TemporaryDirectory() as name:
        folder, variants, against = Path(name), {}, {}
        make_images(folder)
        for kind, peer in (("JPEG", "Pillow"), ("DICOM", "pydicom")):
            variants |= {
                f"{kind}, cache cold": functools.partial(cold_cache, folder, kind),
                f"{kind}, cache warm": functools.partial(warm_cache, folder, kind),
                f"{kind}, {peer}": functools.partial(libraries, folder, kind, scaled),
                f"{kind}, decoding alone": functools.partial(libraries, folder, kind, decoded),
            }
            against |= {variant: f"{kind}, cache cold" for variant in variants if variant not in against}
        compare(
            "data_loading",
            variants,
            setting=f"{COUNT} radiographs of {WIDTH} x {HEIGHT}, scaled to {SIZE}, {WORKERS} threads",
            rounds=options.rounds,
            threads=options.threads,
            against=against,
            unit="images",
        )
