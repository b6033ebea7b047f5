"""Write the studies of a manifest as the input that a published system's own code reads (docs/baselines.md).

    radflow inputs rexrank --manifest studies.jsonl --out rexrank.json
    radflow inputs r2gen   --manifest studies.jsonl --out annotation.json
    radflow inputs radfm   --manifest studies.jsonl --out radfm.csv

What the systems then write names the studies of the manifest again. Paths of images are absolute.
"""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from radflow.data.files import replacing, write_whole
from radflow.data.readers.manifest import read_manifest
from radflow.data.readers.system_outputs import STUDY
from radflow.data.studies import Study, arrange_views


def rexrank_input(studies: Sequence[Study]) -> str:
    """ReXrank's JSON, which the scripts of its submissions read: images, frontal ones first, context, and reference."""
    return json.dumps({study.id: _rexrank_case(study) for study in studies}, indent=1, ensure_ascii=False)


def _rexrank_case(study: Study) -> dict[str, Any]:
    context = {"Indication": study.indication, "Comparison": study.comparison}
    return {
        "image_path": _paths(study),
        "key_image_path": _paths(study)[0],
        "frontal_lateral": list(study.views),
        "context": " ".join(f"{name}: {text}" for name, text in context.items() if text),
        "section_findings": study.findings or None,
        "section_impression": study.impression or None,
        "report": study.report,
        "split": study.split,
    }


def r2gen_input(studies: Sequence[Study]) -> str:
    """R2Gen's annotation, read by R2GenGPT: one list for each split, which it opens all three of."""
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    for study in studies:
        splits[study.split].append({"id": study.id, "report": study.report, "image_path": _paths(study)})
    return json.dumps(splits, indent=1, ensure_ascii=False)


def radfm_input(studies: Sequence[Study]) -> str:
    """RadFM's table of images and references, the first image of each study; the reference is the id instead.

    RadFM shuffles the studies, drops those that fail and writes no id, but it copies the reference.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("image_path", "label"))
    writer.writerows((_paths(study)[0], f"{STUDY}{study.id}") for study in studies)
    return table.getvalue()


FORMS: dict[str, Callable[[Sequence[Study]], str]] = {
    "rexrank": rexrank_input,
    "r2gen": r2gen_input,
    "radfm": radfm_input,
}


def _paths(study: Study) -> list[str]:
    return [os.path.abspath(image) for image in study.images if isinstance(image, Path)]


def write_input(
    form: Positional[Literal["rexrank", "r2gen", "radfm"]],
    manifest: Path,
    out: Path,
    split: Literal["train", "val", "test", "all"] = "test",
    images: Literal["all", "first"] = "all",
    image_root: Path | None = None,
    png: Path | None = None,
) -> None:
    """Write the studies of a manifest as the input of a system; ValueError names what is wrong with the manifest.

    Args:
        form: ReXrank's JSON, R2Gen's annotation (for R2GenGPT), or RadFM's table.
        manifest: Studies, one per line.
        out: File to write.
        split: Studies that are written.
        images: All images of a study, frontal ones first, or the first of these.
        image_root: Folder that paths of images start from; by default that of the manifest.
        png: Folder for copies of the images in 8 bits, named instead of the images. The systems read no DICOM, and of
            16-bit PNG, as ReXGradient has, the lowest bits or white.
    """
    studies = [study for study in read_manifest(manifest, image_root=image_root) if split in (study.split, "all")]
    if not studies:
        raise ValueError(f"{manifest}: expected studies of split {split}, got none; choose another split")
    if twice := [study_id for study_id, count in Counter(study.id for study in studies).items() if count > 1]:
        raise ValueError(f"{manifest}: expected each study once, got {twice[0]} several times; drop the others")
    studies = [_arrange(study, images) for study in studies]
    if png is not None:
        studies = [_with_copies(study, png / f"{number:06}") for number, study in enumerate(studies)]
    write_whole(out, [FORMS[form](studies)])
    print(f"{len(studies):,} studies written to {out}")


def _arrange(study: Study, images: Literal["all", "first"]) -> Study:
    if not study.images:
        raise ValueError(f"study {study.id}: expected an image, got none; drop the study")
    arranged, kept = arrange_views(study, "all"), slice(1 if images == "first" else None)
    return replace(arranged, images=arranged.images[kept], views=arranged.views[kept])


def _with_copies(study: Study, folder: Path) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    copies = tuple(folder / f"{number}.png" for number in range(len(study.images)))
    for source, copy in zip(study.images, copies, strict=True):
        with replacing(copy, "wb") as file:
            study.load(source).save(file, "PNG")
    return replace(study, images=copies)
