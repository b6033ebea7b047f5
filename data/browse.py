"""A contact sheet of a manifest: images, sections and labels of some studies on one HTML page, to look before training.

python -m radflow.data.browse manifest.jsonl --count 24 --split train --out sheet.html
"""

import base64
import io
import os
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from tyro.conf import Positional

from radflow.data.files import WORDS, write_whole
from radflow.data.prefetch import prefetch
from radflow.data.readers.manifest import read_manifest
from radflow.data.readers.tables import escape_lines
from radflow.data.studies import ImageSource, Study, load_image

Split = Literal["train", "val", "test"]
MARK = {1: "", 0: "no ", -1: "uncertain: "}
STYLE = (WORDS / "sheet.css").read_text(encoding="utf-8")


def render_sheet(studies: Sequence[Study], *, title: str, side: int) -> str:
    """One HTML page that needs no other file, images of at most `side` pixels. What cannot be decoded shows why."""
    pages = prefetch(studies, lambda study: _render_article(study, side), workers=os.cpu_count() or 1)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>\n{STYLE}</style>\n'
        f"<h1>{escape(title)}</h1>\n" + "\n".join(article for _, article in pages) + "\n</html>\n"
    )


def _render_article(study: Study, side: int) -> str:
    views = study.views or ("",) * len(study.images)
    shown = [*zip(study.images, views, strict=True), *((source, "prior") for source in study.prior_images)]
    figures = "".join(_render_figure(source, view, study.id, side) for source, view in shown)
    sections = "".join(
        f"<h3>{name.title()}</h3><p>{escape(text)}</p>"
        for name in ("indication", "comparison", "findings", "impression")
        if (text := getattr(study, name))
    )
    labels = "".join(f"<span>{MARK[mark]}{escape(name)}</span>" for name, mark in study.labels.items() if mark)
    facts = f"<h2>{escape(study.id)}</h2><p>patient {escape(study.patient_id)}, {escape(study.split)}</p>"
    return f'<article><div>{figures}</div><div>{facts}{sections}<p class="labels">{labels}</p></div></article>'


def _render_figure(source: ImageSource, view: str, study_id: str, side: int) -> str:
    try:
        image = load_image(source, study_id=study_id)
    except ValueError as error:
        return f'<figure><p class="bad">{escape(str(error))}</p></figure>'
    size = image.size
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    pixels = np.asarray(image)
    image.convert("L" if (pixels == pixels[..., :1]).all() else "RGB").save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    caption = f"{view} {size[0]} x {size[1]}".strip()
    shown = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(view)}">'
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"


def main(argv: Sequence[str] | None = None) -> None:
    tyro.cli(_write_sheet, args=argv, prog="python -m radflow.data.browse", description=__doc__)


def _write_sheet(
    manifest: Positional[Path],
    count: int = 24,
    seed: int = 0,
    split: Split | None = None,
    ids: tuple[str, ...] = (),
    image_root: Path | None = None,
    side: int = 320,
    out: Path | None = None,
) -> None:
    """Write the page.

    Args:
        manifest: JSONL manifest of studies.
        count: Studies on the page.
        seed: Random seed of the studies drawn.
        split: Draw from this split only.
        ids: Show these studies instead of drawing some.
        image_root: Folder that image paths start from; the manifest's own by default.
        side: Longest side of an image, in pixels.
        out: Page to write; by default MANIFEST.html.
    """
    out = out or manifest.with_suffix(".html")
    try:
        studies = read_manifest(manifest, image_root=image_root)
        chosen = _choose(studies, ids) if ids else _draw(studies, split, count, seed)
    except ValueError as error:
        sys.exit(f"error: {escape_lines(str(error))}")
    page = render_sheet(chosen, title=f"{manifest.name}: {len(chosen)} of {len(studies)} studies", side=side)
    write_whole(out, [page])
    print(f"written to {out}")


def _choose(studies: Sequence[Study], ids: Sequence[str]) -> list[Study]:
    by_id = {study.id: study for study in studies}
    if missing := [name for name in ids if name not in by_id]:
        raise ValueError(f"expected ids of studies in the manifest, it has no {', '.join(missing[:5])}")
    return [by_id[name] for name in ids]


def _draw(studies: Sequence[Study], split: str | None, count: int, seed: int) -> list[Study]:
    pool = [study for study in studies if split in (None, study.split)]
    if not pool:
        raise ValueError(f"expected a manifest with studies, it has no study in the split {split}")
    order = np.random.default_rng(seed).permutation(len(pool))[:count]
    return [pool[i] for i in sorted(order)]


if __name__ == "__main__":
    main()
