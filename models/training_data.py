"""What a model was trained on: saved with its prompt, so that a copy of the model says it too."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from radflow.models import loading

SETTINGS = "radflow_prompt.json"  # the prompt and the data that a model was trained with, saved next to its weights
KEY = "trained_on"  # in the file of the prompt; a model without it says nothing


@dataclass(frozen=True)
class TrainingData:
    """The studies of one run, or a model to start from of which nothing is recorded."""

    name: str
    synthetic: bool
    """Images are drawn by a program; none is of a patient."""


def to_record(trained_on: Sequence[TrainingData] | None) -> dict[str, Any]:
    """What a file holds of it: nothing if nothing is known."""
    return {} if trained_on is None else {KEY: [asdict(one) for one in trained_on]}


def from_record(settings: Mapping[str, Any]) -> tuple[TrainingData, ...] | None:
    """The reverse.

    Raises:
        ValueError: it is of another form.
    """
    if (found := settings.get(KEY)) is None:
        return None
    try:
        read = tuple(TrainingData(**one) for one in found)
        fits = all(isinstance(one.synthetic, bool) and one.name.isprintable() for one in read)
    except (TypeError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(f"expected objects of name and synthetic (true or false) under {KEY}, got {found!r}")
    return read


def load_training_data(directory: Path) -> tuple[TrainingData, ...] | None:
    """What the model in a folder was trained on; None if the folder does not say it."""
    path = directory / SETTINGS
    if not path.is_file():
        return None
    settings = loading.read_json(path)
    try:
        return from_record(settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; remove the file or copy it again") from error


def describe(trained_on: Sequence[TrainingData] | None) -> str:
    """In one line: what, in its order, and whether it was synthetic images only."""
    if trained_on is None:
        return "unknown, the model's folder does not say it"
    names = ", then ".join(one.name for one in trained_on) or "none, its weights are random"
    if trained_on and all(one.synthetic for one in trained_on):
        return f"synthetic images only ({names}); its report of a patient's image means nothing"
    return names
