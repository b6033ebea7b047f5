"""What the model is asked, for each kind of examination, and how a user's own request is written down."""

from collections.abc import Iterator, Mapping, Sequence
from string import Formatter
from typing import TypeVar

Image = TypeVar("Image")
Template = tuple[str, ...]

FIELDS = ("images", "prior_images", "views", "indication", "comparison")
IMAGE_FIELDS = FIELDS[:2]


def _asked(request: str) -> Template:
    return (
        "{images}",
        "Prior study: {prior_images}",
        "Indication: {indication}\n",
        "Comparison: {comparison}\n",
        request,
    )


# In the order of the parts; a part whose field a study lacks is left out.
TASKS: dict[str, Template] = {
    "chest_xray": _asked("Report this chest radiograph: Findings and Impression."),
    "carotid_us": _asked("Report this carotid ultrasound: Findings and Impression."),
}


def check_template(template: Sequence[str]) -> None:
    """Refuse a template that cannot be filled or does not show the images.

    Raises:
        ValueError: names the part.
    """
    used = []
    for part in template:
        names = _fields(part)
        if "images" in names and len(names) > 1:
            raise ValueError(
                f"prompt part {part!r}: expected {{images}} without another field, because a part whose field is "
                "empty is left out; make two parts of it"
            )
        used += names
    if used.count("images") != 1 or used.count("prior_images") > 1:
        raise ValueError(
            f"expected {{images}} exactly once in the prompt and {{prior_images}} at most once, got {list(template)}"
        )


def _fields(part: str) -> list[str]:
    try:
        pieces = list(Formatter().parse(part))
    except ValueError as error:
        raise ValueError(f"prompt part {part!r}: {error}; write a brace of the text twice") from error
    for _, name, layout, conversion in pieces:
        if name is not None and (name not in FIELDS or layout or conversion):
            raise ValueError(f"prompt part {part!r}: expected fields among {{{'}, {'.join(FIELDS)}}}, got {name!r}")
    return [name for _, name, _, _ in pieces if name]


def fill(template: Sequence[str], fields: Mapping[str, str | Sequence[Image]]) -> list[str | Image]:
    """Texts and images of one study's prompt, in their order.

    Args:
        template: as `check_template` accepts.
        fields: a text for each of FIELDS, images for IMAGE_FIELDS; what is empty, the study lacks.
    """
    filled: list[str | Image] = []
    for part in template:
        pieces = [(literal, name) for literal, name, _, _ in Formatter().parse(part)]
        if all(name is None or fields[name] for _, name in pieces):
            for literal, name in pieces:
                filled += [literal] if literal else []
                filled += [] if name is None else fields[name] if name in IMAGE_FIELDS else [fields[name]]
    return filled


def literals() -> Iterator[str]:
    """Every text of the built-in templates, once."""
    seen = dict.fromkeys(
        literal for template in TASKS.values() for part in template for literal, *_ in Formatter().parse(part)
    )
    return (text for text in seen if text.strip())
