"""`evaluate.py generate`: a report for each study of a manifest, by a model or by a served one; resumable."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from capo.journal import write_json
from capo.ranks import Ranks
from capo.sampling import SamplingConfig
from capo.stopping import StopRequested, StopSignal
from data.readers.manifest import read_manifest
from data.studies import Study, check_studies, decode_studies
from evaluation.endpoint import Endpoint, EndpointConfig
from parts import Row, in_parts
from reports_by_policy import ReportWriter, open_model

RANKS_TIMEOUT_S = 1800.0  # a part of long reports takes its time


@dataclass(frozen=True)
class GenerateConfig:
    """What is reported, by whom, and how it is decoded."""

    data: Path
    """JSONL manifest of studies."""
    out: Path
    """Predictions in ReXrank's JSON; finished parts lie in a folder beside it until all are there."""
    image_root: Path | None = None
    """Folder that image paths start from; the manifest's own by default."""
    model: str | None = None
    """Checkpoint directory or hub id."""
    endpoint: EndpointConfig | None = None
    """A served model instead."""
    split: str = "all"
    """Split of the manifest."""
    sampling: SamplingConfig = dataclasses.field(default_factory=lambda: SamplingConfig(temperature=0.0))
    """Greedy by default."""
    seed: int = 0
    """Of sampling; in float32 a report depends on it and on the study's id alone."""
    slots: int = 64
    """Reports decoded side by side."""
    part_size: int = 256
    """Studies that are lost at most when the program is killed."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("expected --model or --endpoint, and not both; one of them writes the reports")
        if self.slots < 1 or self.part_size < 1:
            raise ValueError(f"expected --slots and --part-size of at least 1, got {self.slots} and {self.part_size}")

    @property
    def parts(self) -> Path:
        """Folder of the finished parts."""
        return self.out.with_name(self.out.name + ".parts")


def generate(config: GenerateConfig) -> int:
    """Write the predictions; returns their number. A second start takes up where the first was stopped.

    Raises:
        ValueError: the manifest or the model does not fit, parts of other settings are there, or the endpoint failed.
        StopRequested: stopped by a signal; finished parts stay.
    """
    studies = [
        study
        for study in read_manifest(config.data, image_root=config.image_root)
        if config.split in ("all", study.split)
    ]
    if not studies:
        raise ValueError(f"{config.data}: expected studies of split {config.split}, got none; correct --split")
    check_studies(studies)
    decode_studies(studies)
    ranks, stop = Ranks.join(timeout_s=RANKS_TIMEOUT_S), StopSignal()
    ranks.stage = "generate"
    stop.listen()
    if ranks.first:
        _same_settings(config, studies)
    ranks.meet()
    work = _by_model(config, stop, ranks) if config.endpoint is None else _by_endpoint(config.endpoint, stop)
    try:
        rows = in_parts(config.parts, studies, config.part_size, work, ranks, title="reports")
    except StopRequested:
        ranks.leave()
        raise
    if ranks.first:
        write_json(config.out, {row["id"]: {"report": row["report"]} for row in rows})
        cut = sum(bool(row["truncated"]) for row in rows)
        print(f"{len(rows)} reports in {config.out}; {cut} were cut at the token limit")
    ranks.leave()
    return len(rows)


def _by_model(config: GenerateConfig, stop: StopSignal, ranks: Ranks) -> Callable[[Sequence[Study], str], list[Row]]:
    writers: list[ReportWriter] = []  # with the first part: where all are there, no model is needed
    slots = min(config.slots, config.part_size)

    def work(part: Sequence[Study], name: str) -> list[Row]:
        if not writers:
            options = {"seed": config.seed, "slots": slots, "stop": stop, "shown": ranks.first}
            writers.append(ReportWriter(*open_model(config.model), config.sampling, **options))
        return [_row(study, *found) for study, found in zip(part, writers[0].write(part, title=name), strict=True)]

    return work


def _by_endpoint(config: EndpointConfig, stop: StopSignal) -> Callable[[Sequence[Study], str], list[Row]]:
    endpoint = Endpoint(config)

    def work(part: Sequence[Study], name: str) -> list[Row]:
        if stop.requested:
            raise StopRequested("stopped while reports were asked for, as asked")
        return [_row(study, *found) for study, found in zip(part, endpoint.reports(part, title=name), strict=True)]

    return work


def _row(study: Study, report: str, truncated: bool) -> Row:
    return {"id": study.id, "report": report, "truncated": truncated}


def _same_settings(config: GenerateConfig, studies: Sequence[Study]) -> None:
    """Parts that other settings made are no parts of this file.

    Raises:
        ValueError: such parts are there.
    """
    endpoint = config.endpoint and {"url": config.endpoint.url, "model": config.endpoint.model,
                                    "prompt": config.endpoint.prompt, "max_side": config.endpoint.max_side}  # fmt: skip
    listed = json.dumps([[s.id, s.indication, s.comparison, [str(image) for image in s.images]] for s in studies])
    settings = {
        "model": config.model,
        "endpoint": endpoint,
        "sampling": dataclasses.asdict(config.sampling),
        "seed": config.seed,
        "part_size": config.part_size,
        "studies": hashlib.sha256(listed.encode()).hexdigest(),
    }
    path = config.parts / "settings.json"
    if path.exists() and (found := json.loads(path.read_text(encoding="utf-8"))) != settings:
        changed = [key for key in settings if found.get(key) != settings[key]]
        raise ValueError(
            f"{config.parts}: expected parts of the same command, these were made with another {', '.join(changed)}; "
            "remove the folder, or choose another --out"
        )
    write_json(path, settings)
