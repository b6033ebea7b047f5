"""Opening image files of any kind, with a limit on what a file may unfold to."""

from pathlib import Path

from PIL import Image

# A radiograph has 4 to 20 million pixels, a mammogram up to 30. A small file that claims more is damaged or malicious,
# and would take gigabytes: 20,000 x 20,000 pixels are 1.2 GB as RGB.
MAX_PIXELS = 100_000_000
DICOM_MARK = (128, b"DICM")


def open_image(path: Path) -> Image.Image:
    """An image file, DICOM included; pixels of other formats are decoded when they are asked for.

    Raises:
        FileNotFoundError: not there.
        OSError: no image, or damaged.
        ValueError: more than MAX_PIXELS, or a DICOM file that is no single image.
    """
    if is_dicom(path):
        from data.dicom import read_dicom  # loads pydicom, which only those need who have DICOM files

        return read_dicom(path)
    image = Image.open(path)
    check_size(*image.size)
    return image


def is_dicom(path: Path) -> bool:
    """By its ending, or by the mark behind its preamble."""
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    if path.suffix:
        return False
    with path.open("rb") as file:
        file.seek(DICOM_MARK[0])
        return file.read(4) == DICOM_MARK[1]


def check_size(width: int, height: int) -> None:
    """Raise ValueError for an image that must not be decoded."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"expected at most {MAX_PIXELS:,} pixels, the file claims {width} x {height}")
