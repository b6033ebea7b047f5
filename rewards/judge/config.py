"""Settings of the LLM judge: endpoint, retries and budget."""

import ipaddress
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

# Nothing that two URL parsers could read differently: no user name, backslash, query or fragment.
_URL = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY = re.compile(r"[!-~]{5,}")  # printable ASCII: what a header can carry


@dataclass(frozen=True)
class JudgeConfig:
    """An OpenAI-compatible endpoint that answers yes or no about reports."""

    url: str = "http://127.0.0.1:8000/v1"
    """Of the API; /chat/completions is appended. Only this machine, unless allow_external is set."""
    model: str | None = None
    """Name of the model, as the endpoint knows it; answers are cached under it. Needed if the judge is used."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself is never written anywhere."""
    allow_external: bool = False
    """Report texts may leave this machine: needed for every url that is not a loopback address."""
    cache: Path = Path("runs/judge.sqlite")
    """SQLite file of answers and spending, shared by all runs and processes of this machine; on a local disk."""
    concurrency: int = 8
    """Questions that one process asks at a time."""
    timeout_s: float = 60.0
    """Seconds that one request may take altogether."""
    retries: int = 4
    """Further requests of a question after faults of the server, besides one after a reply of wrong form."""
    backoff_s: float = 1.0
    """Wait before the first retry, in seconds; it doubles with each, and a random half of it is left out."""
    backoff_max_s: float = 60.0
    """Longest wait before a retry, also if the server's Retry-After asks for more."""
    breaker_failures: int = 10
    """Requests in a row that must fail before the server is left alone; what is asked meanwhile has no answer."""
    breaker_rest_s: float = 60.0
    """Seconds until a single request tries again whether the server is back."""
    claim_s: float = 30.0
    """Seconds after which a question that a dead process was asking is free for others."""
    temperature: float | None = 0.0
    """Of the judge's sampling; None leaves it to servers that accept no other than their own."""
    max_tokens: int = 300
    """Longest answer."""
    max_calls: int | None = None
    """Budget: requests that all users of the cache file may make together, ever; None for no limit."""
    max_money: float | None = None
    """Budget: what they may spend together, in the currency of the prices; None for no limit."""
    input_price: float = 0.0
    """Of a million prompt tokens."""
    output_price: float = 0.0
    """Of a million answer tokens."""

    def __post_init__(self) -> None:
        # Messages do not repeat what may hold a secret by mistake.
        if not _URL.fullmatch(self.url):
            raise ValueError(
                "expected judge.url like http://127.0.0.1:8000/v1, without user name, query or fragment; "
                "a key belongs into the environment variable that judge.api_key_env names"
            )
        if self.api_key_env is not None and not _VARIABLE.fullmatch(self.api_key_env):
            raise ValueError("expected judge.api_key_env to be the name of an environment variable, not the key itself")
        if not self.allow_external and not is_loopback(self.url):
            raise ValueError(
                f"judge.url {self.url} is not this machine, and report texts would leave it; use a server at "
                "127.0.0.1, or set judge.allow_external: true if the data's owner permits it (docs/judge.md)"
            )
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name, least in (("concurrency", 1), ("retries", 0), ("breaker_failures", 1), ("max_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"expected judge.{name} of at least {least}, got {getattr(self, name)}")
        for name in ("timeout_s", "claim_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"expected judge.{name} above 0 and finite, got {getattr(self, name)}")
        optional = ("max_calls", "max_money", "temperature")
        for name in (*optional, "backoff_s", "backoff_max_s", "breaker_rest_s", "input_price", "output_price"):
            number = getattr(self, name)
            if number is not None and not 0 <= number < math.inf:
                raise ValueError(f"expected judge.{name} not negative and finite, got {number}")
        if self.max_money is not None and self.input_price == self.output_price == 0:
            raise ValueError("judge.max_money needs judge.input_price and judge.output_price, both are 0")


ANSWERS_DEPEND_ON = ("model", "temperature", "max_tokens")  # the other settings may change within a run


def is_loopback(url: str) -> bool:
    """True for localhost and literal loopback addresses; any other name may resolve to another machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_key(config: JudgeConfig) -> str | None:
    """The key, from the environment; ValueError if it is not set, or holds what no HTTP header can carry."""
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env)
    if key is None:
        raise ValueError(f"judge.api_key_env: the environment variable {config.api_key_env} is not set; export the key")
    if not _KEY.fullmatch(key):
        raise ValueError(
            f"expected a key of at least 5 printable ASCII characters, without spaces and line ends, in the "
            f"environment variable {config.api_key_env}; set it again"
        )
    return key
