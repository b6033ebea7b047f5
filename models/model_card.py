"""The model card of an exported model: what it is, what it was trained on, how good it is, what it is not for.

It holds numbers and settings, never text of a study. No value of a setting can break out of its field.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from huggingface_hub import ModelCard, ModelCardData

TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Card:
    """What a card says."""

    kind: str  # adapter or merged
    stage: str  # sft or rl
    base: str  # hub id with its commit, or name, of the model it starts from; "" for one built from random weights
    terms: Mapping[str, str]  # license keys of the front matter
    rank: int | None  # of the adapter
    request: str  # text of the user's turn
    pixels: tuple[int | None, int | None]  # images are scaled to at least and at most this many
    data: Mapping[str, object]  # title -> source, counts, split
    metrics: str  # Markdown table; "" if the run was not evaluated
    config: str  # YAML
    versions: Mapping[str, object]


def render(card: Card) -> str:
    """Markdown with YAML front matter, as the model hubs read it."""
    method = "CAPO" if card.stage == "rl" else "supervised fine-tuning"
    parts = [
        f"---\n{front_matter(card)}\n---\n\n# Radiology reports: {TEXTS[card.kind]['title']} after {method}",
        _opening(card),
        "> " + TEXTS["limits"][0],
        "## How to load it\n\n" + _loading(card),
        "## Data\n\n" + "\n".join(f"- {inline(key)}: {inline(value)}" for key, value in card.data.items()),
        "## Held-out metrics\n\n" + (card.metrics.strip() or "The run was not evaluated."),
        "## Training\n\n" + fence(card.config, "yaml"),
        "Versions: " + ", ".join(f"{inline(key)} {inline(value)}" for key, value in card.versions.items()) + ".",
        "## Limits\n\n" + "\n".join(f"- {line}" for line in TEXTS["limits"]),
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(card: Card) -> str:
    """YAML of the hub's metadata."""
    base = {"base_model": card.base.partition("@")[0], "base_model_relation": TEXTS[card.kind]["relation"]}
    return ModelCardData(
        **{**card.terms, **(base if is_hub_id(card.base) else {})},  # type: ignore[arg-type]  # the hub's own keys
        library_name=TEXTS[card.kind]["library"],
        pipeline_tag="image-text-to-text",
        language="en",
        tags=TEXTS["tags"],
    ).to_yaml()


def license_of(base: Path) -> dict[str, str]:
    """License keys of a base model's own card, if its directory holds one that states them."""
    if (base / "README.md").is_file():
        stated = ModelCard.load(base / "README.md").data.to_dict()
        terms = {key: stated[key] for key in ("license", "license_name", "license_link") if stated.get(key)}
        if terms:
            return terms
    return {"license": "other", "license_name": "terms-of-base-model-and-data"}


def is_hub_id(name: str) -> bool:
    """`owner/name` or `owner/name@revision`, and no path of this machine."""
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?", name)) and not Path(name).exists()


def hide_folders(name: str) -> str:
    """A hub id as it is, of a path its last part: the folders of a machine are nobody's business."""
    return name if is_hub_id(name) or "/" not in name else Path(name).name


def name_with_commit(name: str, directory: Path) -> str:
    """`owner/name@commit` of a model of the hub, which lies in the hub's cache; of any other the last part of its path.

    Args:
        directory: where `radflow.models.loading.locate` found it.
    """
    if is_hub_id(name) and directory.parent.name == "snapshots":
        return f"{name.partition('@')[0]}@{directory.name}"
    return hide_folders(name)


def inline(value: object) -> str:
    """Any value as plain words of a Markdown line or table cell: no markup, no HTML, no line break."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]#|~$!])", r"\\\1", text)


def fence(text: str, language: str) -> str:
    """A code block that `text` cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text.strip()}\n{marks}"


def _opening(card: Card) -> str:
    start = inline(card.base) if card.base else "a small model with random weights"
    steps = "supervised fine-tuning on image-report pairs"
    if card.stage == "rl":
        steps += ", then CAPO (reinforcement learning with a narrower clip range for critical studies)"
    note = TEXTS[card.kind]["weights"]
    return f"Writes the report of a radiological study. It starts from {start}: {steps}. {note} Trained with RadFlow."


def _loading(card: Card) -> str:
    """Python and a server's command line; both decode greedily, on images of the size trained on."""
    name, _, revision = card.base.partition("@")
    of_hub = repr(name) + (f", revision={revision!r}" if revision else "")
    values = {
        "kind": card.kind,
        "base": of_hub if is_hub_id(card.base) else '"BASE"',
        "low": card.pixels[0],
        "high": card.pixels[1],
        "rank": max(8, 1 << ((card.rank or 1) - 1).bit_length()),  # servers make room for powers of two
        "request": repr(card.request),
    }
    code = Template(TEXTS[card.kind]["load"] + TEXTS["generate"]).substitute(values)
    serve = Template(TEXTS[card.kind]["serve"]).substitute(values)
    return f"{fence(code, 'python')}\n\nWith a server (its requests need `temperature` 0):\n\n{fence(serve, 'shell')}"
