"""An endpoint: how much is read, whom it asks, what it tells, and that the key is kept."""

import logging
import os
import threading
import time
import tracemalloc

import pytest
from judge_server import KEY, JudgeServer, impatient, says, status, verdict

from radflow.chat import endpoint
from radflow.chat.config import EndpointConfig
from radflow.chat.endpoint import Endpoint, TroubleError
from radflow.rewards.judge.llm import CriticalityLlm


def config_of(server, **options):
    return EndpointConfig(
        **{"url": server.url, "model": "m", "backoff_s": 0.01, "retries": 1, "timeout_s": 5.0} | options
    )


def test_proxies_of_the_environment_do_not_see_a_local_server(tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with JudgeServer() as server:
        judge = CriticalityLlm.from_config(impatient(server.url, tmp_path / "c.sqlite", retries=0))
        assert judge(["A."])[0] is not None
        judge.asker.close()


def test_redirects_are_not_followed(tmp_path):
    with JudgeServer() as elsewhere, JudgeServer(always=status(307, Location=elsewhere.url)) as server:
        judge = CriticalityLlm.from_config(impatient(server.url, tmp_path / "c.sqlite"))
        assert judge(["A."]) == [None] and judge.asker.last_trouble == "status 307"
        assert len(server.requests) == 1 and not elsewhere.requests
        judge.asker.close()


def test_the_key_is_in_no_log_no_file_and_no_message(tmp_path, monkeypatch, caplog):
    """Even when the server repeats it, in an error and in its answer, and every library logs all it can."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    echo = status(401, {"error": {"message": f"Incorrect API key: {KEY}", "code": KEY, "type": KEY}})
    with JudgeServer(script=[echo, says(verdict("yes", f"your key is {KEY}"))]) as server:
        judge = CriticalityLlm.from_config(impatient(server.url, tmp_path / "c.sqlite", api_key_env="JUDGE_KEY"))
        assert judge(["A."]) == [None]
        (found,) = judge(["A."])
        assert found.reason == "your key is [key]"
        said = [judge.asker.last_trouble, repr(vars(judge.asker.config)), repr(judge), caplog.text]
        judge.asker.close()
    assert "Incorrect API key: [key]" in caplog.text and not any(KEY in text for text in said)
    for path in tmp_path.iterdir():
        assert KEY.encode() not in path.read_bytes(), path
    assert os.listdir(tmp_path)


def endless(handler):
    """A body without end, and without a promise of its length."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    piece = b"%x\r\n" % (1 << 16) + b" " * (1 << 16) + b"\r\n"
    try:
        while True:
            handler.wfile.write(piece)
    except OSError:  # the other side has left
        return


def test_an_endless_body_is_left_after_its_first_mebibytes(monkeypatch):
    monkeypatch.setattr(endpoint, "MAX_BYTES", 2**20)
    with JudgeServer(always=endless) as server:
        asking = Endpoint(config_of(server))
        tracemalloc.start()
        with pytest.raises(TroubleError, match="a reply of more than 1 MiB"):
            asking.post("/chat/completions", {"messages": [{"content": ""}]})
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20  # of it the server's pieces
        tracemalloc.stop()
        asking.close()
    assert len(server.requests) == 1  # it is not asked for another


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(404, {"error": {"message": "The model `m` does not exist.", "code": "model_not_found"}}),
         "status 404 (model_not_found): The model `m` does not exist."),
        (status(404, {"error": "model 'm' not found, try pulling it first"}),
         "status 404: model 'm' not found, try pulling it first"),
        (status(401, {"detail": "Unauthorized"}), "status 401: Unauthorized"),
        (status(503, {"error": {"message": "Loading model", "code": 503}}), "status 503: Loading model"),
        (status(200, {"error": {"message": "overloaded", "code": 529}}), "status 529: overloaded"),
        (status(500, {"error": {"message": "bad input: Mrs Example has TB", "code": "x y Mrs"}}),
         "status 500: bad input: …"),
        (status(418, ""), "status 418"),
    ],
)  # fmt: skip
def test_what_the_server_says_is_shown_without_the_report(fault, said, tmp_path, caplog):
    with JudgeServer(always=fault) as server:
        judge = CriticalityLlm.from_config(impatient(server.url, tmp_path / "c.sqlite", retries=0))
        assert judge(["Mrs Example has TB"]) == [None]
        assert judge.asker.last_trouble == said and said in caplog.text
        judge.asker.close()


def test_the_url_may_be_that_of_the_chat(tmp_path):
    """The full address, as some servers print it."""
    with JudgeServer() as server:
        config = impatient(server.url + "/chat/completions/", tmp_path / "c.sqlite")
        judge = CriticalityLlm.from_config(config)
        assert judge(["A."])[0].critical and server.requests[0]["path"] == "/v1/chat/completions"
        judge.asker.close()


def test_a_retry_after_holds_for_every_thread(tmp_path):
    with JudgeServer(script=[None, status(429, Retry_After="0.3")]) as server:
        asking, body = Endpoint(config_of(server, backoff_max_s=9.0)), {"messages": [{"content": ""}]}
        asking.post("/a", body)
        other = threading.Thread(target=asking.post, args=("/b", body))
        other.start()
        while len(server.requests) < 2:
            time.sleep(0.01)
        time.sleep(0.1)  # the refusal has arrived
        asking.post("/c", body)
        other.join()
        assert min(server.times[2:]) - server.times[1] >= 0.3
        asking.close()
