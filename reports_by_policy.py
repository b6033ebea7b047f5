"""Reports written by a policy: greedy, many side by side, or one at a time.

`train.py` and `evaluate.py` write with the same functions, so that a model reports alike wherever it is asked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from capo.rollout import Request, rollout
from capo.sampling import SamplingConfig, sample_seed
from capo.stopping import StopSignal
from data.sections import parse_sections
from data.studies import Study, load_image
from models.loading import locate
from models.processing import ReportProcessor
from models.qwen_vl import QwenVL, load
from rollouts import watched


@dataclass(frozen=True)
class EvaluateConfig:
    """How held-out studies are evaluated."""

    max_new_tokens: int = 128
    """Token limit of a report; decoding is greedy."""
    slots: int = 64
    """Reports decoded side by side."""
    baseline_sample: int = 100
    """Training reports tried as constant report, and training references they are judged on."""
    metrics: tuple[str, ...] = ()
    """Columns beside the parts of the reward and the metrics of exploration, by their names in docs/rewards.md: what
    training does not aim at tells best whether it helps."""


def prompt_of(processor: ReportProcessor, study: Study, change: Callable | None = None):
    """The model's input for a study; `change` is applied to each image of it (augmentation)."""
    images = [load_image(source, study_id=study.id, window=study.window) for source in study.images]
    prior = [load_image(source, study_id=study.id, window=study.window) for source in study.prior_images]
    if change is not None:
        images, prior = [change(image) for image in images], [change(image) for image in prior]
    texts = {"indication": study.indication, "comparison": study.comparison}
    return processor.prompt(study.id, images, prior_images=prior, views=study.views, **texts)


def banned_mask(policy: QwenVL, processor: ReportProcessor) -> torch.Tensor:
    """[V] bool, tokens no report may hold. The same mask samples and scores.

    Rows of the embedding beyond the tokenizer's last token are padding of the published checkpoints: banned too.
    """
    processor.check_fits(policy.vocab_size)
    banned = torch.zeros(policy.vocab_size, dtype=torch.bool)
    banned[list(processor.banned_ids)] = True
    banned[len(processor.tokenizer) :] = True
    return banned.to(policy.device)


def write_reports(
    policy: QwenVL,
    processor: ReportProcessor,
    studies: Sequence[Study],
    config: EvaluateConfig,
    *,
    title: str,
    stop: StopSignal | None = None,
    shown: bool = True,
) -> list[str]:
    """One greedy report a study, in the order of `studies`.

    Raises:
        StopRequested: `stop` said so.
    """
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=config.max_new_tokens)
    options = {"slots": config.slots, "title": title, "stop": stop, "shown": shown}
    return [report for report, _ in sample_reports(policy, processor, studies, sampling, seed=0, **options)]


def sample_reports(
    policy: QwenVL,
    processor: ReportProcessor,
    studies: Sequence[Study],
    sampling: SamplingConfig,
    *,
    seed: int,
    slots: int,
    title: str,
    stop: StopSignal | None = None,
    shown: bool = True,
) -> list[tuple[str, bool]]:
    """(report, whether it was cut at the token limit) of each study, in the order of `studies`.

    A sampled report depends on the seed and its study's id, not on what is decoded beside it.

    Raises:
        StopRequested: `stop` said so.
    """
    position = {study.id: i for i, study in enumerate(studies)}
    reports: list[tuple[str, bool]] = [("", False)] * len(studies)
    requests = (
        Request(prompt_of(processor, study), (sample_seed(seed, "generate", 0, study.id, 0),)) for study in studies
    )
    written = rollout(
        policy, requests, sampling=sampling, eos_id=processor.eos_id,
        banned=banned_mask(policy, processor), slots=min(slots, len(studies)), stop=stop,
    )  # fmt: skip
    for report in watched(written, title, len(studies), shown=shown):
        reports[position[report.study_id]] = processor.decode(report.response_ids), report.truncated
    return reports


def open_model(path_or_id: str) -> tuple[QwenVL, ReportProcessor]:
    """A model as it lies on disk, on the GPU where there is one, and the prompt that it was trained with."""
    directory, device = locate(path_or_id), "cuda" if torch.cuda.is_available() else "cpu"
    return load(directory, dtype=None).to(device), ReportProcessor.load(directory)


def predict(policy: QwenVL, processor: ReportProcessor, study: Study, *, max_new_tokens: int) -> dict[str, str]:
    """The greedy report of one study: `report`, its `findings` and `impression`, and the parser's `status`.

    A report that was cut at the token limit has the status `truncated`, whatever sections it got to.
    """
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=max_new_tokens)
    options = {"sampling": sampling, "eos_id": processor.eos_id, "banned": banned_mask(policy, processor), "slots": 1}
    (written,) = rollout(policy, [Request(prompt_of(processor, study), (0,))], **options)
    report = processor.decode(written.response_ids)
    sections = parse_sections(report)
    status = "truncated" if written.truncated else sections.status
    return {"report": report, "findings": sections.findings, "impression": sections.impression, "status": status}
