"""Convert what the owner of a dataset distributes to the manifest that train.py and evaluate.py read.

    python -m data.prepare mimic_cxr --root /data/mimic-cxr-jpg --out mimic.jsonl
    python -m data.prepare iu_xray_kaggle --root /data/iu --out iu.jsonl --check-images

docs/data.md says where to get each dataset, and how its files must lie.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from data.files import write_whole
from data.integrity import RULES, Action, Entry, IntegrityConfig, dropped_places, entry_of, find_problems, pixel_digest
from data.prefetch import prefetched
from data.readers.carotid_us import read_carotid_us
from data.readers.chexpert_plus import read_chexpert_plus
from data.readers.iu_xray import read_iu_rexrank, read_kaggle, read_openi, read_r2gen
from data.readers.manifest import manifest_row, read_native
from data.readers.mimic_cxr import read_mimic_cxr
from data.readers.records import Record, Unread
from data.readers.rexgradient import read_rexgradient
from data.readers.rexrank import read_rexrank
from data.studies import load_image
from data.summary import Summary
from data.views import ViewChoice, arranged, is_frontal

READERS: dict[str, Callable[[Path], Iterator[Record | Unread]]] = {
    "mimic_cxr": read_mimic_cxr,
    "iu_xray_openi": read_openi,
    "iu_xray_r2gen": read_r2gen,
    "iu_xray_kaggle": read_kaggle,
    "iu_xray_rexrank": read_iu_rexrank,
    "rexgradient": read_rexgradient,
    "chexpert_plus": read_chexpert_plus,
    "rexrank": read_rexrank,
    "carotid_us": read_carotid_us,
    "manifest": read_native,
}


@dataclass(frozen=True)
class PrepareConfig:
    """Where a dataset lies and what of it is wanted."""

    root: Path
    """Folder of the dataset, as docs/data.md lays it out."""
    out: Path
    """Manifest to write; a summary with every id goes beside it, to OUT.summary.json."""
    views: ViewChoice = "all"
    """Images of a study: all of them, frontal first; the frontal ones; or the first frontal one."""
    prior: bool = False
    """Add the first frontal image of the patient's preceding study, by date."""
    check_images: bool = False
    """Decode every image, and look for the same pixels in two splits."""
    workers: int = 1
    """Threads that check images."""
    integrity: IntegrityConfig = field(default_factory=IntegrityConfig)
    """What is done with studies that break a rule."""


@dataclass(frozen=True)
class _Prior:
    """What the following study of a patient needs to know of this one."""

    date: str
    id: str
    image: str  # its first frontal image, seen from the root; empty without one


def prepare(read: Callable[[Path], Iterator[Record | Unread]], config: PrepareConfig, *, title: str = "") -> Summary:
    """Read, check and write; of each study only what the rules need is held in memory.

    Raises:
        ValueError: the files are not laid out as published, a fatal rule is broken, or nothing is left; nothing is
            written then.
    """
    root = Path(os.path.abspath(config.root))
    if not root.is_dir():
        raise ValueError(f"expected the folder of the dataset at {config.root}, not there; correct --root")
    config.out.parent.mkdir(parents=True, exist_ok=True)
    unread: list[Unread] = []
    entries: list[Entry] = []
    known: dict[str, list[_Prior]] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", dir=config.out.parent) as drafts:
        for record, (digests, unreadable) in _checked(_wanted(read(root), config, unread), config, title):
            entries.append(entry_of(record, config.integrity, digests=digests, unreadable=unreadable))
            row = manifest_row(record, root)
            drafts.write(json.dumps(row, ensure_ascii=False) + "\n")
            if config.prior and record.date and not unreadable:
                prior = _Prior(record.date, record.study.id, _key_image(row))
                known.setdefault(record.study.patient_id, []).append(prior)
        problems = find_problems(entries, config.integrity)
        dropped = dropped_places(problems, config.integrity)
        summary = Summary.of(entries, problems, dropped, unread, config.integrity)
        summary.refuse_unusable()
        drafts.seek(0)
        kept = (line for place, line in enumerate(drafts) if place not in dropped)
        write_whole(config.out, _with_priors(kept, known) if config.prior else kept)
    write_whole(Path(f"{config.out}.summary.json"), [json.dumps(summary.plain(), indent=1, ensure_ascii=False) + "\n"])
    return summary


def _wanted(items: Iterator[Record | Unread], config: PrepareConfig, unread: list[Unread]) -> Iterator[Record]:
    """Records with the wanted images; what could not be read is put aside."""
    for item in items:
        if isinstance(item, Unread):
            unread.append(item)
        else:
            yield replace(item, study=arranged(item.study, config.views))


def _checked(
    records: Iterator[Record], config: PrepareConfig, title: str
) -> Iterator[tuple[Record, tuple[list[bytes], str]]]:
    """Each record with the digests of its images and what is wrong with them."""
    work = _look if config.check_images else lambda record: ([], "")
    workers = config.workers if config.check_images else 0
    bar = tqdm(records, title, unit="study", disable=None, mininterval=1, leave=False)
    yield from prefetched(bar, work, workers=workers, ahead=4 * workers)


def _look(record: Record) -> tuple[list[bytes], str]:
    digests = []
    try:
        for source in record.study.images:
            image = load_image(source, study_id=record.study.id)
            digests.append(pixel_digest(image.tobytes(), image.size))
    except ValueError as error:
        return [], str(error)
    return digests, ""


def _key_image(row: dict) -> str:
    """The first frontal image of a study, or, where no view is known, its first image; empty without one."""
    views = row.get("views") or ["pa"] * len(row["images"])
    return next((name for name, view in zip(row["images"], views, strict=True) if is_frontal(view)), "")


def _with_priors(lines: Iterable[str], known: dict[str, list[_Prior]]) -> Iterator[str]:
    """Each line with the image of the patient's last study of an earlier date."""
    for priors in known.values():
        priors.sort(key=lambda prior: (prior.date, prior.id))
    for line in lines:
        row = json.loads(line)
        earlier = [prior for prior in known.get(row["patient_id"], ()) if prior.date < row.get("date", "")]
        if earlier and earlier[-1].image:
            row["prior_images"] = [earlier[-1].image]
        yield json.dumps(row, ensure_ascii=False) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=READERS, metavar="NAME", help=f"one of {', '.join(READERS)}")
    parser.add_argument("--root", type=Path, required=True, help="folder of the dataset")
    parser.add_argument(
        "--out", type=Path, required=True, help="manifest to write; its summary goes to OUT.summary.json"
    )
    views = "all images of a study, frontal first (default); the frontal ones; the first frontal one"
    parser.add_argument("--views", choices=get_args(ViewChoice), default="all", help=views)
    parser.add_argument("--prior", action="store_true", help="add the frontal image of the patient's preceding study")
    parser.add_argument("--check-images", action="store_true", help="decode all images; find those in two splits")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads that check images (default: all)")
    rules = parser.add_argument_group("rules", "what is done with studies that break one: keep, drop, or fatal")
    usual = IntegrityConfig()
    for rule in RULES:
        flag = f"--{rule.replace('_', '-')}"
        rules.add_argument(flag, choices=get_args(Action), default=usual.action(rule), help="default: %(default)s")
    rules.add_argument(
        "--min-words", type=int, default=usual.min_words, help="of a short report (default: %(default)s)"
    )
    rules.add_argument("--max-words", type=int, default=usual.max_words, help="of a long report (default: %(default)s)")
    options = vars(parser.parse_args(argv))
    name = options.pop("name")
    try:
        integrity = IntegrityConfig(**{key: options.pop(key) for key in (*RULES, "min_words", "max_words")})
        config = PrepareConfig(**options, integrity=integrity)
        summary = prepare(READERS[name], config, title=name)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{summary.text()}\nwritten to {config.out}, and every id to {config.out}.summary.json")
    if config.out.resolve().parent != config.root.resolve():
        print(f"train with: --data.source manifest --data.manifest {config.out} --data.image-root {config.root}")


if __name__ == "__main__":
    main()
