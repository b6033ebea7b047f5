"""Settings of an OpenAI-compatible endpoint: where it is, who may read what is sent, how patiently it is asked."""

import ipaddress
import math
import os
import re
from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlsplit

# Nothing that two URL parsers could read differently: no user name, backslash, query or fragment.
_URL = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY = re.compile(r"[!-~]{5,}")  # printable ASCII: what a header can carry


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible endpoint, and how patiently it is asked."""

    section: ClassVar[str] = "endpoint"  # of the config, as messages name it

    url: str | None = None
    """Of the API, such as http://127.0.0.1:8000/v1; /chat/completions is appended. Only this machine, unless
    allow_external is set."""
    model: str | None = None
    """Name of the model, as the endpoint knows it."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; the key itself is never written anywhere."""
    allow_external: bool = False
    """What is sent may leave this machine: needed for every url that is not a loopback address."""
    concurrency: int = 8
    """Requests that one process sends at a time."""
    timeout_s: float = 180.0
    """Seconds that one request may take, also while the server answers others first."""
    retries: int = 4
    """Further requests after a fault of the server."""
    backoff_s: float = 1.0
    """Wait before the first retry, in seconds; it doubles with each, and a random part of this is added."""
    backoff_max_s: float = 60.0
    """Longest wait before a retry, also if the server's Retry-After asks for more."""

    def __post_init__(self) -> None:
        self.check("concurrency", least=1)
        self.check("retries", "backoff_s", "backoff_max_s", least=0)
        self.check("timeout_s", above=0)
        # Messages do not repeat what may hold a secret by mistake.
        if self.api_key_env is not None and not _VARIABLE.fullmatch(self.api_key_env):
            variable = "to be the name of an environment variable, not the key itself"
            raise ValueError(f"expected {self.section}.api_key_env {variable}")
        if self.url is not None:
            self._check_url(self.url)

    def check(self, *names: str, least: float = -math.inf, above: float = -math.inf) -> None:
        """ValueError unless each named field is finite, at least `least` and above `above`; None is left alone.

        `capo.checks` is not called: rewards and what they load are independent of it.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None and not (least <= value < math.inf and value > above):
                bound = f"of at least {least}" if least > -math.inf else f"above {above}"
                raise ValueError(f"expected {self.section}.{name} {bound} and finite, got {value}")

    def _check_url(self, url: str) -> None:
        if not _URL.fullmatch(url):
            raise ValueError(
                f"expected {self.section}.url like http://127.0.0.1:8000/v1, without user name, query or fragment; a "
                f"key belongs into the environment variable that {self.section}.api_key_env names"
            )
        if is_loopback(url):
            return
        if not self.allow_external:
            risk = f"{self.section}.url {url} is not this machine, and reports or images of patients would leave it"
            allow = f"set {self.section}.allow_external if the data's owner permits it (docs/judge.md)"
            raise ValueError(f"{risk}; use a server at 127.0.0.1, or {allow}")
        if self.api_key_env is not None and url.startswith("http:"):
            raise ValueError(f"{self.section}.url {url} would carry the key over the network in the clear; use https")


def is_loopback(url: str) -> bool:
    """True for localhost and literal loopback addresses; any other name may resolve to another machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_key(config: EndpointConfig) -> str | None:
    """The key, from the environment; ValueError if it is not set, or holds what no HTTP header can carry."""
    if config.api_key_env is None:
        return None
    where = f"the environment variable {config.api_key_env}"
    key = os.environ.get(config.api_key_env)
    if key is None:
        raise ValueError(f"{config.section}.api_key_env: {where} is not set; export the key")
    if not _KEY.fullmatch(key):
        wanted = "a key of at least 5 printable ASCII characters, without spaces and line ends"
        raise ValueError(f"expected {wanted}, in {where}; set it again")
    return key
