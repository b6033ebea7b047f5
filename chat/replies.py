"""What a server sends back: the text of a chat completion without thoughts and wrapping, or the words of an error."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

SHOWN = 300  # characters of an error
_MOST_TOKENS = 10**9  # a count beyond it is no count
# The thoughts of a model begin and end with one of these, if its server leaves them in the text.
_THOUGHTS = {f"<{name}>": f"</{name}>" for name in ("think", "thinking", "thought", "reasoning", "seed:think")}
_THOUGHTS |= {"[THINK]": "[/THINK]", "◁think▷": "◁/think▷", "<|channel|>analysis": "<|channel|>final<|message|>"}
_FENCE = re.compile(r"```(?:[A-Za-z]+(?=\s*[\n{]))?((?:(?!```).)*)```", re.DOTALL)
_STOP_TOKENS = re.compile(r"(\s*(<\|[a-z_]+\|>|</s>|<eos>|<end_of_turn>))+\s*\Z")
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,60}")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Reply:
    """What the model wrote."""

    content: str  # without thoughts, code fence and stop tokens
    refused: bool = False  # it, or a filter of its host, declined to answer
    cut: bool = False  # the token limit came before its end
    usage: tuple[int, int] | None = None  # tokens of prompt and answer; None: the server did not say


@dataclass(frozen=True)
class Error:
    """What a server says instead; texts are empty if it says nothing."""

    code: str
    message: str
    status: int | None = None  # of its body


def parse_completion(data: Any) -> Reply:
    """A chat completion, of any of the shapes that servers give it; ValueError if it is none."""
    try:
        choice = data["choices"][0]
        message, ended = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError("no chat completion") from error
    refused = bool(refusal) or ended == "content_filter"
    return Reply(clean(_join(content)), refused, ended == "length", _read_usage(data.get("usage")))


def _join(content: object) -> str:
    """Text, or the texts of a list of parts; thoughts among them are left out."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) and "text" in str(part.get("type")) else part for part in parts]
    return "".join(text for text in texts if isinstance(text, str))


def clean(content: str) -> str:
    """`content` without thoughts, stop tokens, byte order mark and the code fence around it; nothing if its thoughts do
    not end."""
    for opening, closing in _THOUGHTS.items():
        # Some chat templates open the thought in the prompt: everything before its end is a thought.
        content = content.rpartition(closing)[2]
        if content.lstrip("\ufeff \n").startswith(opening):
            return ""
    content = _STOP_TOKENS.sub("", content).strip("\ufeff \t\r\n")
    fenced = _FENCE.fullmatch(content)
    return fenced[1].strip() if fenced else content


def _read_usage(usage: object) -> tuple[int, int] | None:
    match usage:
        case {"prompt_tokens": int(prompt), "completion_tokens": int(answer)}:
            if 0 <= prompt <= _MOST_TOKENS and 0 <= answer <= _MOST_TOKENS:
                return prompt, answer
    return None


def parse_error(data: Any, *, private: str, public: str) -> Error:
    """What an error says, of any of the shapes that servers give it. Servers repeat in a message what they were sent:
    words of `private` that are not in `public` are cut out.

    Args:
        data: the JSON that came, or text that is none.
    """
    error = data.get("error") or data if isinstance(data, dict) else data
    fields = error if isinstance(error, dict) else {"message": error}
    codes = [
        code for code in (fields.get("code"), fields.get("type")) if isinstance(code, str) and _CODE.fullmatch(code)
    ]
    status = next((code for code in (fields.get("code"), fields.get("status")) if type(code) is int), None)
    said = next((fields[name] for name in ("message", "detail", "msg") if fields.get(name)), "")
    message = said if isinstance(said, str) else json.dumps(said)
    if isinstance(fields.get("param"), str) and fields["param"] not in message:
        message = f"{message} ({fields['param']})"
    code, message = (cut_out(text, private, public) for text in ("".join(codes[:1]), message))
    return Error(code, message, status)


def cut_out(message: str, private: str, public: str = "") -> str:
    """`message` in one line of at most `SHOWN` characters, with an ellipsis for words of `private`, and for pieces of
    such words, as a server that quotes cuts them anywhere."""
    secret = {word.casefold() for word in _WORD.findall(private)}
    known = {word.casefold() for word in _WORD.findall(public)}

    def show(match: re.Match[str]) -> str:
        word = match[0].casefold()
        hidden = word in secret or (len(word) > 2 and any(word in one for one in secret))
        return "…" if len(word) > 40 or (hidden and word not in known) else match[0]

    unescaped = re.sub(r"\\+u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), message[: 20 * SHOWN])
    unescaped = re.sub(r"\\+[a-z]", " ", unescaped)
    shown = " ".join(re.sub(r"…(?:\W+…)+", "…", _WORD.sub(show, unescaped)).split())
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]} ..."


def parse_retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait: a number or a date; None if it is neither.

    Source: RFC 9110, section 10.2.3.
    """
    if header is None:
        return None
    if re.fullmatch(r"\s*\d+(\.\d+)?\s*", header):
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
