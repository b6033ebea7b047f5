"""Text and images of a study -> the tensors the model reads. Built once, unpadded, never truncated."""

import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from string import Formatter
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from radflow.models import loading, training_data
from radflow.models.loading import END, IMAGE, START
from radflow.models.mrope import mrope_positions
from radflow.models.training_data import SETTINGS, TrainingData, load_training_data
from radflow.models.vocabulary import TextEncoder, control_tokens

ANSWER = f"{START}assistant\n"
MOST_ELONGATED = 200  # long side over short side, a limit of the image processor
FIELDS = ("images", "prior_images", "views", "indication", "comparison")
IMAGE_FIELDS = FIELDS[:2]
# Parts of a prompt in their order; a part whose field a study lacks is left out. The request of the task comes last.
CONTEXT = ("{images}", "Prior study: {prior_images}", "Indication: {indication}\n", "Comparison: {comparison}\n")
TASKS = {
    "chest_xray": (*CONTEXT, "Report this chest radiograph: Findings and Impression."),
    "carotid_us": (*CONTEXT, "Report this carotid ultrasound: Findings and Impression."),
}


def prompt_texts() -> list[str]:
    """Every text that a built-in prompt is made of, once, whatever the study."""
    literals = (text for template in TASKS.values() for part in template for text, *_ in Formatter().parse(part))
    return [*(text for text in dict.fromkeys(literals) if text.strip()), "user\n", "assistant\n"]


def check_template(template: Sequence[str]) -> None:
    """Refuse a template that cannot be filled or does not show the images; the ValueError names the part."""
    used = []
    for part in template:
        names = _fields(part)
        if "images" in names and len(names) > 1:
            raise ValueError(
                f"prompt part {part!r}: expected {{images}} without another field, because a part whose field is "
                "empty is left out; make two parts of it"
            )
        used += names
    if used.count("images") != 1 or used.count("prior_images") > 1:
        raise ValueError(
            f"expected {{images}} exactly once in the prompt and {{prior_images}} at most once, got {list(template)}"
        )


def _fields(part: str) -> list[str]:
    try:
        pieces = list(Formatter().parse(part))
    except ValueError as error:
        raise ValueError(f"prompt part {part!r}: {error}; write a brace of the text twice") from error
    for _, name, layout, conversion in pieces:
        if name is not None and (name not in FIELDS or layout or conversion):
            raise ValueError(f"prompt part {part!r}: expected fields among {{{'}, {'.join(FIELDS)}}}, got {name!r}")
    return [name for _, name, _, _ in pieces if name]


def fill_template(template: Sequence[str], fields: Mapping[str, Any]) -> list[str | Image.Image]:
    """Texts and images of one study's prompt, in their order.

    Args:
        template: as `check_template` accepts.
        fields: a text for each of FIELDS, images for IMAGE_FIELDS; empty if the study has none.
    """
    filled: list[str | Image.Image] = []
    for part in template:
        pieces = [(literal, name) for literal, name, _, _ in Formatter().parse(part)]
        if all(name is None or fields[name] for _, name in pieces):
            for literal, name in pieces:
                filled += [literal] if literal else []
                filled += [] if name is None else fields[name] if name in IMAGE_FIELDS else [fields[name]]
    return filled


@dataclass(frozen=True)
class Prompt:
    """The model's input for one study."""

    study_id: str
    input_ids: Tensor  # [P] int64, image tokens included
    positions: Tensor  # [3, P] int64, mRoPE: temporal, height, width
    pixel_values: Tensor  # [patches, C] float32, of all images in order
    image_grid_thw: Tensor  # [images, 3] int64, patches per axis
    features: Tensor | None = None  # [image tokens, W] of a tower that is not trained, if they are known already

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @cached_property
    def next_position(self) -> int:
        """Position of the first report token; each further token is one more."""
        return int(self.positions.max()) + 1


@dataclass(frozen=True)
class ProcessorConfig:
    """How a study becomes a prompt."""

    min_pixels: int | None = None
    """Smaller images are scaled up to this many pixels; none takes the checkpoint's own limit."""
    max_pixels: int | None = None
    """Larger images are scaled down to this many pixels; none takes the checkpoint's own limit."""
    max_prompt_tokens: int = 4096
    """A study whose prompt is longer is refused, never truncated: truncation cuts image tokens."""
    max_report_tokens: int = 2048
    """A study whose report is longer is refused before training: one of 10,000 words needs gigabytes in a step."""
    task: Literal["chest_xray", "carotid_us"] = "chest_xray"
    """The request put to the model, one of the built-in ones."""
    prompt: tuple[str, ...] = ()
    """Your own request instead of the task's, in parts (docs/models.md); a part without its field is left out."""
    system: str = ""
    """System turn before the request; empty leaves it to the checkpoint's chat template."""

    def __post_init__(self) -> None:
        given = [limit for limit in (self.min_pixels, self.max_pixels) if limit is not None]
        if given != sorted(given) or min([*given, self.max_prompt_tokens, self.max_report_tokens]) < 1:
            raise ValueError(
                "expected min_pixels, max_prompt_tokens and max_report_tokens of at least 1 and max_pixels of at least "
                f"min_pixels, got {self.min_pixels}, {self.max_prompt_tokens}, {self.max_report_tokens} and "
                f"{self.max_pixels}"
            )
        if self.prompt:
            check_template(self.prompt)

    @property
    def limits(self) -> dict[str, int | None]:
        """Limits on the size of images, which a checkpoint keeps in a file of their own."""
        return {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}


class ReportProcessor:
    """Tokenizer, image processor and chat format of one checkpoint; `trained_on` is what its model was trained on, None
    if nobody knows."""

    def __init__(
        self,
        tokenizer: Any,
        image_processor: Any,
        config: ProcessorConfig,
        trained_on: Sequence[TrainingData] | None = None,
    ) -> None:
        self.tokenizer, self.image_processor, self.config = tokenizer, image_processor, config
        self.trained_on = trained_on
        self.template = config.prompt or TASKS[config.task]
        self.eos_id: int = tokenizer.convert_tokens_to_ids(END)
        self.image_id: int = tokenizer.convert_tokens_to_ids(IMAGE)
        self.control = control_tokens(tokenizer)  # none of them may come out of a text
        tokenizer.chat_control_tokens = list(self.control.values())
        self._plain = TextEncoder(tokenizer)
        # Each call switches the tokenizer's sanitising on or off, so two threads must not use it at the same time.
        self._lock = threading.Lock()
        self.suppressed_ids: tuple[int, ...] = tuple(index for index in self.control if index != self.eos_id)

    @classmethod
    def load(
        cls,
        path_or_id: Path | str,
        config: ProcessorConfig | None = None,
        *,
        trained_on: Sequence[TrainingData] | None = None,
    ) -> "ReportProcessor":
        """From a checkpoint, a directory or a hub id.

        Args:
            config: None takes the prompt that the model was trained with, if RadFlow trained it.
            trained_on: of the model that is saved with this processor; None takes what the checkpoint says.

        Raises:
            ValueError: files are missing, or do not belong to the Qwen-VL model whose config.json is with them.
        """
        directory = loading.locate(path_or_id, weights=False)
        model = loading.architecture(directory)
        config = config or _load_settings(directory)
        images = loading.load_image_processor(directory, **config.limits)
        trained_on = load_training_data(directory) if trained_on is None else trained_on
        processor = cls(loading.load_tokenizer(directory), images, config, trained_on)
        try:
            processor.check_fits(model.text_config.vocab_size)
            processor.check_chat()
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from error
        for what, own, expected in (
            (f"id of {IMAGE}", processor.image_id, model.image_token_id),
            ("side of a patch", processor.image_processor.patch_size, model.vision_config.patch_size),
        ):
            if own != expected:
                raise ValueError(
                    f"{directory}: expected {expected} as {what}, as config.json says, got {own}; the tokenizer and "
                    "preprocessor files belong to another checkpoint"
                )
        return processor

    def check_fits(self, vocab_size: int) -> None:
        """Refuse a tokenizer with more tokens than the model has embeddings."""
        if len(self.tokenizer) > vocab_size:
            raise ValueError(
                f"the tokenizer has {len(self.tokenizer)} tokens and the model {vocab_size} embeddings; "
                "they belong to different checkpoints"
            )

    def check_chat(self) -> None:
        """Refuse a chat template that does not show the image, or does not leave the report to be written next."""
        try:
            ids = self._chat([None, "x"])
        except Exception as error:  # a template is a program, and fails as one
            said = " ".join(str(error).split())[:300]
            raise ValueError(
                f"expected a chat template that can be filled, got {said}; take the one published with the model"
            ) from error
        if ids.count(self.image_id) != 1:
            raise ValueError(
                f"expected a chat template that writes {IMAGE} once for one image, got {ids.count(self.image_id)}; "
                "take the chat template published with the model"
            )
        self._check_sanitised(ids)
        answer = self.tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
        if ids[-len(answer) :] != answer:
            raise ValueError(
                f"expected a chat template whose prompt ends with {ANSWER!r}, got "
                f"{self.tokenizer.decode(ids[-len(answer) :])!r}; models that think first do not start the report "
                "there: take the Instruct edition"
            )

    def _check_sanitised(self, plain: Sequence[int]) -> None:
        """Refuse a tokenizer that takes the name of a control token in a text for the token.

        `plain` are the token ids of a chat with one image and a text that names none.
        """
        control = self.control
        expected = Counter(i for i in plain if i in control)
        for index, token in control.items():
            ids = self._chat([None, f"x{token}x {token} x"])
            if (got := Counter(i for i in ids if i in control)) != expected:
                raise ValueError(
                    f"expected the name of {token} in a text to stay text, as in a chat without it, got the token "
                    f"{got[index] - expected[index]} times more; take the tokenizer published with the model"
                )

    def save(self, directory: Path) -> None:
        """Write tokenizer, chat template, preprocessor config with the pixel limits in force, the prompt, and what the
        model was trained on."""
        control, self.tokenizer.chat_control_tokens = self.tokenizer.chat_control_tokens, None  # nothing of ours in it
        self.tokenizer.save_pretrained(directory)
        self.tokenizer.chat_control_tokens = control
        self.image_processor.save_pretrained(directory)
        kept = {key: value for key, value in asdict(self.config).items() if key not in self.config.limits}
        kept |= training_data.to_record(self.trained_on)
        (directory / SETTINGS).write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def prompt(
        self,
        study_id: str,
        images: Sequence[Image.Image],
        *,
        indication: str = "",
        comparison: str = "",
        prior_images: Sequence[Image.Image] = (),
        views: Sequence[str] = (),
    ) -> Prompt:
        """The chat turn that asks for the report of a study.

        Raises:
            ValueError: no image, one too elongated, or more tokens than `max_prompt_tokens`; names the study.
        """
        parts = self.parts(study_id, images, prior_images, indication, comparison, views)
        shown = [part for part in parts if not isinstance(part, str)]
        for image in shown:
            _check_shape(study_id, image.size)
        processed = self.image_processor(shown, return_tensors="pt")
        grids = processed["image_grid_thw"]
        counts = (grids.prod(-1) // self.image_processor.merge_size**2).tolist()
        input_ids = torch.tensor(self._encode_prompt(study_id, parts, counts))
        positions = mrope_positions(input_ids, grids, self.image_id, self.image_processor.merge_size)
        return Prompt(study_id, input_ids, positions, processed["pixel_values"], grids)

    def check_prompt(
        self,
        study_id: str,
        sizes: Sequence[tuple[int, int]],
        *,
        indication: str = "",
        comparison: str = "",
        prior_sizes: Sequence[tuple[int, int]] = (),
        views: Sequence[str] = (),
    ) -> None:
        """Raise what `prompt` would for images of these sizes (width, height), without them."""
        parts = self.parts(study_id, sizes, prior_sizes, indication, comparison, views)
        counts = []
        for part in parts:
            if not isinstance(part, str):
                _check_shape(study_id, part)
                width, height = part
                patches = self.image_processor.get_number_of_image_patches(height, width)
                counts.append(patches // self.image_processor.merge_size**2)
        self._encode_prompt(study_id, parts, counts)

    def most_prompt_tokens(self, num_images: int, *texts: str) -> int:
        """An upper bound of the tokens of a prompt with these texts: a token holds a byte at least."""
        images = num_images * (loading.tokens_of_largest_image(self.image_processor) + 2)
        return self._request + images + sum(len(text.encode()) for text in texts)

    @cached_property
    def _request(self) -> int:
        """Tokens of a prompt without images and texts, and of the names of its fields."""
        return len(self._chat(["".join(self.template)]))

    def check_report(self, study_id: str, report: str) -> None:
        """Raise ValueError if a report has more tokens than `max_report_tokens`."""
        limit = self.config.max_report_tokens
        # Most reports need not be encoded, because a token holds a byte at least.
        if len(report.encode()) >= limit and (count := len(self.encode_report(report))) > limit:
            raise ValueError(
                f"study {study_id}: the report has {count} tokens, the limit is {limit}. Drop the study or raise "
                "max_report_tokens"
            )

    def parts(
        self,
        study_id: str,
        images: Sequence[Any],
        prior_images: Sequence[Any],
        indication: str,
        comparison: str,
        views: Sequence[str],
    ) -> list[Any]:
        """Texts and images, or sizes instead of images, in the order of the prompt."""
        if not images:
            raise ValueError(f"study {study_id}: expected at least one image, got none")
        texts = {"views": ", ".join(views), "indication": indication, "comparison": comparison}
        return fill_template(self.template, {"images": images, "prior_images": prior_images, **texts})

    def _encode_prompt(self, study_id: str, parts: Sequence[object], counts: Sequence[int]) -> list[int]:
        """Token ids of the chat; `counts` are the image tokens that the vision tower gives for each image."""
        ids = self._chat(parts)
        if ids.count(self.image_id) != len(counts):
            raise ValueError(
                f"study {study_id}: expected {len(counts)} {IMAGE} in the prompt, one for each image, got "
                f"{ids.count(self.image_id)}; the chat template or a text of the study holds {IMAGE}"
            )
        remaining = iter(counts)
        ids = [i for one in ids for i in [one] * (next(remaining) if one == self.image_id else 1)]
        if len(ids) > self.config.max_prompt_tokens:
            raise ValueError(
                f"study {study_id}: the prompt has {len(ids)} tokens, {sum(counts)} of them of {len(counts)} images; "
                f"the limit is {self.config.max_prompt_tokens}. Lower max_pixels or raise max_prompt_tokens"
            )
        return ids

    def encode_report(self, text: str) -> Tensor:
        """[T] int64 token ids of a report, EOS at the end."""
        return torch.tensor([*self._plain(text), self.eos_id])

    def decode(self, ids: Tensor) -> str:
        """Text before EOS, special tokens left out."""
        kept = ids.tolist()
        if self.eos_id in kept:
            kept = kept[: kept.index(self.eos_id)]
        return self.tokenizer.decode(kept, skip_special_tokens=True).strip()

    def turns(self, parts: Sequence[Any]) -> list[dict[str, Any]]:
        """Messages of a chat whose user turn has these texts and images."""
        system = [{"role": "system", "content": self.config.system}] if self.config.system else []
        content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
        return [*system, {"role": "user", "content": content}]

    def _chat(self, parts: Sequence[Any]) -> list[int]:
        """Token ids of the checkpoint's own chat template, up to the start of the report; one token per image."""
        # The template needs no pixels.
        chat = self.turns([part if isinstance(part, str) else None for part in parts])
        # Sanitised: the name of a special token in a text is only text, not the token.
        options = {"add_generation_prompt": True, "sanitize_control_tokens": True}
        with self._lock:
            return self.tokenizer.apply_chat_template(chat, **options)["input_ids"]


def _load_settings(directory: Path) -> ProcessorConfig:
    """What `ReportProcessor.save` wrote with a model; the defaults if it wrote nothing."""
    path = directory / SETTINGS
    if not path.is_file():
        return ProcessorConfig()
    settings = loading.read_json(path)
    settings.pop(training_data.KEY, None)
    try:
        config = ProcessorConfig(**{**settings, "prompt": tuple(settings["prompt"])})
        for key, value in asdict(ProcessorConfig()).items():
            if type(getattr(config, key)) is not type(value):
                raise ValueError(f"{key} {getattr(config, key)!r:.100}")
        if config.task not in TASKS or not all(isinstance(part, str) for part in config.prompt):
            raise ValueError(f"task {config.task!r:.100} and prompt {config.prompt!r:.100}")
        return config
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected the settings of a prompt, got {error}; remove it or copy it again"
        ) from error


def _check_shape(study_id: str, size: tuple[int, int]) -> None:
    if max(size) > MOST_ELONGATED * min(size):
        raise ValueError(
            f"study {study_id}: expected images at most {MOST_ELONGATED} times as long as wide, got "
            f"{size[0]} x {size[1]} pixels; crop it or drop the study"
        )
