"""Which endpoints are refused before anything is sent."""

import pytest
from judge_server import KEY

from radflow.chat.config import EndpointConfig
from radflow.rewards.judge.config import JudgeConfig

LOCAL = ["http://localhost:8000/v1", "http://127.0.0.1/v1", "http://127.8.8.8:1/", "https://[::1]:8000/v1"]
ELSEWHERE = [
    "https://api.openai.com/v1",
    "http://10.0.0.5:8000/v1",
    "http://192.168.1.2/v1",
    "http://172.16.0.1/v1",
    "http://169.254.169.254/v1",
    "http://0.0.0.0:8000/v1",
    "http://[::]/v1",
    "http://[fe80::1]/v1",
    "http://[::ffff:127.0.0.1]/v1",
    "http://node7:8000/v1",
    "http://localhost.example.org/v1",
    "http://127.0.0.1.nip.io/v1",
    "http://2130706433/v1",
    "http://127.1/v1",
    "http://localhost./v1",
]


@pytest.mark.parametrize("url", LOCAL)
def test_this_machine_needs_no_permission(url):
    EndpointConfig(url=url)


@pytest.mark.parametrize("url", ELSEWHERE)
def test_every_other_host_needs_allow_external(url):
    with pytest.raises(ValueError, match=r"is not this machine.*allow_external"):
        EndpointConfig(url=url)
    assert EndpointConfig(url=url, allow_external=True).url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@localhost/v1",
        "http://localhost@evil.org/v1",
        "http://evil.org\\@localhost/v1",
        "http://",
        "localhost:8000",
        "http://localhost/v1?key=secret",
        "http://localhost#@evil.org",
        "file:///etc/passwd",
        "http://local host/",
    ],
)
def test_urls_that_hold_secrets_or_can_be_read_two_ways_are_refused_and_not_repeated(url):
    with pytest.raises(ValueError, match=r"expected endpoint\.url like") as refused:
        EndpointConfig(url=url, allow_external=True)
    assert "secret" not in str(refused.value)


def test_a_key_written_into_the_config_is_refused_and_not_repeated():
    with pytest.raises(ValueError, match="not the key itself") as refused:
        EndpointConfig(api_key_env=KEY)
    assert KEY not in str(refused.value)


def test_a_key_does_not_travel_in_the_clear():
    options = {"api_key_env": "KEY", "allow_external": True}
    with pytest.raises(ValueError, match=r"endpoint\.url http://node7:8000/v1 would carry the key .* use https"):
        EndpointConfig(url="http://node7:8000/v1", **options)
    EndpointConfig(url="https://node7:8000/v1", **options)
    EndpointConfig(url="http://localhost:8000/v1", api_key_env="KEY")
    EndpointConfig(url="http://node7:8000/v1", allow_external=True)  # without a key there is none to lose


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"concurrency": 0}, "judge.concurrency of at least 1"),
        ({"retries": -1}, "judge.retries of at least 0"),
        ({"timeout_s": 0.0}, "judge.timeout_s above 0"),
        ({"timeout_s": float("nan")}, "judge.timeout_s above 0"),
        ({"max_calls": -1}, "judge.max_calls of at least 0"),
        ({"max_tokens": 0}, "judge.max_tokens of at least 1"),
        ({"max_money": 5.0}, "judge.max_money needs judge.input_price"),
    ],
)
def test_contradictions_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        JudgeConfig(**options)
