"""Grey levels of a DICOM image as a viewer shows them: modality LUT, VOI LUT or window, MONOCHROME1 inverted, padding.

An element without a value counts as absent: archives write such elements in every combination.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def value_of(dataset: Any, keyword: str) -> Any:
    """The value of an element, the first of several; None if it is absent or has none."""
    value = dataset.get(keyword)
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = next(iter(value), None)
    return None if value == "" else value


def grey_levels(levels: np.ndarray, dataset: Any) -> np.ndarray:
    """Stored values [H, W] -> uint8 [H, W]. The ends are those of VOI LUT or window, else the extreme levels.

    Padding is black and does not count for the range. Sources: DICOM PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT),
    C.7.6.3.1.2 (MONOCHROME1), C.7.5.1.1.2 (padding).
    """
    if levels.dtype.itemsize > 2:
        return _grey(levels, dataset)
    # Each level is computed once, not once per pixel: what it becomes depends on it and on which levels there are.
    codes = levels.view(f"u{levels.dtype.itemsize}")
    table = np.zeros(2 ** (8 * codes.itemsize), dtype=np.uint8)
    table[codes] = 1
    (present,) = table.nonzero()
    table[present] = _grey(present.astype(codes.dtype).view(levels.dtype), dataset)
    return table[codes]


def _grey(levels: np.ndarray, dataset: Any) -> np.ndarray:
    """The same for levels of any shape, computed for each of them."""
    padding = _padding(levels, dataset)
    values = _rescale(levels, dataset)
    if not np.isfinite(values).all():
        raise ValueError("some pixels are not finite numbers")
    share = _shown(values, dataset, values[~padding])
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        share = 1 - share
    return (np.where(padding, 0, share) * 255).round().astype(np.uint8)


def _padding(levels: np.ndarray, dataset: Any) -> np.ndarray:
    """[H, W] bool: pixels that the scanner did not measure."""
    value, limit = (value_of(dataset, keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if value is None:
        return np.zeros(levels.shape, dtype=bool)
    # Their type may be written unsigned though pixels are signed.
    ends = np.array([value, value if limit is None else limit]).astype(levels.dtype)
    return (ends.min() <= levels) & (levels <= ends.max())


def _rescale(levels: np.ndarray, dataset: Any) -> np.ndarray:
    """Stored values -> those of the modality, float64 [H, W]."""
    if (table := _table(dataset, "ModalityLUTSequence")) is not None:
        return table.look_up(levels, signed=levels.dtype.kind == "i").astype(np.float64)
    slope, intercept = (value_of(dataset, keyword) for keyword in ("RescaleSlope", "RescaleIntercept"))
    # a slope of 0 would leave no image
    return levels.astype(np.float64) * float(slope or 1) + float(intercept or 0)


def _shown(values: np.ndarray, dataset: Any, measured: np.ndarray) -> np.ndarray:
    """Values of the modality -> brightness in [0, 1]."""
    if (table := _table(dataset, "VOILUTSequence")) is not None:
        signed = value_of(dataset, "PixelRepresentation") == 1 or bool((values < 0).any())
        # The ends of the table, which this image need not reach, are black and white.
        return _stretch(table.look_up(values, signed=signed), table.entries)
    center, width = (value_of(dataset, keyword) for keyword in ("WindowCenter", "WindowWidth"))
    if center is not None and width is not None and 0 < float(width) < math.inf:
        return _window(values, float(center), float(width), str(value_of(dataset, "VOILUTFunction")))
    return _stretch(values, measured)


def _window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    if function == "SIGMOID":
        return 1 / (1 + np.exp((-4 * (values - center) / width).clip(-700, 700)))
    # LINEAR is not defined below 1; files of rescaled fractions mean LINEAR_EXACT.
    if function != "LINEAR_EXACT" and width >= 1:
        center, width = center - 0.5, width - 1
    if width == 0:
        return (values > center).astype(np.float64)
    return ((values - center) / width + 0.5).clip(0, 1)


def _stretch(values: np.ndarray, over: np.ndarray) -> np.ndarray:
    if not over.size:
        return np.zeros(values.shape)
    low, high = float(over.min()), float(over.max())
    return ((values - low) / max(high - low, 1e-9)).clip(0, 1)


@dataclass(frozen=True)
class _Table:
    """A look-up table: values up to `first` have its first entry, each next one the next."""

    first: int
    entries: np.ndarray  # [N] uint8 or uint16

    def look_up(self, values: np.ndarray, *, signed: bool) -> np.ndarray:
        # Its type may be written unsigned though values are signed.
        first = self.first - 2**16 if signed and self.first >= 2**15 else self.first
        return self.entries[(values.round() - first).clip(0, len(self.entries) - 1).astype(np.int64)]


def _table(dataset: Any, keyword: str) -> _Table | None:
    """The first table of a sequence that has a descriptor and data. ValueError if there are too few data."""
    for item in dataset.get(keyword) or ():
        descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
        if descriptor and len(descriptor) == 3 and data not in (None, b"", []):
            count = int(descriptor[0]) or 2**16  # PS3.3 C.11.2.1.1
            return _Table(int(descriptor[1]), _entries(data, count, little=dataset.original_encoding[1] is not False))
    return None


def _entries(data: Any, count: int, *, little: bool) -> np.ndarray:
    """The first `count` entries of a table, in 16-bit words or, if they do not suffice, in bytes."""
    if not isinstance(data, bytes):
        data, little = np.asarray(data, dtype="<u2").tobytes(), True
    words = np.frombuffer(data[: len(data) // 2 * 2], dtype="<u2" if little else ">u2")
    entries = words if len(words) >= count else np.frombuffer(data, dtype=np.uint8)
    if len(entries) < count:
        raise ValueError(f"expected a look-up table of {count} entries, got {len(data)} bytes")
    return entries[:count]
