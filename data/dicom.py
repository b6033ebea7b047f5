"""DICOM images as a viewer shows them: modality LUT, VOI LUT or window, MONOCHROME1 turned over."""

from pathlib import Path

import numpy as np
from PIL import Image

# A radiograph has 4 to 20 million pixels, a mammogram up to 30. A small file that claims more is damaged or malicious,
# and would take gigabytes: 20,000 x 20,000 pixels are 1.2 GB as RGB.
MAX_PIXELS = 100_000_000


def check_size(width: int, height: int) -> None:
    """Raise ValueError for an image that must not be decoded."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"expected at most {MAX_PIXELS:,} pixels, the file claims {width} x {height}")


def read_dicom(path: Path) -> Image.Image:
    """One frame, 8-bit grey or RGB. Without VOI LUT or window, its darkest to its brightest level fill the range.

    Raises OSError if it is missing, no DICOM file or damaged; ValueError without pydicom or for several frames.
    """
    try:
        from pydicom import dcmread
        from pydicom.errors import InvalidDicomError
        from pydicom.pixels import apply_color_lut, pixel_array
    except ImportError as error:
        raise ValueError("DICOM files need pydicom; install it with: pip install -e '.[dicom]'") from error
    try:
        dataset = dcmread(path)
        check_size(int(dataset.Columns), int(dataset.Rows))
        if (frames := int(dataset.get("NumberOfFrames", 1) or 1)) != 1:
            raise ValueError(f"expected one frame, got {frames}; export the frames to keep as images of their own")
        levels = pixel_array(dataset)  # colour comes as RGB
    except (InvalidDicomError, AttributeError, EOFError, RuntimeError, NotImplementedError) as error:
        raise OSError(f"no readable DICOM image: {error}") from error
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(levels, dataset)  # palettes hold 8 or 16 bits per colour
        return Image.fromarray((colours if colours.dtype == np.uint8 else colours >> 8).astype(np.uint8))
    if levels.ndim == 3:
        return Image.fromarray(levels.astype(np.uint8))
    return Image.fromarray(_grey(levels, dataset))


def _grey(levels: np.ndarray, dataset) -> np.ndarray:
    """[H, W] uint8. Sources: DICOM PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT), C.7.6.3.1.2 (MONOCHROME1)."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    values = apply_modality_lut(levels, dataset)
    shown = apply_voi_lut(values, dataset).astype(np.float64)
    if "WindowCenter" in dataset or "VOILUTSequence" in dataset:
        # The ends of the window, which this image need not reach, are black and white.
        extremes = np.array([-(2**24), 2**24], dtype=values.dtype if values.dtype.kind == "f" else np.int64)
        low, high = np.sort(apply_voi_lut(extremes, dataset).astype(np.float64))
    else:
        low, high = shown.min(), shown.max()
    share = ((shown - low) / max(high - low, 1e-9)).clip(0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        share = 1 - share
    return (share * 255).round().astype(np.uint8)
