"""Studies whose prompt or report is too long for the model's budgets, named before any stage starts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from radflow.data.image_files import open_image
from radflow.data.studies import ImageSource, Study, refuse
from radflow.models.processing import ReportProcessor


def check_lengths(studies: Sequence[Study], processor: ReportProcessor, *, reports: bool) -> None:
    """Raise one ValueError that names every study with a prompt, or if `reports` a report, beyond the limits.

    Only of prompts that could be too long, by the number of their images and the length of their texts, the image files
    are opened.
    """
    bar = tqdm(studies, "checking lengths", unit="study", disable=None, mininterval=1, leave=False)
    refuse([problem for study in bar for problem in _problems(study, processor, reports)], len(studies))


def _problems(study: Study, processor: ReportProcessor, reports: bool) -> list[str]:
    problems = []
    num_images = len(study.images) + len(study.prior_images)
    texts: dict[str, Any] = {"indication": study.indication, "comparison": study.comparison, "views": study.views}
    try:
        most = processor.most_prompt_tokens(num_images, study.indication, study.comparison, ", ".join(study.views))
        if most > processor.config.max_prompt_tokens:
            sizes, prior_sizes = (list(map(_size, sources)) for sources in (study.images, study.prior_images))
            processor.check_prompt(study.id, sizes, prior_sizes=prior_sizes, **texts)
    except ValueError as error:
        problems.append(str(error))
    try:
        if reports:
            processor.check_report(study.id, study.report)
    except ValueError as error:
        problems.append(str(error))
    return problems


def _size(source: ImageSource) -> tuple[int, int]:
    """Width and height in pixels; of a file, its header is enough."""
    if isinstance(source, np.ndarray):
        return source.shape[1], source.shape[0]
    with open_image(source) as image:
        return image.size
