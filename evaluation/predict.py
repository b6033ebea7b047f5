"""`evaluate.py predict`: the report of one study."""

import json
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction, arg


def predict(
    model: str,
    image: UseAppendAction[tuple[Path, ...]],
    prior: UseAppendAction[tuple[Path, ...]] = (),
    indication: str = "",
    comparison: str = "",
    levels: tuple[float, float] | None = None,
    max_new_tokens: int = 256,
    as_json: Annotated[bool, arg(name="json")] = False,
) -> None:
    """Write the report of one study.

    Args:
        model: Qwen-VL checkpoint: a directory or a hub id; or the folder of a run.
        image: An image of the study, frontal first.
        prior: An image of an earlier study.
        indication: Why the examination was made.
        comparison: What it is compared with.
        levels: Grey levels of a 16-bit image shown as black and white; by default its darkest and brightest.
        max_new_tokens: Token limit of the report.
        as_json: Print the report as JSON.
    """
    from radflow.data.studies import Study, load_image
    from radflow.data.windowing import WindowConfig
    from radflow.pipeline import generation

    if not image:
        raise ValueError("expected at least one image, got none")
    window = WindowConfig(levels=levels)
    study = Study(str(image[0]), "", "test", image, "", "", indication, comparison, prior, window=window)
    for source in (*image, *prior):  # before a large model is loaded for nothing
        load_image(source, study_id=study.id, window=window)
    path = generation.find_model(model)
    found = generation.predict(*generation.open_model(path), study, max_new_tokens=max_new_tokens)
    found["model"] = path
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    shown = [found["report"]]
    if found["findings"] or found["impression"]:
        shown = [f"{name.title()}: {found[name] or '-'}" for name in ("findings", "impression")]
    about = [f"Status: {found['status'].replace('_', ' ')}", f"Model: {path}"]
    about.append(f"Training data: {found['training_data']}")
    print("\n\n".join([*shown, "\n".join(about)]))
