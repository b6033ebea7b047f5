"""Requests to an OpenAI-compatible endpoint: what it accepts is learned from what it refuses, and used from then on."""

import json
import random
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from radflow.chat.config import EndpointConfig, is_loopback, read_key
from radflow.chat.replies import Reply, parse_completion, parse_error, parse_retry_after

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 16 * 2**20  # of a reply
MAX_ROOM = 16  # a reply that was cut is asked for again with 4 and with 16 times the tokens
_TRANSIENT = {408, 409, 425, 429, *range(500, 600)}
_REFUSES_FORM = {400, 422, 500, 501}  # some servers fail where they should refuse
_FILTERED = {"content_filter", "content_policy_violation", "invalid_prompt"}  # error codes of filters before the model
_NO_QUOTA = "insufficient_quota"  # comes with status 429; waiting does not help
_FORMATS = ("json_schema", "json_object", None)


@dataclass(frozen=True)
class Chat:
    """One question to a model."""

    user: str | list[dict[str, Any]]  # text, or parts with images
    private: str  # of this text no word is shown in an error
    system: str = ""
    schema: Mapping[str, Any] | None = None  # of the JSON object that is wanted; None: the reply is text


@dataclass(eq=False)
class TroubleError(Exception):
    """A request brought no reply. The message holds no key and no private text."""

    message: str
    _: KW_ONLY
    retry: bool = False  # the same request may succeed later
    status: int | None = None
    code: str = ""
    wait_s: float | None = None  # what the server's Retry-After asks for
    charged: bool = True  # the server may have charged the request

    def __str__(self) -> str:
        return self.message


class Purse(Protocol):
    """Pays for requests: each before it is sent, with the most it can cost."""

    def pay(self, chat: Chat, max_tokens: int) -> None:
        """Raises TroubleError if the budget does not hold it."""

    def settle(self, usage: tuple[int, int]) -> None:
        """The tokens of prompt and answer that the last request cost; not called if that is unknown."""


class _Free:
    def pay(self, chat: Chat, max_tokens: int) -> None: ...

    def settle(self, usage: tuple[int, int]) -> None: ...


@dataclass(frozen=True)
class Form:
    """How a server is asked. What it refuses is given up, one thing after the other."""

    format: str | None = "json_schema"
    limits: tuple[str, ...] = ("max_completion_tokens",)
    system: bool = True
    temperature: bool = True
    room: int = 1  # times the token limit

    def plainer(self, said: str, chat: Chat) -> "Form | None":
        """The form without what the words of a refusal name, or without what is refused most often; None if nothing is
        left to give up."""
        ways: list[tuple[str, Form]] = []
        if chat.schema is not None and self.format is not None:
            plainer = _FORMATS[_FORMATS.index(self.format) + 1]
            ways.append(("format|schema|json|grammar", replace(self, format=plainer)))
        if "max_completion_tokens" in self.limits:
            ways.append(("max_(completion_)?tokens", replace(self, limits=("max_tokens",))))
        if chat.system and self.system:
            ways.append(("system|role|template", replace(self, system=False)))
        if self.temperature:
            ways.append(("temperature", replace(self, temperature=False)))
        named = [form for words, form in ways if re.search(words, said, re.IGNORECASE)]
        return next(iter(named + [form for _, form in ways]), None)


class ChatClient:
    """Asks one endpoint, from any number of threads.

    Redirects are not followed: they could lead text and key to another host. Proxies of the environment are not used
    for a local server. ValueError if the key is not set, or httpx or tenacity is not installed.
    """

    def __init__(self, config: EndpointConfig, *, max_tokens: int = 300, temperature: float | None = 0.0) -> None:
        try:
            import httpx
            import tenacity
        except ImportError as error:
            raise ValueError(f"endpoints need {error.name}; install it with: pip install {error.name}") from error
        assert config.url is not None
        self._config, self._key, self._url = config, read_key(config), config.url.rstrip("/")
        self._url = self._url.removesuffix("/chat/completions")
        self._max_tokens, self._temperature = max_tokens, temperature
        key = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        self._http = httpx.Client(
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity", **key},
            timeout=config.timeout_s,
            follow_redirects=False,
            trust_env=not is_loopback(config.url),
            limits=httpx.Limits(max_connections=config.concurrency),
        )
        self._failures, self._late = (httpx.RequestError, httpx.InvalidURL), httpx.TimeoutException
        never_sent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.LocalProtocolError)
        self._never_sent = (*never_sent, httpx.UnsupportedProtocol, httpx.InvalidURL)
        backoff = {"multiplier": config.backoff_s, "jitter": config.backoff_s, "max": config.backoff_max_s}
        self._backoff = tenacity.wait_exponential_jitter(**backoff)
        self._retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, TroubleError) and error.retry),
            stop=self._is_last,
            wait=self._wait,
            reraise=True,
        )
        self._form = Form()
        self._proven: Form | None = None  # the form of the last reply
        self._first, self._tried = threading.Lock(), False
        self._resume_at, self._down = 0.0, False

    def close(self) -> None:
        self._http.close()

    def complete(self, chat: Chat, purse: Purse | None = None) -> Reply:
        """The reply to a chat; its content may be empty.

        Raises:
            TroubleError: there is none after all retries, or it was not paid for.
        """
        if not self._tried:  # one question learns what the server accepts, the others use it
            with self._first:
                if not self._tried:
                    try:
                        return self._learn(chat, purse or _Free())
                    finally:
                        self._tried = True
        return self._learn(chat, purse or _Free())

    def _learn(self, chat: Chat, purse: Purse) -> Reply:
        form: Form | None = self._form
        while form is not None:
            try:
                reply = self._retrying(self._complete, chat, form, purse)
            except TroubleError as trouble:
                if trouble.code in _FILTERED:
                    return Reply("", refused=True)
                plainer = form.plainer(trouble.message, chat) if trouble.status in _REFUSES_FORM else None
                # What a server accepted before it refuses for what this question holds.
                if plainer is None or form == self._proven or form.room > self._form.room:
                    raise
                form = plainer
            else:
                answered, form = form, self._adapt(form, chat, reply)
                if form is None:
                    self._form = self._proven = answered
        return reply

    def _adapt(self, form: Form, chat: Chat, reply: Reply) -> Form | None:
        """The form to ask again in, if this one brought no proper reply."""
        used, allowed = reply.usage[1] if reply.usage else 0, self._max_tokens * form.room
        if used > allowed and form.limits == ("max_completion_tokens",):  # it was ignored
            return replace(form, limits=("max_completion_tokens", "max_tokens"))
        if reply.cut and form.room < MAX_ROOM and (chat.schema is not None or not reply.content):
            return replace(form, room=4 * form.room)
        silent = not reply.content and not reply.refused and form != self._proven
        return form.plainer("format", chat) if silent and chat.schema is not None and form.format else None

    def _complete(self, chat: Chat, form: Form, purse: Purse) -> Reply:
        """One request in one form."""
        purse.pay(chat, self._max_tokens * form.room)
        try:
            reply = parse_completion(self._post("/chat/completions", self._body(chat, form), chat.private, chat.system))
        except TroubleError as trouble:
            if not trouble.charged:
                purse.settle((0, 0))
            raise
        except ValueError as error:
            raise TroubleError(f"a reply that is {error}", retry=True) from None
        if reply.usage is not None:
            purse.settle(reply.usage)
        return reply

    def _body(self, chat: Chat, form: Form) -> dict[str, Any]:
        messages: list[dict[str, Any]] = [{"role": "user", "content": chat.user}]
        if chat.system and form.system:
            messages.insert(0, {"role": "system", "content": chat.system})
        elif chat.system:
            messages[0]["content"] = f"{chat.system}\n\n{chat.user}"
        body: dict[str, Any] = {"model": self._config.model, "messages": messages, "stream": False}
        body |= dict.fromkeys(form.limits, self._max_tokens * form.room)
        if form.temperature and self._temperature is not None:
            body["temperature"] = self._temperature
        if chat.schema is not None and form.format is not None:
            named = {"name": "reply", "strict": True, "schema": chat.schema}
            schema = {"json_schema": named} if form.format == "json_schema" else {}
            body["response_format"] = {"type": form.format, **schema}
        return body

    def post(self, path: str, body: Mapping[str, Any], *, private: str = "") -> Any:
        """The JSON that a POST of JSON brings, after retries; TroubleError if there is none.

        Args:
            path: after the url of the config.
            private: text of which no word is shown in an error.
        """
        return self._retrying(self._post, path, body, private)

    def _post(self, path: str, body: Mapping[str, Any], private: str, public: str = "") -> Any:
        time.sleep(max(0.0, self._resume_at - time.monotonic()))
        limit_s, began, content = self._config.timeout_s, time.monotonic(), bytearray()
        try:
            with self._http.stream("POST", self._url + path, content=json.dumps(body).encode()) as response:
                for piece in response.iter_bytes():
                    content += piece
                    if time.monotonic() - began > limit_s:  # httpx limits each read, not the whole
                        raise TimeoutError
                    if len(content) > MAX_BYTES:
                        raise TroubleError(f"a reply of more than {MAX_BYTES >> 20} MiB")
        except self._failures as error:  # their messages may quote what was sent
            charged = not isinstance(error, self._never_sent)
            late = charged and isinstance(error, self._late)
            message = f"no reply within {limit_s:g} s" if late else type(error).__name__
            raise TroubleError(message, retry=True, charged=charged) from None
        except TimeoutError:
            raise TroubleError(f"no reply within {limit_s:g} s", retry=True) from None
        text = self._without_key(content.decode("utf-8-sig", "replace"))
        try:
            data = json.loads(text)
        except (ValueError, RecursionError):
            data = None
        failed = data.get("error") if isinstance(data, dict) and not data.get("choices") else None
        if failed or not response.is_success:
            raise self._trouble(response, data if failed or data is not None else text, private, public)
        self._down = False
        if data is None:
            raise TroubleError("a reply that is no JSON", retry=True)
        return data

    def _trouble(self, response: "httpx.Response", data: Any, private: str, public: str) -> TroubleError:
        """What an error says; some hosts send it with status 200."""
        error = parse_error(data, private=private, public=public)
        status = error.status or 502 if response.is_success else response.status_code
        shown = f"status {status} ({error.code})" if error.code else f"status {status}"
        return TroubleError(
            f"{shown}: {error.message}" if error.message else shown,
            retry=status in _TRANSIENT and error.code != _NO_QUOTA,
            status=status,
            code=error.code,
            wait_s=parse_retry_after(response.headers.get("Retry-After")),
            charged=response.is_success,
        )

    def _without_key(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key, "[key]")

    def _is_last(self, state: Any) -> bool:
        """Whether the request is given up; a server that failed one with all its retries gets no more of them until it
        answers."""
        last = state.attempt_number > (0 if self._down else self._config.retries)
        if last and state.outcome.exception().status != 429:  # a busy server works
            self._down = True
        return last

    def _wait(self, state: Any) -> float:
        """Seconds until the next attempt; what a Retry-After asks for holds for every request."""
        trouble = state.outcome.exception()
        if trouble.wait_s is None:
            return self._backoff(state)
        wait = min(trouble.wait_s, self._config.backoff_max_s) + random.uniform(0.5, 1) * self._config.backoff_s
        self._resume_at = max(self._resume_at, time.monotonic() + wait)
        return 0.0
