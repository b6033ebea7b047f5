"""IU X-ray in its four forms: Open-i XML, the R2Gen annotation, the Kaggle tables, the ReXrank JSON (docs/data.md).

All four give the same ids (CXR and the number of the report), patients and sections. One report per patient.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from radflow.data.readers.records import SHARES, Record, Texts, Unread, images_inside, official_split, split_of_patient
from radflow.data.readers.rexrank import read_rexrank
from radflow.data.readers.tables import load_object, rows
from radflow.data.sections import SectionParser, parse_sections
from radflow.data.studies import Study

Splits = Mapping[str, str] | None  # by number; None: decided by a hash
Images = tuple[Path, ...]
REPORTS, PROJECTIONS, ANNOTATION = "indiana_reports.csv", "indiana_projections.csv", "annotation.json"


def read_openi(root: Path) -> Iterator[Record | Unread]:
    """Open-i: ecgen-radiology/*.xml and the images of NLMCXR_png. Views need indiana_projections.csv next to them."""
    reports = sorted(root.glob("**/ecgen-radiology/*.xml"), key=lambda path: (len(path.stem), path.stem))
    if not reports:
        raise ValueError(f"expected ecgen-radiology/*.xml in {root}, found none; unpack NLMCXR_reports.tgz there")
    known = _projections(root) if (root / PROJECTIONS).is_file() else {}
    views = {_instance(name): view for names in known.values() for name, view in names}
    splits = _r2gen_splits(root)
    folder = ""
    for path in reports:
        try:
            tree = ElementTree.parse(path).getroot()
        except (OSError, ElementTree.ParseError) as error:
            yield Unread(path.name, "report file unreadable", str(error))
            continue
        uid = tree.find("uId")
        number = _number(path.stem if uid is None else uid.get("id", ""))
        names = [f"{image.get('id')}.png" for image in tree.iter("parentImage")]
        if names and not folder:
            folder = _folder_of(root, names[0], ("NLMCXR_png", "images", "."))
        texts = {node.get("Label", "").lower(): (node.text or "").strip() for node in tree.iter("AbstractText")}
        terms = [" ".join((node.text or "").split()) for node in tree.iter("major")]
        shown = tuple(views.get(_instance(name), "") for name in names)
        ordered = Texts(*(texts.get(name, "") for name in Texts._fields))
        yield _record(number, splits, images_inside(root, names, start=folder), ordered, shown, terms)


def read_kaggle(root: Path) -> Iterator[Record | Unread]:
    """Kaggle (raddar/chest-xrays-indiana-university): the two tables and images/images_normalized."""
    images, splits = _projections(root), _r2gen_splits(root)
    first = next((names[0][0] for names in images.values()), "")
    folder = _folder_of(root, first, ("images/images_normalized", "images_normalized", "images", "."))
    for number, texts, mesh in _kaggle_reports(root):
        names = images.get(number, [])
        paths = images_inside(root, (name for name, _ in names), start=folder)
        yield _record(number, splits, paths, texts, tuple(view for _, view in names), mesh.split(";"))


def read_r2gen(root: Path, parse: SectionParser = parse_sections) -> Iterator[Record | Unread]:
    """R2Gen: annotation.json and images/ID/0.png. Findings only; indiana_reports.csv next to it gives the rest."""
    table = {number: texts for number, texts, _ in _kaggle_reports(root)} if (root / REPORTS).is_file() else {}
    for split, cases in _annotation(root).items():
        for case in cases:
            number = _number(str(case["id"]))
            sections = parse(case["report"])
            plain = sections.status == "missing_findings" and not sections.impression
            texts = table.get(number, Texts.of(sections))
            texts = texts._replace(findings=case["report"].strip() if plain else sections.findings)
            paths = images_inside(root, case["image_path"], start="images")
            yield _record(number, {number: official_split(split)}, paths, texts)


def read_iu_rexrank(root: Path) -> Iterator[Record | Unread]:
    """ReXrank: its JSON files of IU X-ray (ReXRank_IUXray_valid.json, iu_test.json, ...), images in images/."""
    for item in read_rexrank(root):
        if isinstance(item, Record):
            number = _number(item.study.id)
            item = replace(item, study=replace(item.study, id=f"CXR{number}", patient_id=number))
        yield item


def _record(
    number: str, splits: Splits, images: Images, texts: Texts, views: tuple[str, ...] = (), terms: Sequence[str] = ()
) -> Record | Unread:
    if splits is not None and number not in splits:
        return Unread(f"CXR{number}", f"not in the split of {ANNOTATION}")
    split = split_of_patient(number, SHARES) if splits is None else splits[number]
    labels = {term.strip(): 1 for term in terms if term.strip()}
    return Record(Study(f"CXR{number}", number, split, images, *texts, views=views, labels=labels))


def _number(name: str) -> str:
    """CXR2384_IM-0942, CXR2384 or 2384 -> 2384."""
    match = re.match(r"(?:CXR)?(\d+)", name)
    if match is None:
        raise ValueError(f"expected an id of IU X-ray such as CXR2384_IM-0942, got {name!r}")
    return match[1]


def _instance(name: str) -> str:
    """CXR1_1_IM-0001-3001.png of Open-i and 1_IM-0001-3001.dcm.png of Kaggle name the same image: 1_IM-0001-3001."""
    name = name.removesuffix(".png").removesuffix(".dcm")
    return re.sub(r"^CXR(\d+)_(?:\1_)?", r"\1_", name)


def _folder_of(root: Path, name: str, candidates: tuple[str, ...]) -> str:
    """The folder that holds an image; the published one if none does."""
    return next((folder for folder in candidates if (root / folder / name).is_file()), candidates[0])


def _projections(root: Path) -> dict[str, list[tuple[str, str]]]:
    """Number -> (file name, Frontal or Lateral) of each image."""
    found: dict[str, list[tuple[str, str]]] = {}
    for number, name, view in rows(root / PROJECTIONS, ("uid", "filename", "projection")):
        found.setdefault(number, []).append((name, view))
    return found


def _kaggle_reports(root: Path) -> Iterator[tuple[str, Texts, str]]:
    """Number, texts and MeSH headings of each report."""
    for number, mesh, *texts in rows(root / REPORTS, ("uid", "MeSH", *Texts._fields)):
        yield number, Texts(*map(str.strip, texts)), mesh


def _annotation(root: Path) -> dict[str, list[dict[str, Any]]]:
    content, needed = load_object(root / ANNOTATION, list), {"id", "report", "image_path"}
    for split, cases in content.items():
        if not all(isinstance(case, dict) and needed <= case.keys() for case in cases):
            wanted = f"lists of {sorted(needed)} by split"
            raise ValueError(f"{root / ANNOTATION}: expected {wanted}, split {split!r} is something else")
    return content


def _r2gen_splits(root: Path) -> Splits:
    """Number -> split of the R2Gen annotation; None if it was not fetched."""
    if not (root / ANNOTATION).is_file():
        return None
    cases = ((case["id"], split) for split, listed in _annotation(root).items() for case in listed)
    return {_number(str(name)): official_split(split) for name, split in cases}
