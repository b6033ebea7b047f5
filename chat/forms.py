"""A question to a served model, and the forms in which servers accept it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from radflow.chat.replies import Reply

# How the form of a reply is asked for: OpenAI's way, that of llama.cpp and others, JSON of any form, words alone.
_FORMATS = ("json_schema", "schema", "json_object", None)
MAX_ROOM = 16  # a reply that was cut is asked for again with 4 and with 16 times the tokens
_NEW, _OLD = "max_completion_tokens", "max_tokens"  # names of the token limit


@dataclass(frozen=True)
class Chat:
    """One question to a model."""

    user: str | list[dict[str, Any]]  # text, or parts with images
    private: str  # of this text no word is shown in an error
    system: str = ""
    schema: Mapping[str, Any] | None = None  # of the JSON object that is wanted; None: the reply is text


@dataclass(frozen=True)
class Form:
    """How a server is asked. What it refuses is given up, one thing after the other."""

    format: str | None = "json_schema"
    limits: tuple[str, ...] = (_NEW, _OLD)  # some servers ignore the one, some the other
    system: bool = True
    parts: bool = False  # a text is sent as a list of one part
    temperature: bool = True
    room: int = 1  # times the token limit

    def plainer(self, said: str, chat: Chat, *, only_named: bool = False) -> "Form | None":
        """The form without what the words of a refusal name, or else without what is refused most often; None if there
        is nothing to give up, or with `only_named` if they name nothing."""
        ways: list[tuple[str, Form]] = []
        if chat.schema is not None and self.format is not None:
            plainer = _FORMATS[_FORMATS.index(self.format) + 1]
            ways.append(("format|schema|json|grammar", replace(self, format=plainer)))
        if _NEW in self.limits:
            ways.append(("max_(completion_)?tokens", replace(self, limits=(_NEW,) if _OLD in self.limits else (_OLD,))))
        if chat.system and self.system:
            ways.append((r"system.{0,20}(role|message|prompt)|\broles?\b|template", replace(self, system=False)))
        if self.temperature:
            ways.append(("temperature", replace(self, temperature=False)))
        named = [form for words, form in ways if re.search(words, said, re.IGNORECASE)]
        if re.search(r"content.*\b(list|array)\b", said, re.IGNORECASE) and not self.parts:  # few servers want it
            named.insert(0, replace(self, parts=True))
        others = [] if only_named else [form for _, form in ways]
        return next(iter(named + others), None)

    def adapted(self, chat: Chat, reply: Reply, *, max_tokens: int, proven: bool) -> "Form | None":
        """The form to ask again in, if this one brought no proper reply."""
        used = reply.usage[1] if reply.usage else 0
        if used > max_tokens * self.room and self.limits == (_NEW,):  # it was ignored
            return replace(self, limits=(_OLD,))
        if reply.cut and self.room < MAX_ROOM and (chat.schema is not None or not reply.content):
            return replace(self, room=4 * self.room)
        silent = not reply.content and not reply.refused and not proven
        return self.plainer("format", chat) if silent and chat.schema is not None and self.format else None

    def body(self, chat: Chat, *, model: str | None, max_tokens: int, temperature: float | None) -> dict[str, Any]:
        """The request."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": chat.user}]
        if chat.system and self.system:
            messages.insert(0, {"role": "system", "content": chat.system})
        elif chat.system:
            messages[0]["content"] = f"{chat.system}\n\n{chat.user}"
        for message in messages:
            if self.parts and isinstance(message["content"], str):
                message["content"] = [{"type": "text", "text": message["content"]}]
        body: dict[str, Any] = {"model": model, "messages": messages, "stream": False}
        body |= dict.fromkeys(self.limits, max_tokens * self.room)
        if self.temperature and temperature is not None:
            body["temperature"] = temperature
        if chat.schema is not None and self.format is not None:
            named = {"name": "reply", "strict": True, "schema": chat.schema}
            body["response_format"] = {
                "json_schema": {"type": "json_schema", "json_schema": named},
                "schema": {"type": "json_object", "schema": chat.schema},
                "json_object": {"type": "json_object"},
            }[self.format]
        return body
