"""One request to an OpenAI-compatible chat endpoint, and what its outcome means."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from radflow.rewards.judge.config import JudgeConfig, is_loopback
from radflow.rewards.judge.prompts import RESPONSE_FORMATS

if TYPE_CHECKING:
    import httpx

_WORTH_A_RETRY = {408, 409, 425, 429, *range(500, 600)}
_REFUSALS = {"content_filter", "content_policy_violation", "invalid_prompt"}  # error codes of filters before the model
_NO_QUOTA = "insufficient_quota"  # comes with status 429; waiting does not help


@dataclass(frozen=True)
class Reply:
    """What the model wrote."""

    content: str
    refused: bool  # it, or a filter of its host, declined to answer
    cost: float | None  # None: the server did not say


@dataclass(eq=False)
class TroubleError(Exception):
    """A request brought no reply. The message holds no text of server, report or key."""

    message: str
    _: KW_ONLY
    retry: bool  # the same request may succeed later
    other_form: bool = False  # the server did not accept the request; it may accept a plainer response format
    busy: bool = False  # the server works, and asks for fewer requests
    wait_s: float | None = None  # what the server's Retry-After asks for
    cost: float | None = 0.0  # None: the server may have charged the request


class ChatClient:
    """Sends chats to the configured endpoint; belongs to one event loop.

    Redirects are not followed: they could lead report and key to another host. Proxies of the environment are
    not used for a local server. ValueError if httpx is not installed.
    """

    def __init__(self, config: JudgeConfig, key: str | None) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ValueError("the LLM judge needs httpx; install it with: pip install httpx") from error
        self._config, self._key = config, key
        headers = {"Content-Type": "application/json", **({} if key is None else {"Authorization": f"Bearer {key}"})}
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=None,
            follow_redirects=False,
            trust_env=not is_loopback(config.url),
            limits=httpx.Limits(max_connections=config.concurrency),
        )
        self._failures = (httpx.RequestError, httpx.InvalidURL)
        self._never_sent = (httpx.ConnectError, httpx.LocalProtocolError, httpx.UnsupportedProtocol, httpx.InvalidURL)

    def max_cost(self, chat: Sequence[Mapping[str, str]]) -> float:
        """The most that asking `chat` can cost, at one token per byte of UTF-8 and 20 per message for its frame."""
        prompt = sum(len(message["content"].encode("utf-8", "surrogatepass")) + 20 for message in chat)
        return self._price(prompt, self._config.max_tokens)

    async def send(self, chat: Sequence[Mapping[str, str]], form: int) -> Reply:
        """The reply to `chat`, asked for in response format number `form`; TroubleError if there is none."""
        config, wanted = self._config, RESPONSE_FORMATS[form]
        body = {
            "model": config.model,
            "messages": list(chat),
            "max_completion_tokens": config.max_tokens,
            **({} if config.temperature is None else {"temperature": config.temperature}),
            **({} if wanted is None else {"response_format": wanted}),
        }
        try:
            async with asyncio.timeout(config.timeout_s):  # httpx limits each read, not the whole
                url = config.url.rstrip("/") + "/chat/completions"
                response = await self._http.post(url, content=json.dumps(body).encode())
        except TimeoutError:
            raise TroubleError(f"no reply within {config.timeout_s:g} s", retry=True, cost=None) from None
        except self._failures as error:  # their messages may quote what was sent
            cost = 0.0 if isinstance(error, self._never_sent) else None
            raise TroubleError(type(error).__name__, retry=True, cost=cost) from None
        if response.is_success:
            return self._read(response)
        return self._read_failure(response)

    async def close(self) -> None:
        await self._http.aclose()

    def _read(self, response: "httpx.Response") -> Reply:
        """A reply with status 200, of the published shape."""
        try:
            data = json.loads(response.content)
            choice = data["choices"][0]
            message, ended = choice["message"], choice.get("finish_reason")
            content, refusal = message.get("content"), message.get("refusal")
        except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
            raise TroubleError("a reply that is no chat completion", retry=True, cost=None) from None
        refused = bool(refusal) or ended == "content_filter"
        # Without content the reply is of wrong form, such as one whose tokens were all spent on thinking.
        return Reply(self.redact(content) if isinstance(content, str) else "", refused, self._cost(data.get("usage")))

    def redact(self, text: str) -> str:
        """`text` without the key, should the server have echoed it."""
        return text if self._key is None else text.replace(self._key, "[key]")

    def _read_failure(self, response: "httpx.Response") -> Reply:
        """A reply with any other status: a refusal, or trouble."""
        status, code = response.status_code, _error_code(response.content)
        if status == 400 and code in _REFUSALS:
            return Reply("", refused=True, cost=0.0)
        raise TroubleError(
            f"status {status} ({self.redact(code)})" if code else f"status {status}",
            retry=status in _WORTH_A_RETRY and code != _NO_QUOTA,
            other_form=status in (400, 422),
            busy=status == 429 and code != _NO_QUOTA,
            wait_s=parse_retry_after(response.headers.get("Retry-After")),
        )

    def _cost(self, usage: object) -> float | None:
        match usage:
            case {"prompt_tokens": int(prompt), "completion_tokens": int(answer)} if prompt >= 0 and answer >= 0:
                return self._price(prompt, answer)
        return None

    def _price(self, prompt_tokens: int, answer_tokens: int) -> float:
        return (prompt_tokens * self._config.input_price + answer_tokens * self._config.output_price) / 1e6


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


def _error_code(content: bytes) -> str | None:
    """The short name of an error. Never its message: some servers repeat there what they were sent."""
    try:
        error = json.loads(content)["error"]
        names = [error.get("code"), error.get("type")]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    short = (name for name in names if isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,60}", name))
    return next(short, None)
