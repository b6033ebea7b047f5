"""The model card of an exported model: what it is, what it was trained on, how good it is, what it is not for.

It holds numbers and settings, never text of a study. Whatever a setting holds, it cannot break out of its place.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

TAGS = ("radiology", "report-generation", "reinforcement-learning", "capo", "radflow")
LIMITS = (
    "**Not for clinical use.** This is research software. It is no medical device, nobody has approved it for "
    "diagnosis, and no report of it may reach a patient's record without a radiologist who has read the images.",
    "It can leave out findings, invent findings, and refer to earlier studies that it never saw.",
    "It was trained for the images, the request and the report style above; on others it fails without saying so.",
    "The metrics compare words and labels with one reference report. They do not measure clinical safety.",
    "It repeats what is uneven in its training data: rare findings, patient groups, devices and hospitals.",
    "A model can repeat passages of its training reports. Ask the owner of the data before you publish weights.",
)


@dataclass(frozen=True)
class Card:
    """What a card says."""

    kind: str  # adapter or merged
    stage: str  # sft or rl
    base: str  # hub id or name of the model it starts from; "" for one built from random weights
    terms: Mapping[str, str]  # license keys of the front matter
    rank: int | None  # of the adapter
    request: str  # what the user's turn says beside the images
    pixels: tuple[int, int]  # images are scaled to at least and at most this many
    data: Mapping[str, object]  # title -> source, counts, split
    metrics: str  # Markdown table; "" where the run was not evaluated
    config: str  # YAML
    versions: Mapping[str, object]


def render(card: Card) -> str:
    """Markdown with YAML front matter, as the model hubs read it."""
    parts = [
        f"---\n{front_matter(card)}\n---\n\n# {_title(card)}",
        _opening(card),
        "> " + LIMITS[0],
        "## How to load it\n\n" + _loading(card),
        "## Data\n\n" + "\n".join(f"- {inline(key)}: {inline(value)}" for key, value in card.data.items()),
        "## Held-out metrics\n\n" + (card.metrics.strip() or "The run was not evaluated."),
        "## Training\n\n" + fenced(card.config, "yaml"),
        "Versions: " + ", ".join(f"{inline(key)} {inline(value)}" for key, value in card.versions.items()) + ".",
        "## Limits\n\n" + "\n".join(f"- {line}" for line in LIMITS),
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(card: Card) -> str:
    """YAML of the hub's metadata."""
    hub = is_hub_id(card.base)
    return ModelCardData(
        **card.terms,
        base_model=card.base if hub else None,
        base_model_relation=("adapter" if card.kind == "adapter" else "finetune") if hub else None,
        library_name="peft" if card.kind == "adapter" else "transformers",
        pipeline_tag="image-text-to-text",
        language="en",
        tags=list(TAGS),
    ).to_yaml()


def license_of(base: Path) -> dict[str, str]:
    """License keys of a base model's own card, where its directory holds one that states them."""
    if (base / "README.md").is_file():
        stated = ModelCard.load(base / "README.md").data.to_dict()
        terms = {key: stated[key] for key in ("license", "license_name", "license_link") if stated.get(key)}
        if terms:
            return terms
    return {"license": "other", "license_name": "terms-of-base-model-and-data"}


def is_hub_id(name: str) -> bool:
    """`owner/name`, and no path of this machine."""
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)) and not Path(name).exists()


def inline(value: object) -> str:
    """Any value as plain words of a Markdown line or table cell: no markup, no HTML, no line break."""
    text = "".join(c if c.isprintable() else " " for c in str(value))
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]#|~$!])", r"\\\1", text)


def fenced(text: str, language: str) -> str:
    """A code block that `text` cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def _title(card: Card) -> str:
    method = "CAPO" if card.stage == "rl" else "supervised fine-tuning"
    return f"Radiology reports: {'LoRA adapter' if card.kind == 'adapter' else 'model'} after {method}"


def _opening(card: Card) -> str:
    start = inline(card.base) if card.base else "a small model with random weights"
    steps = "supervised fine-tuning on image-report pairs"
    if card.stage == "rl":
        steps += ", then CAPO (reinforcement learning with a narrower clip range for critical studies)"
    what = "The adapter belongs to exactly this model." if card.kind == "adapter" else "Its adapters are merged."
    return f"Writes the report of a radiological study. It starts from {start}: {steps}. {what} Trained with RadFlow."


def _loading(card: Card) -> str:
    """Python and a server's command line; both decode greedily, on images of the size trained on."""
    base = repr(card.base) if is_hub_id(card.base) else '"BASE"'
    low, high = card.pixels
    if card.kind == "adapter":
        imports = "from peft import PeftModel\n"
        load = f'model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained({base}), "adapter")'
        processor = f"AutoProcessor.from_pretrained({base}, min_pixels={low}, max_pixels={high})"
        served = max(8, 1 << (card.rank - 1).bit_length())  # servers make room for powers of two
        serve = f"vllm serve BASE --enable-lora --max-lora-rank {served} --lora-modules report=adapter"
        serve += f' --mm-processor-kwargs \'{{"min_pixels": {low}, "max_pixels": {high}}}\''
    else:
        imports, load = "", 'model = AutoModelForImageTextToText.from_pretrained("merged")'
        processor, serve = 'AutoProcessor.from_pretrained("merged")', "vllm serve merged"
    code = f"""{imports}from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

{load}
processor = {processor}
content = [{{"type": "image", "path": "image.png"}}, {{"type": "text", "text": {card.request!r}}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
greedy = GenerationConfig.from_pretrained("{card.kind}")
written = model.generate(**inputs, generation_config=greedy)[:, inputs["input_ids"].shape[1] :]
print(processor.batch_decode(written, skip_special_tokens=True)[0])"""
    return f"{fenced(code, 'python')}\n\nWith a server (its requests need `temperature` 0):\n\n{fenced(serve, 'shell')}"
