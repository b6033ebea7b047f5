"""Synthetic studies: a latent clinical state, from which both the image and the report follow."""

from collections.abc import Iterator, Mapping
from itertools import count, islice
from typing import Literal

import numpy as np

from radflow.data.phantoms import carotid, chest
from radflow.data.phantoms.phrasing import Wording
from radflow.data.studies import Study

MODALITIES = {"chest": chest, "carotid": carotid}
SPLITS = {"train": 1, "val": 2, "test": 3}


def make_studies(
    modality: Literal["chest", "carotid"], *, num_train: int, num_val: int, num_test: int, seed: int, size: int = 112
) -> list[Study]:
    """Draw studies of patients with one to three each; no patient is in two splits.

    A study is a function of its id, seed and size (side of its images in pixels), however many are drawn.
    """
    studies = []
    for split, wanted in (("train", num_train), ("val", num_val), ("test", num_test)):
        names = islice(_study_ids(modality, split, seed), wanted)
        studies += [draw_phantom(name, seed=seed, size=size) for name in names]
    return studies


def _study_ids(modality: str, split: str, seed: int) -> Iterator[str]:
    for patient in count():
        examinations = int(np.random.default_rng([seed, SPLITS[split], patient]).choice([1, 2, 3], p=[0.6, 0.3, 0.1]))
        yield from (f"{modality}-{split}-{patient:05d}-{examination}" for examination in range(examinations))


def draw_phantom(study_id: str, *, seed: int, size: int) -> Study:
    """The study of `make_studies` with this id: modality-split-patient-examination; ValueError for any other id."""
    words = study_id.split("-")
    numbered = len(words) == 4 and words[2].isdecimal() and words[3].isdecimal()
    if not numbered or words[0] not in MODALITIES or words[1] not in SPLITS:
        raise ValueError(f"expected the id of a phantom, such as chest-train-00000-0, got {study_id!r}")
    modality, split, patient, examination = words
    generator = np.random.default_rng([seed, SPLITS[split], int(patient), int(examination)])
    return MODALITIES[modality].draw_study(study_id, generator, size)


def perfect_report(state: Mapping[str, object]) -> tuple[str, str]:
    """Findings and Impression that a perfect reader would write: complete, certain, consistent."""
    modality = MODALITIES[str(state["modality"])]
    return modality.write_report(state, Wording(modality.WORDINGS, None))


def state_labels(state: Mapping[str, object]) -> dict[str, int]:
    """The true labels, 1 or 0: the 14 CheXpert names for chest, the keyword labels for carotid."""
    return MODALITIES[str(state["modality"])].state_labels(state)
