"""`evaluate.py generate`: a report for each study of a manifest, by a model of ours or a served one; resumable."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from capo.checks import check_range
from capo.journal import Digests, read_json, write_json
from capo.ranks import Ranks
from capo.sampling import SamplingConfig
from capo.stopping import StopRequested, StopSignal
from radflow.data.prefetch import decode_studies
from radflow.data.readers.manifest import read_manifest
from radflow.data.studies import Study, check_studies
from radflow.evaluation.served_model import ServedModel, ServedModelConfig
from radflow.pipeline.command_line import say
from radflow.pipeline.resumable import Row, resumable_map

Write = Callable[..., list[tuple[str, bool]]]  # (report, whether it was cut) of each study
RANKS_TIMEOUT_S = 1800.0  # a part of long reports takes its time


@dataclass(frozen=True)
class GenerateConfig:
    """Which studies are reported, by which model, and how it is decoded."""

    manifest: Annotated[Path, arg(aliases=("--data",))]
    """JSONL manifest of studies (docs/data.md)."""
    out: Path
    """Predictions in ReXrank's JSON; finished parts are in a folder next to it until all are there."""
    image_root: Path | None = None
    """Folder that image paths start from; the manifest's own by default."""
    split: str = "all"
    """Split of the manifest."""
    model: str | None = None
    """Qwen-VL checkpoint: a directory or a hub id; or the folder of a run."""
    endpoint: ServedModelConfig = field(default_factory=ServedModelConfig)
    sampling: Annotated[SamplingConfig, arg(name="")] = field(
        default_factory=lambda: SamplingConfig(temperature=0.0, max_new_tokens=256)
    )
    seed: int = 0
    """Random seed of sampling; in float32 a report depends on it and on the study's id alone."""
    part_size: int | None = None
    """Studies per part; a kill loses at most one part per rank. By default 256, with an endpoint 32."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.endpoint.url is None):
            raise ValueError("expected model or endpoint.url, and not both; one of them writes the reports")
        if self.studies_per_part < 1:
            raise ValueError(f"expected part_size of at least 1, got {self.part_size}")
        check_range(self, "seed", least=0)

    @property
    def studies_per_part(self) -> int:
        return self.part_size if self.part_size is not None else 256 if self.endpoint.url is None else 32

    @property
    def parts(self) -> Path:
        """Folder of the finished parts."""
        return self.out.with_name(self.out.name + ".parts")


def generate(config: Annotated[GenerateConfig, arg(name="")]) -> None:
    """Write a report for each study of a manifest; under torchrun the ranks share the work. Rerun to resume.

    Raises:
        ValueError: the manifest or the model does not fit, parts of other settings are there, or the endpoint failed.
        StopRequested: stopped by a signal; finished parts stay.
    """
    if config.model is not None:
        from radflow.models.start import pick_device  # loads torch

        pick_device()  # before anything slow, as it may warn
    studies = read_manifest(config.manifest, image_root=config.image_root)
    studies = [study for study in studies if config.split in ("all", study.split)]
    if not studies:
        raise ValueError(f"{config.manifest}: expected studies of split {config.split}, got none; correct the split")
    check_studies(studies)
    decode_studies(studies)
    about = ""
    if config.model is not None:
        from radflow.models.processing import ReportProcessor  # loads transformers
        from radflow.models.training_data import describe
        from radflow.pipeline.generation import find_model
        from radflow.pipeline.limits import check_lengths

        model = find_model(config.model)
        config, processor = dataclasses.replace(config, model=model), ReportProcessor.load(model)
        check_lengths(studies, processor, reports=False)
        about = f"\nmodel: {model}\ntraining data: {describe(processor.trained_on)}"
    ranks, stop = Ranks.from_environment(timeout_s=RANKS_TIMEOUT_S), StopSignal()
    ranks.stage = "generate"
    stop.listen()
    if ranks.is_main:
        _check_settings(config, studies)
    ranks.barrier()
    write = _load_writer(config, stop, shown=ranks.is_main)

    def work(part: Sequence[Study], name: str) -> list[Row]:
        found = zip(part, write(part, title=name), strict=True)
        return [{"id": study.id, "report": report, "truncated": truncated} for study, (report, truncated) in found]

    try:
        size, made_with = config.studies_per_part, _identify_model(config)
        rows = resumable_map(config.parts, studies, size, work, ranks, title="reports", built_on=made_with)
    except StopRequested:
        ranks.shutdown()
        raise
    if ranks.is_main:
        write_json(config.out, {row["id"]: {"report": row["report"]} for row in rows})
        cut = sum(bool(row["truncated"]) for row in rows)
        say(f"{len(rows)} reports in {config.out}; {cut} were cut at the token limit{about}")
    ranks.shutdown()


def _identify_model(config: GenerateConfig) -> dict[str, str]:
    """The hash of a model that has digests, as that of a run has."""
    digests = None if config.model is None else Digests.read(Path(config.model))
    return {str(config.model): digests.identity} if digests else {}


def _load_writer(config: GenerateConfig, stop: StopSignal, shown: bool) -> Write:
    """What reports a part; a model is loaded with the first part, so that none is needed if all parts are there."""
    if config.model is None:
        served = ServedModel(config.endpoint, config.sampling)

        def ask(part: Sequence[Study], *, title: str) -> list[tuple[str, bool]]:
            with stop.at_once():
                return served.reports(part, title=title)

        return ask
    from radflow.pipeline.generation import ReportWriter, open_model  # loads transformers

    slots, model = min(config.sampling.slots, config.studies_per_part), config.model
    options: dict[str, Any] = {"slots": slots, "seed": config.seed, "stop": stop, "shown": shown}
    load = cache(lambda: ReportWriter(*open_model(model), config.sampling, **options))
    return lambda part, *, title: load().write(part, title=title)


def _check_settings(config: GenerateConfig, studies: Sequence[Study]) -> None:
    """Raise ValueError if parts are there that other settings made: they are no parts of this file."""
    asked = {name: getattr(config.endpoint, name) for name in ("url", "model", "prompt", "max_side")}
    sampling = dataclasses.asdict(config.sampling)
    del sampling["slots"]  # no report depends on it
    listed = json.dumps([[s.id, s.indication, s.comparison, [str(image) for image in s.images]] for s in studies])
    settings = {
        "model": config.model,
        "endpoint": asked if config.endpoint.url else None,
        "sampling": sampling,
        "seed": config.seed,
        "part_size": config.studies_per_part,
        "studies": hashlib.sha256(listed.encode()).hexdigest(),
    }
    path = config.parts / "settings.json"
    if path.exists() and (found := read_json(path)) != settings:
        changed = ", ".join(key for key in settings if found.get(key) != settings[key])
        wrong = f"expected parts of the same command, these were made with another {changed}"
        raise ValueError(f"{config.parts}: {wrong}; remove the folder, or choose another file to write")
    write_json(path, settings)
