"""JSON to an endpoint and back: time and size are limited, faults are tried again, and no text of a patient or key is
in an error."""

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from radflow.chat.config import EndpointConfig, is_loopback, read_key
from radflow.chat.replies import parse_error, parse_retry_after

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 16 * 2**20  # of a reply
_TRANSIENT = {408, 409, 425, 429, *range(500, 600)}
_NO_QUOTA = "insufficient_quota"  # comes with status 429; waiting does not help
T = TypeVar("T")


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


class Endpoint:
    """Posts to one endpoint, from any number of threads.

    Redirects are not followed: they could lead text and key to another host. Proxies of the environment are not used
    for a local server. ValueError if the key is not set, or httpx or tenacity is not installed.
    """

    def __init__(self, config: EndpointConfig) -> None:
        try:
            import httpx
            import tenacity
        except ImportError as error:
            raise ValueError(f"endpoints need {error.name}; install it with: pip install {error.name}") from error
        assert config.url is not None
        self._config, self._key = config, read_key(config)
        self._url = config.url.rstrip("/").removesuffix("/chat/completions")
        key = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        self._http = httpx.Client(
            headers={"Content-Type": "application/json", "Accept-Encoding": "identity", **key},
            timeout=config.timeout_s,
            follow_redirects=False,
            trust_env=not is_loopback(config.url),
            limits=httpx.Limits(max_connections=config.concurrency),
        )
        self._failures, self._late = httpx.RequestError, httpx.TimeoutException
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
        self._resume_at, self._down = 0.0, False

    def close(self) -> None:
        self._http.close()

    def post(self, path: str, body: Mapping[str, Any], *, private: str = "", text: bool = False) -> Any:
        """What a POST of JSON brings, after retries; TroubleError if there is nothing.

        Args:
            path: after the url of the config.
            private: text of which no word is shown in an error.
            text: the reply may be text, as vLLM's is when it has loaded an adapter; otherwise it is JSON.
        """
        return self.retry(lambda: self.post_once(path, body, private=private, text=text))

    def retry(self, work: Callable[[], T]) -> T:
        """What `work` returns, tried as often as the config allows; a TroubleError says if once more is worth it."""
        return self._retrying(work)

    def post_once(
        self, path: str, body: Mapping[str, Any], *, private: str, public: str = "", text: bool = False
    ) -> Any:
        """As `post`, without retries; words of `public` may be shown though they are in `private`."""
        time.sleep(max(0.0, self._resume_at - time.monotonic()))
        response, came = self._send(path, json.dumps(body).encode())
        try:
            data = json.loads(came)
        except (ValueError, RecursionError):
            data = None
        failed = data.get("error") if isinstance(data, dict) and not data.get("choices") else None
        if failed or not response.is_success:
            raise self._trouble(response, came if data is None else data, private, public)
        self._down = False
        if data is None and not text:
            raise TroubleError("a reply that is no JSON", retry=True)
        return came if data is None else data

    def _send(self, path: str, body: bytes) -> tuple["httpx.Response", str]:
        """The response and its text, within the limits of time and size."""
        limit_s, began, content = self._config.timeout_s, time.monotonic(), bytearray()
        late = TroubleError(f"no reply within {limit_s:g} s", retry=True)
        try:
            with self._http.stream("POST", self._url + path, content=body) as response:
                for piece in response.iter_bytes():
                    content += piece
                    if time.monotonic() - began > limit_s:  # httpx limits each read, not the whole
                        raise late
                    if len(content) > MAX_BYTES:
                        raise TroubleError(f"a reply of more than {MAX_BYTES >> 20} MiB")
        except self._never_sent as error:  # no message of an error is shown: it may quote what was sent
            raise TroubleError(type(error).__name__, retry=True, charged=False) from None
        except self._late:
            raise late from None
        except self._failures as error:
            raise TroubleError(type(error).__name__, retry=True) from None
        return response, self._without_key(content.decode("utf-8-sig", "replace"))

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
