"""Image files: what kind one is, which frame is meant, and whether it may be decoded; and images as data URIs."""

import base64
import io
import re
import stat
from pathlib import Path

from PIL import Image

from radflow.data.dicom import START, check_size, choose_frame, is_dicom, read_dicom

# Pillow knows more; some of those start other programs, and none holds a radiograph.
FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "GIF", "WEBP", "PPM")


def split_frame(source: Path) -> tuple[Path, int | None]:
    """The file that a path means and its frame, from 1: "cine.dcm#frame=12"; None for a file of that very name."""
    match = re.fullmatch(r"(.+)#frame=(\d{1,9})", source.name)
    if match is None or source.exists():
        return source, None
    return source.with_name(match[1]), int(match[2])


def open_image(source: Path) -> Image.Image:
    """An image, of the kind that its content says; pixels are decoded later, but for DICOM.

    Raises ValueError for a pipe or device, too many pixels or a frame that cannot be chosen; else what decoders raise.
    """
    path, frame = split_frame(source)
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe or a device may never return
        raise ValueError("expected a file, got a folder, pipe or device")
    with path.open("rb") as file:
        start = file.read(START)
    if is_dicom(start):
        return read_dicom(path, frame)
    image = Image.open(path, formats=FORMATS)
    check_size(*image.size)
    # MPO is a photograph with further versions of itself, the first of which is the one to show.
    if frame is not None or (getattr(image, "is_animated", False) and image.format != "MPO"):
        image.seek(choose_frame(getattr(image, "n_frames", 1), frame))
    return image


def as_data_uri(image: Image.Image) -> str:
    """An image as servers take it: PNG in base64, which loses nothing."""
    with io.BytesIO() as file:
        image.save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
