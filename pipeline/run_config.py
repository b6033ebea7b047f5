"""The config of a run: YAML file first, the command line over it; and the folder of a run, held under one config."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import filelock
import torch
import tyro
import yaml

from capo.checks import check_numbers, check_range
from capo.config import RlConfig
from capo.explore import ExploreConfig
from capo.fsdp import ParallelConfig
from capo.journal import read_json, write_json, write_whole
from capo.sft import SftConfig
from capo.warmup import WarmupConfig
from radflow.dashboard.run_files import read_yaml
from radflow.dashboard.trackers import TrackingConfig
from radflow.data.corpus import DataConfig
from radflow.data.readers.tables import escape_lines
from radflow.models.start import ModelConfig
from radflow.pipeline.command_line import CONFIGS, parse_source, suggest
from radflow.pipeline.corrections import CriticalityConfig
from radflow.pipeline.generation import EvaluateConfig
from radflow.pipeline.served_rollouts import RolloutConfig, ServedConfig
from radflow.rewards.config import RewardConfig
from radflow.rewards.judge.config import ANSWERS_DEPEND_ON, JudgeConfig

C = TypeVar("C")
TYRO: Any = {"prog": "train.py", "config": (tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands)}
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow", "nltk", "rouge-score")
NO_WORK = {
    *("config.yaml", "environment.json", "lock", "start", "status.json", "timing.jsonl", "warnings.jsonl"),
    *("dashboard.html", "tensorboard", "wandb"),
}
SHOWN = 5  # keys of a difference
STAGES = ("warmup", "sft", "explore", "criticality", "rl", "evaluate", "export")


@dataclass(frozen=True)
class Config:
    """Everything a run depends on; written resolved to config.yaml in its folder."""

    run_dir: Path = Path("runs/demo")
    """Folder of the run: models, predictions, metrics, tables."""
    seed: int = 0
    """Random seed for phantoms, weights, batch order and sampling."""
    stages: str = ",".join(STAGES)
    """Stages to run, separated by commas; each needs those before it, and complete stages are skipped."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    explore: ExploreConfig = field(default_factory=ExploreConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    criticality: CriticalityConfig = field(default_factory=CriticalityConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    served: ServedConfig = field(default_factory=ServedConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_numbers(self)
        check_range(self, "seed", least=0)
        if unknown := [name for name in self.stages.split(",") if name not in STAGES]:
            raise ValueError(f"expected stages among {','.join(STAGES)}, got {unknown[0]!r}")
        asks = {"criticality.source": self.criticality.source, "reward.consistency": self.reward.consistency}
        for key, who in asks.items():
            if who == "llm" and self.judge.model is None:
                raise ValueError(f"{key} llm needs judge.model, the name of the model that is asked")
        slots, group = self.rollout.slots, self.rl.group_size
        if group > slots:
            raise ValueError(f"expected rollout.slots of at least rl.group_size, got {slots} and {group}")
        sampling = self.rollout
        if "rl" in self.stages.split(",") and (sampling.temperature == 0 or sampling.top_p < 1 or sampling.top_k):
            raise ValueError(
                "expected rollout.temperature above 0, top_p 1 and top_k 0, as the RL stage trains on the distribution "
                f"that it samples from, got {sampling.temperature}, {sampling.top_p} and {sampling.top_k}"
            )
        if self.rollout.engine == "served":
            if self.served.url is None or self.served.model is None:
                raise ValueError("rollout.engine served needs served.url and served.model, the name of sft/model there")
            if self.model.training != "lora":
                raise ValueError(
                    "expected model.training lora with rollout.engine served, as a server loads an adapter in each "
                    f"step, got {self.model.training}"
                )
        if self.model.training == "lora" and self.rl.vision == "trained":
            raise ValueError("expected rl.vision frozen with model.training lora, got trained; see model.lora.vision")


MAY_CHANGE = (
    *("run_dir", "stages", "parallel", "tracking", "served", "data.workers", "data.cache_dir", "data.prompts_mb"),
    *("reward.workers", "reward.timeout_s", "reward.max_failed"),
    *("criticality.corrected", "evaluate.validate_every", "evaluate.validate_studies"),
    *(f"judge.{one.name}" for one in fields(JudgeConfig) if one.name not in ANSWERS_DEPEND_ON),
)


def config_hash(config: Any, may_change: Sequence[str] = MAY_CHANGE) -> str:
    """Of all that a run's results depend on."""
    kept = plain(config)
    for *sections, key in (name.split(".") for name in may_change):
        del functools.reduce(dict.__getitem__, sections, kept)[key]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def parse_config(words: Sequence[str]) -> Config:
    """Config of a run from the command line: the YAML file that `--config` names, then that of `--preset`, then the
    other options."""
    source, options = parse_source(words)
    preset = None if source.preset is None else CONFIGS / "presets" / f"{source.preset}.yaml"
    return read_config(Config, source.config, options, preset=preset)


def read_config(kind: type[C], path: Path, options: Sequence[str] = (), *, preset: Path | None = None) -> C:
    """A config from a YAML file, that of a preset over it, and dotted options over both; exits with a message that
    names the key of a mistake."""
    try:
        flags = [flag for one in (path, preset) if one is not None for flag in _read_flags(one, kind)]
    except (OSError, ValueError) as error:
        sys.exit(f"error: {escape_lines(str(error))}")
    return tyro.cli(kind, args=[*flags, *options], **TYRO)


def _read_flags(path: Path, kind: type) -> list[str]:
    return _flags(read_yaml(path) or {}, kind, "", path)


def show_options(sections: Sequence[str]) -> None:
    """Print the options of sections of the config, or of `all`; defaults are those of a config without the key."""
    kinds: dict[str, Any] = {one.name: one.type for one in fields(Config) if dataclasses.is_dataclass(one.type)}
    if unknown := [name for name in sections if name not in (*kinds, "all")]:
        sys.exit(f"error: the config has no section {unknown[0]}; {suggest(unknown[0], ('all', *kinds))}")
    shown = kinds if "all" in sections else sections
    chosen = [(name, kinds[name], field(default_factory=kinds[name])) for name in shown]
    about = "The options of a run. Defaults are those of a config that lacks the key."
    with suppress(SystemExit):
        tyro.cli(dataclasses.make_dataclass("Options", chosen), args=["--help"], description=about, **TYRO)


def _flags(node: Mapping[str, Any], kind: type, prefix: str, path: Path) -> list[str]:
    """A nested mapping as dotted options: one parser checks file and command line."""
    if not isinstance(node, Mapping):
        raise ValueError(f"{path}: expected keys under {prefix or 'the top level'}, got {node!r}")
    known = typing.get_type_hints(kind)
    flags = []
    for key, value in node.items():
        if key not in known:
            raise ValueError(f"{path}: unknown key {prefix}{key}; {suggest(str(key), known, prefix=prefix)}")
        if dataclasses.is_dataclass(known[key]):
            flags += _flags(value, known[key], f"{prefix}{key}.", path)
        elif isinstance(value, Mapping):
            flags += [f"--{prefix}{key}", *(str(word) for pair in value.items() for word in pair)]
        elif isinstance(value, list):
            flags += [f"--{prefix}{key}", *map(str, value)]
        else:
            flags += [f"--{prefix}{key}", str(value)]
    return flags


def plain(config: Any) -> Any:
    """A config as nested dicts, lists and plain values."""
    return json.loads(json.dumps(config, default=lambda one: str(one) if isinstance(one, Path) else vars(one)))


@contextmanager
def open_run(folder: Path, config: Any, *, may_change: Sequence[str] = ()) -> Iterator[None]:
    """Hold a run folder for one process, and refuse to continue it under another config but for `may_change`, keys that
    may be dotted. As long as no stage left anything there, any config is taken.

    Raises:
        ValueError: the folder is in use, or holds a run of another config (the keys that differ are named).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        known = config_hash(config, may_change)
        if not _holds_work(folder):
            shutil.rmtree(folder / "start", ignore_errors=True)  # model or texts may have been corrected since
        elif known != _last_hash(folder):
            _check_same(folder / "config.yaml", plain(config), may_change)
        write_whole(folder / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))
        write_json(folder / "environment.json", {**describe_environment(), "config_sha256": known})
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = filelock.FileLock(folder / "lock", blocking=False)  # of the system, which ends it with its process
    try:
        lock.acquire()
    except filelock.Timeout as error:
        advice = "wait for it or choose another run_dir"
        raise ValueError(f"run folder {folder} is in use by another process; {advice}") from error
    try:
        yield
    finally:
        lock.release()


def _holds_work(folder: Path) -> bool:
    """Whether a stage left anything in the folder."""
    parts = (one for one in folder.iterdir() if one.name.removesuffix(".tmp") not in NO_WORK)
    files = (path for one in parts for path in (one, *one.rglob("*")) if path.is_file())
    return any(path.stat().st_size for path in files)


def _last_hash(folder: Path) -> str | None:
    """Of the config of the last start, if the file that says so can be read."""
    try:
        return json.loads((folder / "environment.json").read_text(encoding="utf-8"))["config_sha256"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _check_same(path: Path, config: dict[str, Any], may_change: Sequence[str]) -> None:
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        before = None
    if not isinstance(before, dict):
        advice = "restore the file, or give the command that the run was last started with, which writes it anew"
        raise ValueError(f"{path}: expected the config of the run in this folder, it is missing or damaged; {advice}")
    differing = [
        f"{key} was {old}, is {new}"
        for key, (old, new) in _find_differences(before, config).items()
        if key not in may_change and key.split(".")[0] not in may_change
    ]
    if differing:
        more = f" and {len(differing) - SHOWN} more keys" if len(differing) > SHOWN else ""
        found = f"{path.parent} holds a run of another config: {'; '.join(differing[:SHOWN])}{more}"
        raise ValueError(f"{found}. Give the values that it was begun with, or choose another run_dir")


def _find_differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return {} if old == new else {prefix[:-1]: (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*old, *(k for k in new if k not in old)]:
        found |= _find_differences(old.get(key), new.get(key), f"{prefix}{key}.")
    return found


def note_checkpoint(folder: Path, name: str) -> None:
    """Write into a run's environment.json which checkpoint it starts from, with its commit if it is one of the hub."""
    path = folder / "environment.json"
    known = read_json(path) if path.exists() else {}  # of a run that nobody opened
    write_json(path, {**known, "checkpoint": name})


def describe_environment() -> dict[str, Any]:
    """Versions, commit and devices, for whoever wants to reproduce the run."""
    ask, here = ["git", "rev-parse", "HEAD"], Path(__file__).parent
    commit = subprocess.run(ask, capture_output=True, text=True, cwd=here, check=False)
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": commit.stdout.strip() or None,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or [platform.machine()],
        "threads": torch.get_num_threads(),
    }
