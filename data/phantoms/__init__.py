"""Synthetic studies: a latent clinical state, from which both the image and the report follow."""

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from data.phantoms import carotid, chest
from data.studies import Study

MODALITIES = {"chest": chest, "carotid": carotid}
SPLITS = {"train": 1, "val": 2, "test": 3}


def make_studies(
    modality: Literal["chest", "carotid"], *, num_train: int, num_val: int, num_test: int, seed: int, size: int = 112
) -> list[Study]:
    """Draw studies of patients with one to three each; no patient is in two splits.

    A study is a function of (modality, seed, split, patient, examination, size), however many are drawn.

    Args:
        size: side of the images in pixels.
    """
    studies = []
    for split, count in (("train", num_train), ("val", num_val), ("test", num_test)):
        patients = _studies_of_patients(modality, split, seed, size)
        studies += [next(patients) for _ in range(count)]
    return studies


def _studies_of_patients(modality: str, split: str, seed: int, size: int) -> Iterator[Study]:
    patient = 0
    while True:
        examinations = int(np.random.default_rng([seed, SPLITS[split], patient]).choice([1, 2, 3], p=[0.6, 0.3, 0.1]))
        for examination in range(examinations):
            generator = np.random.default_rng([seed, SPLITS[split], patient, examination])
            patient_id = f"{modality}-{split}-{patient:05d}"
            yield MODALITIES[modality].draw_study(
                f"{patient_id}-{examination}", patient_id=patient_id, split=split, generator=generator, size=size
            )
        patient += 1


def perfect_report(state: Mapping[str, object]) -> tuple[str, str]:
    """Findings and Impression that a perfect reader would write: complete, certain, consistent."""
    return MODALITIES[str(state["modality"])].perfect_report(state)


def state_labels(state: Mapping[str, object]) -> dict[str, int]:
    """The true labels, 1 or 0: the 14 CheXpert names for chest, the keyword labels for carotid."""
    return MODALITIES[str(state["modality"])].state_labels(state)
