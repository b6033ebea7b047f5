"""What the LLM judge is asked, how report text is fenced in the question, and which replies count as an answer."""

import hashlib
import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """A yes-or-no question about texts."""

    version: str
    question: str
    titles: tuple[str, ...]  # of the texts that it is about


@dataclass(frozen=True)
class Answer:
    """What the judge said."""

    yes: bool
    reason: str


class BadReplyError(ValueError):
    """The judge's reply is not the JSON object that it was asked for."""


_TEXTS = tomllib.loads(Path(__file__).with_name("prompts.toml").read_text(encoding="utf-8"))
CONSISTENCY, CRITICALITY, CRITICALITY_ACUTE = (
    Prompt(entry["version"], entry["question"], tuple(entry["titles"]))
    for entry in (_TEXTS["consistency"], _TEXTS["criticality"], _TEXTS["criticality_acute"])
)
_SCHEMA = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "answer": {"type": "string", "enum": ["yes", "no"]}},
    "required": ["reason", "answer"],
    "additionalProperties": False,
}
# From the strictest to none: a server that refuses one is asked with the next.
RESPONSE_FORMATS: tuple[dict[str, Any] | None, ...] = (
    {"type": "json_schema", "json_schema": {"name": "judgement", "strict": True, "schema": _SCHEMA}},
    {"type": "json_object"},
    None,
)


def messages(prompt: Prompt, texts: Sequence[str], *, again: bool = False) -> list[dict[str, str]]:
    """The chat that asks `prompt` about `texts`, one per title; `again` after a reply of wrong form."""
    # A text cannot contain its own hash, so that no report can forge its fence; and the same question is the same
    # bytes each time.
    code = question_key(prompt, "", texts)[:16]
    fenced = [
        f"<<<{title} {code}\n{defuse(text)}\n<<<END OF {title} {code}"
        for title, text in zip(prompt.titles, texts, strict=True)
    ]
    return [
        {"role": "system", "content": _TEXTS["system"].format(code=code, question=prompt.question)},
        {"role": "user", "content": "\n".join([*fenced, *([_TEXTS["again"]] if again else [])])},
    ]


def defuse(text: str) -> str:
    """`text` with a space after what could open a fence or a chat template's token: <<<, <|im_end|>, </s>, [INST].

    Comparisons such as <5 mm stay as they are.
    """
    return re.sub(r"<(?=[^\s\d=])|\[(?=/?[A-Z_]+\])", r"\g<0> ", text)


def question_key(prompt: Prompt, model: str, texts: Sequence[str]) -> str:
    """The key of an answer in the cache: a hash, so that the cache holds no report."""
    return hashlib.sha256(json.dumps([prompt.version, model, *texts]).encode()).hexdigest()


def parse_answer(content: str) -> Answer:
    """The answer in a reply that is exactly one JSON object, alone or in one Markdown code block; BadReplyError for
    anything else: other text around it, other, missing or repeated keys, other values."""
    block = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n\s*```\s*", content, flags=re.DOTALL)
    try:
        # Pairs show repeated keys, which a dict would hide; a tuple tells an object from a list.
        pairs = json.loads(block[1] if block else content, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise BadReplyError("expected one JSON object") from error
    match sorted(pairs, key=repr) if isinstance(pairs, tuple) else None:
        case [("answer", "yes" | "no" as answer), ("reason", str(reason))] if _writable(reason):
            return Answer(answer == "yes", reason)
    raise BadReplyError('expected the keys "answer" (yes or no) and "reason" (text), each once')


def _writable(text: str) -> bool:
    """False for half a surrogate pair, which JSON can spell and no file can hold."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
