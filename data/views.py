"""View positions of radiographs: which are frontal, and which of a study's images come first."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from data.studies import Study

ViewChoice = Literal["all", "frontal", "one_frontal"]

# Codes of MIMIC-CXR, ReXGradient-160K, CheXpert Plus and IU X-ray, lower case -> place among a study's images.
RANK = {
    "pa": 0, "postero_anterior": 0, "frontal pa": 0,
    "ap": 1, "antero_posterior": 1, "ap axial": 1, "frontal ap": 1,
    "frontal": 2,
    "lateral": 4, "ll": 4, "rl": 4, "lat": 4, "left lateral": 4, "right lateral": 4, "xtable lateral": 4,
}  # fmt: skip
UNKNOWN = 3


def is_frontal(view: str) -> bool:
    return RANK.get(view.lower(), UNKNOWN) < UNKNOWN


def arranged(study: Study, keep: ViewChoice) -> Study:
    """The study with its frontal images first (PA, AP, then others), and without those that `keep` leaves out.

    Images of unknown view count as not frontal; a study without views keeps its order, and nothing of it is left out.
    """
    if not any(study.views):
        return study
    assert len(study.views) == len(study.images), study.id
    order = sorted(range(len(study.images)), key=lambda i: RANK.get(study.views[i].lower(), UNKNOWN))
    if keep != "all":
        order = [i for i in order if is_frontal(study.views[i])][: 1 if keep == "one_frontal" else None]
    return replace(study, images=_picked(study.images, order), views=_picked(study.views, order))


def _picked(values: Sequence, order: Sequence[int]) -> tuple:
    return tuple(values[i] for i in order)
