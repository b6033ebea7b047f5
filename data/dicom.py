"""DICOM files as scanners and archives write them: with or without preamble and ending, deflated, of several frames."""

import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from radflow.data.dicom_levels import grey_levels, value_of

# A radiograph has 4 to 20 million pixels, a mammogram up to 30. A small file that claims more is damaged or malicious,
# and would take gigabytes: 20,000 x 20,000 pixels are 1.2 GB as RGB.
MAX_PIXELS = 100_000_000
MAX_INFLATED = 2**27  # bytes of a deflated file; a mammogram has 60 million
START = 132  # bytes that tell a DICOM file


def check_size(width: int, height: int) -> None:
    """Raise ValueError for an image that must not be decoded."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"expected at most {MAX_PIXELS:,} pixels, the file claims {width} x {height}")


def choose_frame(count: int, frame: int | None) -> int:
    """Index, from 0, of the frame to show. ValueError if there is no such frame, or several and none is named."""
    if frame is None and count > 1:
        how = "save one as an image of its own, or name it after the path: '#frame=1' is the first"
        raise ValueError(f"expected one frame, got {count}; {how}")
    if frame is not None and not 1 <= frame <= count:
        raise ValueError(f"expected a frame from 1 to {count}, got {frame}")
    return (frame or 1) - 1


def is_dicom(start: bytes) -> bool:
    """Whether a file begins as DICOM does: with the mark or, without a preamble, with an element of group 2 or 8.

    Its type has two capitals or, left out, its length is below 65,536. `start` is the first `START` bytes.
    """
    group, representation, length = start[:2], start[4:6], start[6:8]
    opens = group in (b"\x02\x00", b"\x08\x00") and (representation.isupper() or length == b"\0\0")
    return start[128:132] == b"DICM" or opens


def read_dicom(path: Path, frame: int | None = None) -> Image.Image:
    """One frame, 8-bit grey or RGB; `frame` counts from 1 and may be left out if there is only one.

    Raises ValueError without pydicom, for a frame that cannot be chosen and for too many pixels; for damaged files
    what the parser raises, which is nearly every type.
    """
    pydicom = _pydicom()
    with path.open("rb") as file:
        _check_inflated(file)
        file.seek(0)
        dataset = pydicom.dcmread(file, force=True)
    check_size(int(dataset.Columns), int(dataset.Rows))
    return _image(dataset, choose_frame(int(value_of(dataset, "NumberOfFrames") or 1), frame))


@cache
def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise ValueError("DICOM files need pydicom; install it with: pip install -e '.[dicom]'") from error
    # It warns of each value that breaks the standard, of which archives are full.
    warnings.filterwarnings("ignore", module=r"pydicom\.")
    return pydicom


def _check_inflated(file: BinaryIO) -> None:
    """Raise ValueError if a deflated file has more than `MAX_INFLATED` bytes, before the library inflates it whole."""
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    read_preamble(file, force=True)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while not inflater.eof and (piece := inflater.unconsumed_tail or file.read(2**16)):
        size += len(inflater.decompress(piece, 2**20))
        if size > MAX_INFLATED:
            raise ValueError(f"expected at most {MAX_INFLATED:,} bytes once inflated, got more")


def _image(dataset: Any, index: int) -> Image.Image:
    from pydicom.pixels import apply_color_lut, pixel_array

    _name_syntax(dataset)
    if value_of(dataset, "NumberOfFrames") is None:
        dataset.NumberOfFrames = 1
    levels = pixel_array(dataset, index=index)  # colour comes as RGB
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        levels = apply_color_lut(levels, dataset)
        depth = 8 * levels.dtype.itemsize  # palettes hold 8 or 16 bits per colour
    else:
        depth = int(dataset.BitsStored)
    if levels.ndim == 3:
        return Image.fromarray((levels >> max(depth - 8, 0)).astype(np.uint8))
    return Image.fromarray(grey_levels(levels, dataset))


def _name_syntax(dataset: Any) -> None:
    """Files without a header do not name their transfer syntax: it is the one that the parser found."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if not dataset.file_meta.get("TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
