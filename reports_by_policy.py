"""Reports written by a policy: greedy, many side by side, or one at a time.

`train.py` and `evaluate.py` write with the same functions, so that a model reports alike wherever it is asked.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from capo.fsdp import gathered
from capo.rollout import Engine, Request
from capo.sampling import SamplingConfig, sample_seed
from capo.stopping import StopSignal
from data.prefetch import prefetched
from data.sections import parse_sections
from data.studies import Study, load_image
from models.loading import locate
from models.lora import cast_once
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


@contextmanager
def generating(policy: QwenVL) -> Iterator[None]:
    """A policy in training as generation needs it: whole on every rank, its adapters cast once."""
    with gathered(policy), cast_once(policy):
        yield


class ReportWriter:
    """A policy that writes one report per study; its engine serves every call, and prompts are built ahead of it.

    Args:
        seed: of sampled reports; in float32 a report depends on it and on its study's id, not on its neighbours.
        slots: reports decoded concurrently.
        workers: threads that load images and build prompts; 0 builds each when the engine asks.
        stop: asked before each token.
        shown: whether a bar is.
    """

    def __init__(
        self,
        policy: QwenVL,
        processor: ReportProcessor,
        sampling: SamplingConfig,
        *,
        slots: int,
        seed: int = 0,
        workers: int = 2,
        stop: StopSignal | None = None,
        shown: bool = True,
    ) -> None:
        self.processor, self.seed, self.workers, self.stop, self.shown = processor, seed, workers, stop, shown
        banned = banned_mask(policy, processor)
        self.engine = Engine(policy, sampling=sampling, eos_id=processor.eos_id, banned=banned, slots=slots)

    def write(self, studies: Sequence[Study], *, title: str) -> list[tuple[str, bool]]:
        """(report, whether it was cut at the token limit) of each study, in the order of `studies`.

        Raises:
            StopRequested: `stop` said so.
        """
        position = {study.id: i for i, study in enumerate(studies)}
        reports: list[tuple[str, bool]] = [("", False)] * len(studies)
        loaded = prefetched(studies, partial(prompt_of, self.processor), workers=self.workers)
        requests = (Request(prompt, (sample_seed(self.seed, "generate", 0, study.id, 0),)) for study, prompt in loaded)
        written = self.engine.rollout(requests, stop=self.stop)
        for report in watched(written, title, len(studies), shown=self.shown):
            reports[position[report.study_id]] = self.processor.decode(report.response_ids), report.truncated
        return reports


def greedy(sampling: SamplingConfig, *, max_new_tokens: int) -> SamplingConfig:
    """Greedy decoding within the memory that `sampling` allows."""
    return SamplingConfig(temperature=0.0, max_new_tokens=max_new_tokens, prefill_tokens=sampling.prefill_tokens)


def open_model(path_or_id: str) -> tuple[QwenVL, ReportProcessor]:
    """A model as it lies on disk, on the GPU where there is one, and the prompt that it was trained with."""
    directory, device = locate(path_or_id), "cuda" if torch.cuda.is_available() else "cpu"
    return load(directory, dtype=None).to(device), ReportProcessor.load(directory)


def predict(policy: QwenVL, processor: ReportProcessor, study: Study, *, max_new_tokens: int) -> dict[str, str]:
    """The greedy report of one study: `report`, its `findings` and `impression`, and the parser's `status`.

    A report that was cut at the token limit has the status `truncated`, whatever sections it got to.
    """
    writer = ReportWriter(policy, processor, greedy(SamplingConfig(), max_new_tokens=max_new_tokens), slots=1)
    ((report, truncated),) = writer.write([study], title="report")
    sections = parse_sections(report)
    status = "truncated" if truncated else sections.status
    return {"report": report, "findings": sections.findings, "impression": sections.impression, "status": status}
