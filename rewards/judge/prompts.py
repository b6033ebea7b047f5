"""What the LLM judge is asked, how report text is fenced in the question, and which replies count as an answer."""

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from radflow.chat.forms import Chat

T = TypeVar("T")


@dataclass(frozen=True)
class Prompt(Generic[T]):
    """A question about texts that is answered with a JSON object."""

    version: str
    system: str  # with {code}, the mark of the fence
    titles: tuple[str, ...]  # of the texts that it is about
    schema: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], T]  # the answer in a JSON object; ValueError if it holds none
    again: str  # added after a reply of wrong form

    def key(self, model: str, texts: Sequence[str]) -> str:
        """The key of an answer in the cache: a hash, so that the cache holds no report."""
        return hashlib.sha256(json.dumps([self.version, model, *texts]).encode()).hexdigest()

    def chat(self, texts: Sequence[str], *, again: bool = False) -> Chat:
        """The question about `texts`, one per title; `again` after a reply of wrong form."""
        # A text cannot contain its own hash, so that no report can forge its fence; and the same question is the same
        # bytes each time.
        code = self.key("", texts)[:16]
        fenced = [
            f"<<<{title} {code}\n{defuse(text)}\n<<<END OF {title} {code}"
            for title, text in zip(self.titles, texts, strict=True)
        ]
        user = "\n".join([*fenced, *([self.again] if again else [])])
        return Chat(user, " ".join(texts), self.system.replace("{code}", code), self.schema)

    def parse(self, content: str) -> T:
        """The answer in a reply that is exactly one JSON object; ValueError for other text around it, repeated keys or
        other values."""
        # Pairs show repeated keys, which a dict would hide.
        found = json.loads(content, object_pairs_hook=_without_repeats)
        if not isinstance(found, dict):
            raise ValueError("expected one JSON object")
        return self.read(found)


@dataclass(frozen=True)
class Answer:
    """What the judge said."""

    yes: bool
    reason: str


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("expected each key once")
    return found


def _read_answer(found: Mapping[str, Any]) -> Answer:
    answer, reason = str(found.get("answer")).strip().lower(), found.get("reason")
    if answer not in ("yes", "no"):
        raise ValueError('expected the key "answer", yes or no')
    reason = reason if isinstance(reason, str) else ""
    return Answer(answer == "yes", re.sub("[\ud800-\udfff]", "\ufffd", reason))  # no file can hold half a pair


def defuse(text: str) -> str:
    """`text` with a space after what could open a fence or a chat template's token: <<<, <|im_end|>, </s>, [INST].

    Comparisons such as <5 mm stay as they are.
    """
    return re.sub(r"<(?=[^\s\d=])|\[(?=/?[A-Z_]+\])", r"\g<0> ", text)


_TEXTS = tomllib.loads(Path(__file__).with_name("prompts.toml").read_text(encoding="utf-8"))
_YES_OR_NO = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "answer": {"type": "string", "enum": ["yes", "no"]}},
    "required": ["reason", "answer"],
    "additionalProperties": False,
}


def fenced_prompt(name: str, form: str, schema: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T]) -> Prompt[T]:
    """The prompt of a section of prompts.toml; the section `form` says what is replied."""
    text, reply = _TEXTS[name], _TEXTS[form]
    system = _TEXTS["system"].format(code="{code}", question=text["question"], keys=reply["keys"])
    return Prompt(text["version"], system, tuple(text["titles"]), schema, read, _TEXTS["again"] + reply["again"])


CONSISTENCY, CRITICALITY, CRITICALITY_ACUTE = (
    fenced_prompt(name, "yes_or_no", _YES_OR_NO, _read_answer)
    for name in ("consistency", "criticality", "criticality_acute")
)
