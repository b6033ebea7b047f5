"""Which studies a run uses: embedded phantoms, or a manifest of real ones."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from radflow.data.header_table import load_headers
from radflow.data.phantoms import make_studies
from radflow.data.prefetch import ImageCache, change_studies, decode_studies
from radflow.data.readers.manifest import read_manifest
from radflow.data.sections import SectionParser
from radflow.data.studies import Study, check_studies
from radflow.data.windowing import WindowConfig


@dataclass(frozen=True)
class DataConfig:
    """Where studies come from."""

    source: Literal["phantoms", "manifest"] = "phantoms"
    """Synthetic studies drawn from the seed, or a JSONL manifest."""
    modality: Literal["chest", "carotid"] = "chest"
    """Kind of phantom."""
    num_train: int = 2400
    """Phantom studies to train on."""
    num_test: int = 300
    """Phantom studies to evaluate on."""
    image_size: int = 112
    """Side of a phantom image, in pixels."""
    manifest: Path | None = None
    """JSONL manifest, one study per line (docs/data.md)."""
    image_root: Path | None = None
    """Folder that the image paths of the manifest start from; the manifest's own folder by default."""
    headers: Path | None = None
    """TOML file with further [[header]] rows for the section parser, as in data/words/headers (docs/data.md)."""
    keep_size: int = 0
    """Scale the images of a manifest down to this longest side and keep them in memory; 0 reads the files each time."""
    window: WindowConfig = field(default_factory=WindowConfig)
    cache_dir: Path | None = None
    """Keep the images scaled to `keep_size` in this folder instead of in memory; later runs find them there."""
    workers: int = 2
    """Threads that fill the cache, and that load the images of the next steps; 0 loads when a step asks."""
    prompts_mb: int = 1024
    """Keep the prompts of all studies, if they fit into this many megabytes: with their image features, or with their
    pixels while the vision tower is trained. 0 builds them each time."""
    group_lengths: bool = False
    """SFT batches hold reports of similar length, which pads less; not together with `sft.balance`."""
    eval_split: str = "test"
    """Split that is held out and evaluated on."""

    def __post_init__(self) -> None:
        if self.source == "manifest" and self.manifest is None:
            wanted = "expected data.manifest with data.source manifest"
            raise ValueError(f"{wanted}, got none; give the path of a JSONL file")
        if self.cache_dir is not None and (self.source != "manifest" or self.keep_size < 1):
            wanted = "expected data.source manifest and data.keep_size of at least 1 with data.cache_dir"
            raise ValueError(f"{wanted}, got {self.source} and {self.keep_size}")
        if min(self.workers, self.keep_size, self.prompts_mb) < 0:
            wanted = "expected data.workers, data.keep_size and data.prompts_mb of at least 0"
            raise ValueError(f"{wanted}, got {self.workers}, {self.keep_size} and {self.prompts_mb}")
        if self.source == "phantoms" and (self.num_train < 2 or self.num_test < 2 or self.image_size < 56):
            wanted = "expected data.num_train and data.num_test of at least 2 and data.image_size of at least 56"
            raise ValueError(f"{wanted}, got {self.num_train}, {self.num_test} and {self.image_size}")


@dataclass(frozen=True)
class Corpus:
    """Studies to train on and studies held out; no patient is in both."""

    train: tuple[Study, ...]
    test: tuple[Study, ...]

    @property
    def fingerprint(self) -> str:
        """Of ids, splits and reports, in order: a position among these studies means nothing among others."""
        digest = hashlib.sha256()
        for study in (*self.train, *self.test):
            digest.update(f"{study.split}\0{study.id}\0{study.report}\0".encode())
        return digest.hexdigest()


def load_corpus(config: DataConfig, *, seed: int) -> Corpus:
    """Read and check every study, images decoded. A ValueError names the studies that are wrong and what to do."""
    load_headers(config.headers)
    if config.manifest is None or config.source == "phantoms":
        counts = {"num_train": config.num_train, "num_val": 0, "num_test": config.num_test}
        studies = make_studies(config.modality, **counts, seed=seed, size=config.image_size)
    else:
        read = read_manifest(config.manifest, image_root=config.image_root, parse=SectionParser(config.headers))
        studies = [replace(study, window=config.window) for study in read]
    check_studies(studies)
    if config.cache_dir is not None:
        cache = ImageCache(config.cache_dir, config.keep_size)
        studies = change_studies(studies, cache.fetch, title="caching images", workers=config.workers)
    elif config.source == "manifest":
        studies = decode_studies(studies, keep_size=config.keep_size)
    train = tuple(s for s in studies if s.split == "train")
    test = tuple(s for s in studies if s.split == config.eval_split)
    if not train or not test:
        found = sorted({s.split for s in studies})
        advice = "give studies a split in the manifest, or choose another data.eval_split"
        raise ValueError(
            f"expected studies in the splits train and {config.eval_split}, got the splits {found}; {advice}"
        )
    return Corpus(train, test)
