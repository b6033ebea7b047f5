"""Generation of reports: prompts of studies, suppressed tokens, and a writer that decodes many studies concurrently.

`train.py` and `evaluate.py` use the same functions, so that a model writes the same reports in both.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from capo.checkpoint import check_product
from capo.checks import check_range
from capo.fsdp import gathered
from capo.ranks import Ranks
from capo.rollout import Engine, Request
from capo.sampling import SamplingConfig, pack_linear, sample_seed
from capo.stopping import StopSignal
from capo.types import Rollout
from radflow.data.prefetch import prefetch
from radflow.data.sections import parse_sections
from radflow.data.studies import Study, load_image
from radflow.models.decoding import packed
from radflow.models.loading import locate
from radflow.models.lora import cast_once
from radflow.models.processing import Prompt, ReportProcessor
from radflow.models.qwen_vl import QwenVL, load
from radflow.models.start import pick_device
from radflow.models.training_data import describe

NEIGHBOURS = 8  # studies of a pass of the vision tower whose features are kept


@dataclass(frozen=True)
class EvaluateConfig:
    """How held-out studies are evaluated."""

    max_new_tokens: int = 128
    """Token limit of a report; decoding is greedy."""
    slots: int = 64
    """Generation batch size of exploration and evaluation: reports decoded concurrently."""
    part_size: int = 256
    """Studies per part file; a killed evaluation repeats at most one part."""
    validate_every: int = 0
    """RL steps between validations on held-out studies, which the reward does not see; 0: never."""
    validate_studies: int = 16
    """Held-out studies per validation."""
    baseline_sample: int = 100
    """Training reports tried as the constant report, and training references that they are scored against."""
    metrics: tuple[str, ...] = ()
    """Columns next to the parts of the reward and the metrics of exploration, by their names in docs/rewards.md: what
    training does not aim at tells best whether it helps."""

    def __post_init__(self) -> None:
        check_range(self, "max_new_tokens", "slots", "part_size", "validate_studies", "baseline_sample", least=1)
        check_range(self, "validate_every", least=0)


def build_prompt(processor: ReportProcessor, study: Study, change: Callable | None = None):
    """The model's input for a study; `change` is applied to each image of it (augmentation)."""
    images, context = read_inputs(study)
    if change is not None:
        images = [change(image) for image in images]
        context["prior_images"] = [change(image) for image in context["prior_images"]]
    return processor.prompt(study.id, images, **context)


def read_inputs(study: Study) -> tuple[list[Image.Image], dict[str, Any]]:
    """Images of a study, and what else of it `ReportProcessor` takes."""
    read = partial(load_image, study_id=study.id, window=study.window)
    prior = [read(source) for source in study.prior_images]
    context = {"indication": study.indication, "comparison": study.comparison, "views": study.views}
    return [read(source) for source in study.images], {**context, "prior_images": prior}


class PromptStore:
    """Prompts of studies, built once and kept from one stage to the next.

    If the vision tower is not trained, they are kept with their image features instead of their pixels. A pass of the
    tower rounds differently with other images next to one. Features are therefore always those of a pass over the same
    neighbours: they do not depend on what was kept before a run was killed.

    Args:
        corpus: the studies whose prompts are kept; each pass reads a few that follow one another.
        limit_mb: of pixels and features; if those of the corpus take more, none are kept.
    """

    def __init__(self, processor: ReportProcessor, corpus: Sequence[Study] = (), *, limit_mb: int = 0) -> None:
        self.processor, self.corpus, self.limit_mb = processor, corpus, limit_mb
        parts = (corpus[i : i + NEIGHBOURS] for i in range(0, len(corpus), NEIGHBOURS))
        self._neighbours = {id(study): part for part in parts for study in part}
        self._tower, self._keeps = "", False
        self._policy: QwenVL | None = None
        self._kept: dict[int, Prompt] = {}  # by the identity of the study

    def follow(self, policy: QwenVL | None) -> None:
        """From now on keep the features that this policy's tower gives; None if the tower is trained, or is sharded, so
        that every pass needs all ranks. All prompts fit or none is kept, as estimated from the first of them.
        """
        tower = "" if policy is None else _hash_weights(policy.vision)
        if tower != self._tower:
            self._kept = {key: prompt for key, prompt in self._kept.items() if prompt.features is None}
        self._tower, self._policy, self._keeps = tower, policy, False
        if self.corpus and self.limit_mb:
            prompt = self.build(self.corpus[0])
            held = prompt.pixel_values if policy is None else with_features(policy, [prompt])[0].features
            self._keeps = len(self.corpus) * held.numel() * held.element_size() <= self.limit_mb * 2**20

    def release(self) -> None:
        """Let go of the policy and keep what is kept."""
        self._policy, self._keeps = None, False

    def build(self, study: Study) -> Any:
        """The prompt of a study; any thread may call this."""
        if id(study) in self._kept:
            return self._kept[id(study)]
        prompt = build_prompt(self.processor, study)
        if not self._is_kept(study):
            return prompt
        # Meanwhile another thread may have kept it, with features: those of its neighbours would stay, and a later pass
        # over it alone would round differently.
        return self._kept.setdefault(id(study), prompt)

    def _is_kept(self, study: Study) -> bool:
        return self._keeps and id(study) in self._neighbours

    def attach(self, studies: Sequence[Study], prompts: Sequence[Any]) -> list[Any]:
        """The prompts of these studies with their features, if those are kept."""
        return [self._attach(study, prompt) for study, prompt in zip(studies, prompts, strict=True)]

    @torch.no_grad()
    def _attach(self, study: Study, prompt: Prompt) -> Prompt:
        if self._policy is None or not self._is_kept(study):
            return prompt
        if (known := self.build(study)).features is not None:
            return known
        part = self._neighbours[id(study)]
        prompts = [self.build(one) for one in part]
        for one, its, features in zip(part, prompts, self._policy.features(prompts), strict=True):
            self._kept[id(one)] = replace(its, features=features.cpu(), pixel_values=its.pixel_values[:0].clone())
        return self._kept[id(study)]


@torch.no_grad()
def with_features(policy: QwenVL, prompts: Sequence[Any]) -> list[Any]:
    """The prompts with the features of a tower that is not trained: for their rollout and for the update after it."""
    computed = zip(prompts, policy.features(prompts), strict=True)
    return [replace(prompt, features=features.clone()) for prompt, features in computed]


def _hash_weights(module: torch.nn.Module) -> str:
    digest = hashlib.blake2b()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def suppressed_mask(policy: QwenVL, processor: ReportProcessor) -> torch.Tensor:
    """[V] bool, tokens no report may hold. The same mask samples and scores.

    Rows of the embedding beyond the tokenizer's last token are padding of the published checkpoints: suppressed too.
    """
    processor.check_fits(policy.vocab_size)
    suppressed = torch.arange(policy.vocab_size) >= len(processor.tokenizer)
    suppressed[list(processor.suppressed_ids)] = True
    return suppressed.to(policy.device)


@contextmanager
def prepare_generation(policy: QwenVL) -> Iterator[None]:
    """A policy in training as generation needs it: whole on every rank, adapters cast and the decoder packed once."""
    with gathered(policy), cast_once(policy), packed(policy, pack_linear):
        yield


class ReportWriter:
    """A policy that writes one report per study; its engine serves every call, and prompts are built ahead of it.

    Args:
        prompts: builds them; by default they are built anew each time.
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
        prompts: PromptStore | None = None,
        stop: StopSignal | None = None,
        shown: bool = True,
    ) -> None:
        self.policy, self.processor, self.seed = policy, processor, seed
        self.prompts = prompts or PromptStore(processor)
        self.workers, self.stop, self.shown = workers, stop, shown
        suppressed = suppressed_mask(policy, processor)
        self.engine = Engine(policy, sampling=sampling, eos_id=processor.eos_id, suppressed=suppressed, slots=slots)

    def write(self, studies: Sequence[Study], *, title: str) -> list[tuple[str, bool]]:
        """(report, whether it was cut at the token limit) of each study, in the order of `studies`.

        Raises:
            StopRequested: `stop` said so.
        """
        position = {study.id: i for i, study in enumerate(studies)}
        reports: list[tuple[str, bool]] = [("", False)] * len(studies)
        requests = self._requests(studies)
        with packed(self.policy, pack_linear):
            written = self.engine.rollout(requests, stop=self.stop)
            for report in with_progress(written, title, len(studies), shown=self.shown):
                reports[position[report.study_id]] = self.processor.decode(report.response_ids), report.truncated
        return reports

    def _requests(self, studies: Sequence[Study]) -> Iterator[Request]:
        for study, prompt in prefetch(studies, self.prompts.build, workers=self.workers):
            (ready,) = self.prompts.attach([study], [prompt])
            yield Request(ready, (sample_seed(self.seed, "generate", 0, study.id, 0),))


def greedy(sampling: SamplingConfig, *, max_new_tokens: int) -> SamplingConfig:
    """Greedy decoding within the memory that `sampling` allows."""
    return SamplingConfig(temperature=0.0, max_new_tokens=max_new_tokens, prefill_tokens=sampling.prefill_tokens)


def find_model(path_or_id: str) -> str:
    """A checkpoint as it is given; of the folder of a run the CAPO policy, or that of SFT before there is one.

    Raises:
        ValueError: the run has neither yet.
    """
    run = Path(path_or_id)
    if not (run / "config.yaml").is_file():
        return path_or_id
    policies = [run / stage / "model" for stage in ("rl", "sft")]
    found = next((path for path in policies if path.is_dir()), None)
    if found is None:
        raise ValueError(f"{run}: expected a run with rl/model or sft/model, it has neither yet; finish stage sft")
    return str(found)


def open_model(path_or_id: str) -> tuple[QwenVL, ReportProcessor]:
    """A model as it lies on disk, on the GPU if there is one, and the prompt that it was trained with."""
    directory = locate(path_or_id)
    check_product(directory, Ranks(), advice="copy the model again")
    return load(directory, dtype=None).to(pick_device()), ReportProcessor.load(directory)


def predict(policy: QwenVL, processor: ReportProcessor, study: Study, *, max_new_tokens: int) -> dict[str, str]:
    """The greedy report of one study: `report`, its `findings` and `impression`, `status`: the parser's, or `truncated`
    if it was cut at the token limit, and `training_data`: what the model was trained on."""
    sampling = greedy(SamplingConfig(), max_new_tokens=max_new_tokens)
    ((report, truncated),) = ReportWriter(policy, processor, sampling, slots=1).write([study], title="report")
    sections = parse_sections(report)
    status = "truncated" if truncated else sections.status
    said = {"report": report, "findings": sections.findings, "impression": sections.impression, "status": status}
    return {**said, "training_data": describe(processor.trained_on)}


def with_progress(
    written: Iterable[Rollout], title: str, total: int, *, leave: bool = True, shown: bool = True
) -> Iterator[Rollout]:
    """The reports as they come, under a bar with reports and tokens per second; no bar without a terminal."""
    began, tokens = time.perf_counter(), 0
    hidden = None if shown else True
    with tqdm(total=total, desc=title, unit="report", disable=hidden, mininterval=1, leave=leave) as bar:
        for report in written:
            tokens += len(report.response_ids)
            bar.set_postfix_str(f"{tokens / (time.perf_counter() - began):.0f} tokens/s", refresh=False)
            bar.update()
            yield report
