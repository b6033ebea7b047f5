"""`evaluate.py weights`: what the metrics need besides this project, where it is looked for, and its download."""

import hashlib
import importlib.util
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from capo.checks import check_range
from radflow.rewards.hub import COMMITS, find_commit
from radflow.rewards.metrics.bertscore import BASELINES, BertScoreConfig
from radflow.rewards.metrics.chexbert import ChexbertConfig
from radflow.rewards.metrics.encoder import in_one_line
from radflow.rewards.metrics.ratescore import RateScoreConfig
from radflow.rewards.metrics.srrbert import SrrBertConfig
from radflow.rewards.metrics.temporal import TemporalConfig
from radflow.rewards.radgraph.f1 import RadGraphConfig

VARIABLE = "RADFLOW_WEIGHTS"


@dataclass(frozen=True)
class Needed:
    """One set of weights, or a package; weights.toml explains the fields."""

    name: str
    used_by: str
    licence: str
    path: str = ""
    files: Sequence[str] = ()
    repository: str | None = None
    module: str | None = None
    command: str | None = None
    own_licence: bool = False
    sha256: str | None = None

    @property
    def key(self) -> str:
        """Of the config that names another path."""
        return f"weights.{self.name.replace('-', '_')}"


with Path(__file__).with_suffix(".toml").open("rb") as _file:
    NEEDED = {name: Needed(name, **entry) for name, entry in tomllib.load(_file).items()}
# What a model needs altogether. RadGraph's encoder may also lie in the hub's cache, under the name its config gives.
TOGETHER = {
    "bertscore": ("bertscore",),
    "chexbert": ("chexbert", "bert"),
    "radgraph": ("radgraph",),
    "ratescore": ("ratescore-package", "rate-ner", "biolord"),
    "srrbert": ("srr-bert", "cxr-bert"),
    "temporal": ("stanza-package", "stanza"),
}


def default_root() -> Path:
    """The weights root: $RADFLOW_WEIGHTS, else radflow/weights in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get(VARIABLE, cache / "radflow" / "weights"))


@dataclass(frozen=True)
class Weights:
    """Where each set of weights is: as given here, else under the root, else in the hub's own cache."""

    root: Path = field(default_factory=default_root)
    """Folder of weights; by default that of $RADFLOW_WEIGHTS, else radflow/weights in the user's cache."""
    bertscore: Path | None = None
    """Directory of distilroberta-base."""
    chexbert: Path | None = None
    """chexbert.pth."""
    bert: Path | None = None
    """Directory of bert-base-uncased (config and tokenizer)."""
    radgraph: Path | None = None
    """RadGraph v1: a directory or radgraph.tar.gz."""
    radgraph_encoder: Path | None = None
    """Directory with config and tokenizer of RadGraph's encoder."""
    rate_ner: Path | None = None
    """Directory of RaTE-NER-Deberta."""
    biolord: Path | None = None
    """Directory of BioLORD-2023-C."""
    srr_bert: Path | None = None
    """Directory of SRR-BERT-Leaves-with-Statuses."""
    cxr_bert: Path | None = None
    """Directory of BiomedVLP-CXR-BERT-general (config and tokenizer)."""
    stanza: Path | None = None
    """Directory of stanza's models."""
    device: str = "auto"
    """cpu, cuda or auto."""
    token_budget: int = 2048
    """Tokens per batch; a GPU wants more."""

    def __post_init__(self) -> None:
        check_range(self, "token_budget", least=1)
        for needed in NEEDED.values():
            given = self._given(needed.name)
            if given is not None and not given.exists():
                raise ValueError(f"{needed.key}: expected a file or directory at {given}, found none; correct it")

    def find(self, name: str) -> Path | None:
        """Path of one set of weights; None if it is not on this machine. Nothing is fetched."""
        if (module := NEEDED[name].module) is not None:
            found = importlib.util.find_spec(module)
            return Path(found.origin).parent if found and found.origin else None
        if (given := self._given(name)) is not None:
            return given
        unpacked = ["radgraph"] if name == "radgraph" else []  # the folder of an archive
        paths = [self.root / each for each in (*unpacked, NEEDED[name].path)]
        return next((path for path in paths if path.exists()), None) or _find_in_hub_cache(NEEDED[name])

    def how_to_get(self, model: str) -> str | None:
        """The commands that fetch what a model lacks, and the keys that name it elsewhere; None if nothing is."""
        absent = [NEEDED[name] for name in TOGETHER.get(model, ()) if self.find(name) is None]
        commands = "; ".join(self.commands(absent))
        keys = " and ".join(needed.key for needed in absent if needed.module is None)
        return commands + (f", or set {keys}" if keys else "") if absent else None

    def commands(self, absent: Sequence[Needed]) -> list[str]:
        """What fetches these: each command of its own, and one for all that is on the hub."""
        own = [n.command.format(path=self.root / n.path) for n in absent if n.command is not None]
        hub = [needed for needed in absent if needed.command is None]
        return [*own, _fetch_command(hub)] if hub else own

    def bertscore_config(self) -> BertScoreConfig:
        """ReXrank's, whatever the directory is called: another layer or no rescaling would be another metric."""
        path, baseline = str(self.find("bertscore")), BASELINES["distilroberta-base", 5]
        return BertScoreConfig(path, 5, baseline, device=self.device, token_budget=self.token_budget)

    def chexbert_config(self) -> ChexbertConfig:
        path, bert = self.find("chexbert"), str(self.find("bert"))
        return ChexbertConfig(path, bert, device=self.device, token_budget=self.token_budget)

    def radgraph_config(self) -> RadGraphConfig:
        tokens = 512 if self.device == "cpu" else self.token_budget
        path, encoder = self.find("radgraph"), self.find("radgraph-encoder")
        return RadGraphConfig(path, encoder=encoder, device=self.device, max_tokens=tokens)

    def ratescore_config(self) -> RateScoreConfig:
        return RateScoreConfig(self.find("rate-ner"), self.find("biolord"), device=self.device)

    def srrbert_config(self) -> SrrBertConfig:
        path, tokenizer = self.find("srr-bert"), self.find("cxr-bert")
        return SrrBertConfig(path, tokenizer, device=self.device, token_budget=self.token_budget)

    def temporal_config(self) -> TemporalConfig:
        return TemporalConfig(self.find("stanza"), device=self.device)

    def _given(self, name: str) -> Path | None:
        return getattr(self, name.replace("-", "_"), None)  # a package has no path


def _find_in_hub_cache(needed: Needed) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    if needed.repository is None:
        return None
    single = len(needed.files) == 1
    asked = ["config.json", *({"model.safetensors"} & {*needed.files})]
    commit = COMMITS.get(needed.repository)
    names = needed.files if single else asked
    found = [try_to_load_from_cache(needed.repository, name, revision=commit) for name in names]
    if not all(isinstance(path, str) for path in found):
        return None
    return Path(str(found[0])) if single else Path(str(found[0])).parent


def _fetch_command(absent: Sequence[Needed]) -> str:
    consent = " --accept-licence" if any(needed.own_licence for needed in absent) else ""
    return f"radflow weights --fetch {' '.join(needed.name for needed in absent)}{consent}"


def weights(weights: Weights, fetch: tuple[str, ...] = (), accept_licence: bool = False) -> None:
    """List what each metric needs, where it is looked for, its hash and licence; fetch what may be fetched.

    Args:
        fetch: Names of weights to download.
        accept_licence: You have read their licence and are entitled to use them.
    """
    for name in fetch:
        print(f"{name}: {fetch_weights(name, weights, accept_licence=accept_licence)}")
    if not fetch:
        print(list_weights(weights))


def list_weights(weights: Weights) -> str:
    lines = [f"weights root: {weights.root} (weights.root, or the environment variable {VARIABLE})", ""]
    for needed in NEEDED.values():
        path, of_hub = weights.find(needed.name), ", the cache of the hub" if needed.command is None else ""
        looked_up = [f"  looked up {needed.key}, {weights.root / needed.path}{of_hub}"] if needed.module is None else []
        lines += [
            f"{needed.name}: {'present: ' + str(path) if path else 'not here'}",
            f"  for       {needed.used_by}",
            *looked_up,
            f"  licence   {needed.licence}",
            f"  SHA-256   {needed.sha256 or 'none published that this project knows'}",
            *([f"  commit    {COMMITS.get(needed.repository, 'the newest')}"] if needed.repository else []),
            *([] if path else [f"  get it    {weights.commands([needed])[0]}"]),
            "",
        ]
    return "\n".join([*lines, "BLEU, ROUGE-L and everything by rules need no weights."])


def fetch_weights(name: str, weights: Weights, *, accept_licence: bool) -> Path:
    """Download one set of weights into the root and check its hash; ValueError if the name is unknown, the licence not
    accepted, the network absent, or the bytes are not those published."""
    if name not in NEEDED:
        raise ValueError(f"expected names of weights among {', '.join(NEEDED)}, got {name!r}")
    needed = NEEDED[name]
    if needed.command is not None:
        raise ValueError(f"{name} is not on the hub; get it by: {weights.commands([needed])[0]}")
    if needed.own_licence and not accept_licence:
        advice = "Read it at its owner, and accept it if you are entitled to use the weights"
        raise ValueError(f"{name} is not ours to pass on; its licence: {needed.licence}. {advice}")
    from huggingface_hub import snapshot_download

    repository, revision = find_commit(needed.repository or _read_encoder_name(weights))
    path = weights.root / needed.path
    try:
        folder = weights.root if len(needed.files) == 1 else path
        snapshot_download(repository, revision=revision, local_dir=folder, allow_patterns=list(needed.files))
    except Exception as error:  # the library raises errors of requests, httpx, its own and of the disk
        wanted = f"{', '.join(needed.files)} of {repository} from the hub"
        advice = f"if there is no network, copy it to {path} or set {needed.key}"
        raise ValueError(f"{name}: could not fetch {wanted} ({in_one_line(error)}); {advice}") from error
    if not path.exists():
        raise ValueError(f"{name}: expected {path} after the download, found none; see {repository} on the hub")
    check_hash(path, needed)
    return path


def _read_encoder_name(weights: Weights) -> str:
    from radflow.rewards.radgraph.archive import read_archive

    return read_archive(weights.find("radgraph"), "radgraph").architecture.encoder


def check_hash(path: Path, needed: Needed) -> None:
    """Raise ValueError if the SHA-256 is known and the file has another one."""
    if needed.sha256 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != needed.sha256:
        raise ValueError(f"{path}: expected SHA-256 {needed.sha256}, got {found}; remove the file and fetch it again")
