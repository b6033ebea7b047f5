"""A contact sheet of a manifest: images, sections and labels of some studies on one HTML page, to look before training.

python -m data.browse manifest.jsonl --count 24 --split train --out sheet.html
"""

import argparse
import base64
import io
import os
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from data.files import write_whole
from data.prefetch import prefetched
from data.readers.manifest import read_manifest
from data.studies import Study, load_image

MARK = {1: "", 0: "no ", -1: "uncertain: "}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; color: #222; background: #fff }
article { border-top: 1px solid #ccc; padding: 1rem 0 }
article { display: grid; grid-template-columns: minmax(16rem, 2fr) 3fr; gap: 1.5rem }
figure { display: inline-block; margin: 0 .5rem .5rem 0 } figcaption { color: #666; font-size: .85em }
h2 { font-size: 1.1rem; margin: 0 } h3 { font-size: .9rem; margin: .8rem 0 0; color: #555 }
p { margin: .1rem 0; white-space: pre-wrap; overflow-wrap: anywhere } .bad { color: #b00020 }
.labels span { background: #eef; border-radius: .3rem; padding: .1rem .4rem; margin: .1rem; display: inline-block }
"""


def contact_sheet(studies: Sequence[Study], *, title: str, side: int) -> str:
    """One HTML page that needs no other file. An image that cannot be decoded shows why; the others are shown.

    Args:
        side: longest side of an image on the page, in pixels.
    """
    pages = prefetched(studies, lambda study: _article(study, side), workers=os.cpu_count() or 1)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>\n'
        f"<h1>{escape(title)}</h1>\n" + "\n".join(article for _, article in pages) + "\n</html>\n"
    )


def _article(study: Study, side: int) -> str:
    views = study.views or ("",) * len(study.images)
    shown = [(source, view) for source, view in zip(study.images, views, strict=True)]
    shown += [(source, "prior") for source in study.prior_images]
    figures = "".join(_figure(source, view, study.id, side) for source, view in shown)
    sections = "".join(
        f"<h3>{name.title()}</h3><p>{escape(text)}</p>"
        for name in ("indication", "comparison", "findings", "impression")
        if (text := getattr(study, name))
    )
    labels = "".join(f"<span>{MARK[mark]}{escape(name)}</span>" for name, mark in study.labels.items() if mark)
    facts = f"<h2>{escape(study.id)}</h2><p>patient {escape(study.patient_id)}, {escape(study.split)}</p>"
    return f'<article><div>{figures}</div><div>{facts}{sections}<p class="labels">{labels}</p></div></article>'


def _figure(source: Path, view: str, study_id: str, side: int) -> str:
    try:
        image = load_image(source, study_id=study_id)
    except ValueError as error:
        return f'<figure><p class="bad">{escape(str(error))}</p></figure>'
    size = image.size
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.convert("L" if _is_grey(image) else "RGB").save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    caption = f"{view} {size[0]} x {size[1]}".strip()
    shown = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(view)}">'
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"


def _is_grey(image) -> bool:
    pixels = np.asarray(image)
    return bool((pixels == pixels[..., :1]).all())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--count", type=int, default=24, help="studies on the page (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="which studies are drawn (default: %(default)s)")
    parser.add_argument("--split", choices=("train", "val", "test"), help="draw from this split only")
    parser.add_argument("--ids", nargs="+", default=[], help="show these studies instead of drawing some")
    parser.add_argument("--image-root", type=Path, help="folder that image paths start from (default: the manifest's)")
    parser.add_argument(
        "--side", type=int, default=320, help="longest side of an image, in pixels (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="page to write (default: MANIFEST.html)")
    args = parser.parse_args(argv)
    out = args.out or args.manifest.with_suffix(".html")
    try:
        studies = read_manifest(args.manifest, image_root=args.image_root)
        chosen = _chosen(studies, args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    page = contact_sheet(chosen, title=f"{args.manifest.name}: {len(chosen)} of {len(studies)} studies", side=args.side)
    write_whole(out, [page])
    print(f"written to {out}")


def _chosen(studies: Sequence[Study], args: argparse.Namespace) -> list[Study]:
    if args.ids:
        by_id = {study.id: study for study in studies}
        if missing := [name for name in args.ids if name not in by_id]:
            raise ValueError(f"expected ids of {args.manifest}, it has no {', '.join(missing[:5])}")
        return [by_id[name] for name in args.ids]
    pool = [study for study in studies if args.split in (None, study.split)]
    if not pool:
        raise ValueError(f"{args.manifest} has no study in the split {args.split}")
    order = np.random.default_rng(args.seed).permutation(len(pool))[: args.count]
    return [pool[i] for i in sorted(order)]


if __name__ == "__main__":
    main()
