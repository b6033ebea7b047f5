"""What the metrics need besides this project: where it is looked for, its hash, its licence, and its download."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from rewards.bertscore import BASELINES, BertScoreConfig
from rewards.chexbert import ChexbertConfig
from rewards.radgraph import RadGraphConfig

VARIABLE = "RADFLOW_WEIGHTS"
NAMED_BY_ARCHIVE = "the one that config.json of the RadGraph archive names"


@dataclass(frozen=True)
class Needed:
    """One set of weights."""

    name: str
    used_by: str
    place: str  # under the root
    option: str  # that names it elsewhere
    repository: str  # of the Hugging Face hub
    files: tuple[str, ...]  # of the repository, or patterns of them
    licence: str
    own_licence: bool  # must be accepted by the user before it is fetched
    sha256: str | None = None


NEEDED = {
    one.name: one
    for one in (
        Needed(
            "bertscore", "BERTScore, RadCliQ", "distilroberta-base", "--bertscore-path", "distilroberta-base",
            ("*.json", "merges.txt", "model.safetensors"), "Apache-2.0", False,
        ),
        Needed(
            "bert", "SembScore, CheXbert F1, RadCliQ", "bert-base-uncased", "--chexbert-bert", "bert-base-uncased",
            ("config.json", "vocab.txt", "tokenizer*.json"), "Apache-2.0", False,
        ),
        Needed(
            "chexbert", "SembScore, CheXbert F1, RadCliQ", "chexbert.pth", "--chexbert-path",
            "StanfordAIMI/RRG_scorers", ("chexbert.pth",), "its own: stanfordmlgroup/CheXbert", True,
            "6550703c92d640e1e04d8105a7a185d76ece0f25fcbf033d292785bf22c0fde1",
        ),
        Needed(
            "radgraph", "RadGraph F1, RadCliQ", "radgraph.tar.gz", "--radgraph-path", "StanfordAIMI/RRG_scorers",
            ("radgraph.tar.gz",), "PhysioNet credentialed health data licence (RadGraph v1)", True,
        ),
        Needed(
            "radgraph-encoder", "RadGraph F1, RadCliQ", "radgraph-encoder", "--radgraph-encoder", NAMED_BY_ARCHIVE,
            ("config.json", "vocab.txt", "tokenizer*"), "that of its repository", False,
        ),
    )
}  # fmt: skip
# What a model needs altogether. RadGraph's encoder may also lie in the hub's cache, under the name its config gives.
TOGETHER = {"bertscore": ("bertscore",), "chexbert": ("chexbert", "bert"), "radgraph": ("radgraph",)}


def default_root() -> Path:
    """The weights root: $RADFLOW_WEIGHTS, else radflow/weights in the user's cache folder."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "radflow" / "weights"


@dataclass(frozen=True)
class Weights:
    """Where each set of weights is: as an option says, else under the root, else in the hub's own cache."""

    root: Path
    bertscore: Path | None = None
    chexbert: Path | None = None
    bert: Path | None = None
    radgraph: Path | None = None
    radgraph_encoder: Path | None = None
    device: str = "auto"
    token_budget: int = 2048
    """Tokens a batch; a GPU wants more."""

    def __post_init__(self) -> None:
        for name in NEEDED:
            given = self._given(name)
            if given is not None and not given.exists():
                raise ValueError(f"{NEEDED[name].option} {given}: expected a file or directory, got none; correct it")

    def find(self, name: str) -> Path | None:
        """Path of one set of weights; None where it is not on this machine. Nothing is fetched."""
        if (given := self._given(name)) is not None:
            return given
        needed = NEEDED[name]
        places = [self.root / needed.place]
        if name == "radgraph":
            places = [self.root / "radgraph", *places]  # an unpacked archive
        found = next((place for place in places if place.exists()), None)
        return found or (None if needed.repository == NAMED_BY_ARCHIVE else self._in_hub_cache(needed))

    def present(self, model: str) -> bool:
        """Whether a model can be loaded without a network."""
        return all(self.find(name) is not None for name in TOGETHER[model])

    def how_to_get(self, model: str) -> str:
        """The command that brings what the model lacks."""
        absent = [name for name in TOGETHER[model] if self.find(name) is None]
        consent = " --accept-licence" if any(NEEDED[name].own_licence for name in absent) else ""
        options = " ".join(f"{NEEDED[name].option} PATH" for name in absent)
        return f"evaluate.py weights --fetch {' '.join(absent)}{consent}, or give {options}"

    def bertscore_config(self) -> BertScoreConfig:
        """ReXrank's, whatever the directory is called: another layer or no rescaling would be another metric."""
        return BertScoreConfig(
            path=str(self.find("bertscore")), num_layers=5, baseline=BASELINES["distilroberta-base", 5],
            device=self.device, token_budget=self.token_budget,
        )  # fmt: skip

    def chexbert_config(self) -> ChexbertConfig:
        return ChexbertConfig(
            path=self.find("chexbert"), bert=str(self.find("bert")), device=self.device, token_budget=self.token_budget
        )

    def radgraph_config(self) -> RadGraphConfig:
        tokens = 512 if self.device == "cpu" else self.token_budget
        return RadGraphConfig(
            path=self.find("radgraph"), encoder=self.find("radgraph-encoder"), device=self.device, max_tokens=tokens
        )

    def _given(self, name: str) -> Path | None:
        return getattr(self, name.replace("-", "_"))

    def _in_hub_cache(self, needed: Needed) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        single = len(needed.files) == 1
        asked = ("config.json", "model.safetensors") if needed.name == "bertscore" else ("config.json",)
        found = [try_to_load_from_cache(needed.repository, name) for name in (needed.files if single else asked)]
        if not all(isinstance(path, str) for path in found):
            return None
        return Path(found[0]) if single else Path(found[0]).parent


def listing(weights: Weights) -> str:
    """What each metric needs, as a text: present or not, where it is looked for, hash, licence."""
    lines = [f"weights root: {weights.root} (--weights, or the environment variable {VARIABLE})", ""]
    for needed in NEEDED.values():
        path = weights.find(needed.name)
        lines += [
            f"{needed.name}: {'present: ' + str(path) if path else 'not here'}",
            f"  for       {needed.used_by}",
            f"  looked up {needed.option}, {weights.root / needed.place}, the cache of the hub",
            f"  licence   {needed.licence}",
            f"  SHA-256   {needed.sha256 or 'none published that this project knows'}",
        ]
        if path is None:
            consent = " --accept-licence" if needed.own_licence else ""
            lines.append(f"  get it    evaluate.py weights --fetch {needed.name}{consent}")
        lines.append("")
    return "\n".join([*lines, "BLEU-2, ROUGE-L and everything by rules need no weights."])


def fetch(name: str, weights: Weights, *, accept_licence: bool) -> Path:
    """Download one set of weights into the root and check its hash.

    Raises:
        ValueError: an unknown name, a licence not accepted, no network, or other bytes than published.
    """
    if name not in NEEDED:
        raise ValueError(f"expected --fetch with names among {', '.join(NEEDED)}, got {name!r}")
    needed = NEEDED[name]
    if needed.own_licence and not accept_licence:
        raise ValueError(
            f"{name} is not ours to hand on; its licence: {needed.licence}. Read it at its owner, and fetch with "
            "--accept-licence if you are entitled to use it"
        )
    from huggingface_hub import snapshot_download

    repository = needed.repository if needed.repository != NAMED_BY_ARCHIVE else _encoder_of(weights)
    single = len(needed.files) == 1
    place = weights.root if single else weights.root / needed.place
    try:
        snapshot_download(repository, local_dir=place, allow_patterns=list(needed.files))
    except Exception as error:  # the library raises errors of requests, httpx, its own and of the disk
        raise ValueError(
            f"{name}: could not fetch {', '.join(needed.files)} of {repository} from the hub "
            f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}); where there is no network, "
            f"copy it to {weights.root / needed.place} or name it with {needed.option}"
        ) from error
    path = weights.root / needed.place
    if not path.exists():
        raise ValueError(f"{name}: expected {path} after the download, found none; see {repository} on the hub")
    check_hash(path, needed)
    return path


def _encoder_of(weights: Weights) -> str:
    from rewards.radgraph_archive import read_archive

    return read_archive(weights.find("radgraph"), "radgraph").architecture.encoder


def check_hash(path: Path, needed: Needed) -> None:
    """Refuse a file that is not the published one.

    Raises:
        ValueError: another SHA-256 than the known one.
    """
    if needed.sha256 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != needed.sha256:
        raise ValueError(f"{path}: expected SHA-256 {needed.sha256}, got {found}; remove the file and fetch it again")
