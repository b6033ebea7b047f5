"""Convert reports and images to the manifest that train.py and evaluate.py read.

    radflow prepare csv --reports reports.csv --images images --out mine.jsonl
    radflow prepare mimic_cxr --root /data/mimic-cxr-jpg --out mimic.jsonl
    radflow prepare iu_xray_kaggle --root /data/iu --out iu.jsonl --check-images

`csv` reads a table and a folder of your own, the others what the owner of a dataset distributes: docs/data.md says
where to get it, and how its files must be laid out.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm
from tyro.extras import subcommand_cli_from_dict

from radflow.data.files import write_whole
from radflow.data.integrity import Entry, IntegrityConfig, Summary, check_record
from radflow.data.prefetch import prefetch
from radflow.data.readers.carotid_us import read_carotid_us
from radflow.data.readers.chexpert_plus import read_chexpert_plus
from radflow.data.readers.iu_xray import read_iu_rexrank, read_kaggle, read_openi, read_r2gen
from radflow.data.readers.manifest import manifest_records, manifest_row
from radflow.data.readers.mimic_cxr import read_mimic_cxr
from radflow.data.readers.records import Record, Unread
from radflow.data.readers.report_table import ColumnConfig, read_report_table
from radflow.data.readers.rexgradient import read_rexgradient
from radflow.data.readers.rexrank import read_rexrank
from radflow.data.readers.tables import escape_control, escape_lines
from radflow.data.sections import SectionParser
from radflow.data.studies import ViewChoice, arrange_views, is_frontal

PREVIEWED = 3  # studies of a table that are shown
TYRO = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
Priors = dict[str, list[tuple[str, str, str]]]  # patient -> date, id and first frontal image (or "") of studies
READERS: dict[str, Callable[[Path, SectionParser], Iterator[Record | Unread]]] = {
    "mimic_cxr": read_mimic_cxr,
    "iu_xray_openi": lambda root, parse: read_openi(root),
    "iu_xray_r2gen": read_r2gen,
    "iu_xray_kaggle": lambda root, parse: read_kaggle(root),
    "iu_xray_rexrank": lambda root, parse: read_iu_rexrank(root),
    "rexgradient": lambda root, parse: read_rexgradient(root),
    "chexpert_plus": lambda root, parse: read_chexpert_plus(root),
    "rexrank": lambda root, parse: read_rexrank(root),
    "carotid_us": read_carotid_us,
    "manifest": lambda root, parse: manifest_records(root / "manifest.jsonl", parse=parse),
}


@dataclass(frozen=True)
class PrepareConfig:
    """What of a dataset is wanted."""

    headers: Path | None = None
    """TOML file with further headers of reports, as `data.headers` of a run."""
    views: ViewChoice = "all"
    """Images of a study: all of them, frontal first; the frontal ones; or the first frontal one."""
    prior: bool = False
    """Add the first frontal image of the patient's preceding study, by date."""
    check_images: bool = False
    """Decode every image, and look for the same pixels in two splits."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Threads that check images; by default one per processor."""
    integrity: IntegrityConfig = field(default_factory=IntegrityConfig)
    """What is done with studies that break a rule."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"expected workers of at least 0, got {self.workers}")


def prepare(
    items: Iterable[Record | Unread], config: PrepareConfig, *, root: Path, out: Path, title: str = ""
) -> Summary:
    """Check the studies and write the manifest, image paths relative to `root`; only what the rules need is in memory.

    A summary with every id goes to OUT.summary.json.

    Raises ValueError and writes nothing if a fatal rule is broken or no study is left.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    unread: list[Unread] = []
    entries: list[Entry] = []
    priors: Priors = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", dir=out.parent) as drafts:
        for record, entry in _check(items, config, title, unread):
            entries.append(entry)
            row = manifest_row(record, root)
            drafts.write(json.dumps(row, ensure_ascii=False) + "\n")
            if config.prior and record.date and "unreadable_image" not in dict(entry.broken):
                priors.setdefault(entry.patient_id, []).append((record.date, entry.id, _find_key_image(row)))
        summary = Summary.of(entries, unread, config.integrity)
        summary.refuse_unusable()
        drafts.seek(0)
        kept = (line for index, line in enumerate(drafts) if index not in summary.gone)
        write_whole(out, _add_priors(kept, priors) if config.prior else kept)
    write_whole(Path(f"{out}.summary.json"), [json.dumps(summary.plain(), indent=1, ensure_ascii=False) + "\n"])
    return summary


def _check(
    items: Iterable[Record | Unread], config: PrepareConfig, title: str, unread: list[Unread]
) -> Iterator[tuple[Record, Entry]]:
    """Records with the wanted images, checked by threads; what could not be read goes to `unread`."""

    def select() -> Iterator[Record]:
        for item in tqdm(items, title, unit="study", disable=None, mininterval=1, leave=False):
            if isinstance(item, Unread):
                unread.append(item)
            else:
                yield replace(item, study=arrange_views(item.study, config.views))

    def check(record: Record) -> Entry:
        return check_record(record, config.integrity, check_images=config.check_images)

    workers = config.workers if config.check_images else 0
    return prefetch(select(), check, workers=workers, ahead=4 * workers)


def _find_key_image(row: Mapping[str, Any]) -> str:
    """The first frontal image of a study or, if no view is known, its first image; empty without one."""
    views = row.get("views") or ["pa"] * len(row["images"])
    return next((name for name, view in zip(row["images"], views, strict=True) if is_frontal(view)), "")


def _add_priors(lines: Iterable[str], priors: Priors) -> Iterator[str]:
    """Each line with the image of the patient's last study of an earlier date."""
    for line in lines:
        row = json.loads(line)
        earlier = [prior for prior in priors.get(row["patient_id"], ()) if prior[0] < row.get("date", "")]
        if earlier and (image := max(earlier)[2]):
            row["prior_images"] = [image]
        yield json.dumps(row, ensure_ascii=False) + "\n"


def main(words: Sequence[str]) -> None:
    commands: dict[str, Callable[..., None]] = {"csv": _prepare_table}
    commands |= {name: partial(_prepare_dataset, name) for name in READERS}
    subcommand_cli_from_dict(commands, args=words, prog="radflow prepare", description=__doc__, config=TYRO)


def _prepare_dataset(name: str, /, root: Path, out: Path, config: PrepareConfig) -> None:
    """Write the manifest of a dataset.

    Args:
        root: Folder of the dataset, laid out as docs/data.md says.
        out: Manifest to write; a summary with every id goes to OUT.summary.json.
    """
    if not root.is_dir():
        raise ValueError(f"expected the folder of the dataset at {root}, not there; correct the path")
    items = READERS[name](Path(os.path.abspath(root)), SectionParser(config.headers))
    _write(items, config, root, out, name)


def _prepare_table(
    reports: Path, images: Path, config: PrepareConfig, columns: ColumnConfig, out: Path | None = None
) -> None:
    """Write the manifest of a table of reports and a folder of images.

    Args:
        reports: CSV with a header, one row per study or per image; also with semicolons or tabs.
        images: Folder of the images.
        out: Manifest to write, by default next to the table; a summary with every id goes to OUT.summary.json.
    """
    out = out or reports.with_suffix(".jsonl")
    if out.resolve() == reports.resolve():
        raise ValueError(f"expected another file to write than the table {reports}; name it with --out")
    table = read_report_table(reports, images, columns, parse=SectionParser(config.headers))
    print(*map(escape_control, [*table.told, *map(_preview, table.records[:PREVIEWED])]), sep="\n")
    _write(table.records, config, images, out, "csv")


def _preview(item: Record | Unread) -> str:
    """A study in one line."""
    if isinstance(item, Unread):
        return f"  {item.id}: {item.reason}: {item.detail}"
    study = item.study
    names = ", ".join(path.name for path in study.images if isinstance(path, Path)) or "no image"
    texts = " | ".join(f"{text[:40]}..." if len(text) > 40 else text for text in (study.findings, study.impression))
    return f"  {study.id}: patient {study.patient_id}, {study.split}, {names}; Findings and Impression: {texts}"


def _write(items: Iterable[Record | Unread], config: PrepareConfig, root: Path, out: Path, title: str) -> None:
    summary = prepare(items, config, root=Path(os.path.abspath(root)), out=out, title=title)
    print(f"{escape_lines(summary.text())}\nwritten to {out}, and every id to {out}.summary.json")
    if out.resolve().parent != root.resolve():
        print(f"train with: --data.source manifest --data.manifest {out} --data.image-root {root}")
