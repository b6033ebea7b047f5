"""A chat endpoint on this machine that answers, or fails, as a test asks it to."""

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from radflow.rewards.judge.config import JudgeConfig

KEY = "sk-test-0123456789-never-to-be-seen"
Fault = Callable[[BaseHTTPRequestHandler], None]


def verdict(answer: str, reason: str = "because") -> str:
    return json.dumps({"reason": reason, "answer": answer})


def completion(content: str | None, *, usage: object = None, **fields: object) -> dict[str, object]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **fields}, "finish_reason": "stop"}
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


def says(content: str | None, **fields: object) -> Fault:
    return status(200, completion(content, **fields))


def status(code: int, body: object = "", **headers: str) -> Fault:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        handler.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return reply


def slow(seconds: float) -> Fault:
    """A byte now and then: every single read succeeds, the whole takes too long."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            try:
                handler.wfile.write(b" ")
            except OSError:  # the other side has left
                return
            time.sleep(0.02)

    return reply


def reset(handler: BaseHTTPRequestHandler) -> None:
    """The connection ends with a TCP reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(handler.connection.detach())


def cut(handler: BaseHTTPRequestHandler) -> None:
    """Half of a completion, though the header promises all of it."""
    data = json.dumps(completion(verdict("yes"))).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.connection.shutdown(socket.SHUT_RDWR)


class JudgeServer:
    """Serves on 127.0.0.1; a context manager.

    Args:
        answer: the content of a reply, from the text of the question.
        script: how the first requests are treated, in order; None answers.
        always: how all the others are.
        habit: how a request is treated, from its body.
    """

    def __init__(
        self,
        answer: Callable[[str], str] = lambda text: verdict("yes"),
        *,
        script: Sequence[Fault | None] = (),
        always: Fault | None = None,
        habit: Callable[[dict], Fault] | None = None,
        usage: Mapping[str, int] | None = None,
        takes_s: float = 0.0,
    ) -> None:
        self.requests: list[dict[str, object]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.under_way, self.most_at_once = 0, 0
        self._lock, script = threading.Lock(), list(script)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(handler) -> None:
                body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
                with self._lock:
                    self.requests.append({"path": handler.path, **body})
                    self.headers.append(dict(handler.headers))
                    self.times.append(time.monotonic())
                    self.under_way += 1
                    self.most_at_once = max(self.most_at_once, self.under_way)
                    fault = script.pop(0) if script else habit(body) if habit else always
                try:
                    time.sleep(takes_s)
                    text = body["messages"][-1]["content"]
                    (fault or says(answer(text), usage=usage))(handler)
                finally:
                    with self._lock:
                        self.under_way -= 1

            def log_message(self, *_: object) -> None: ...

            def finish(self) -> None:  # of a connection that a fault has closed already
                try:
                    super().finish()
                except (OSError, ValueError):
                    self.close_connection = True

        class Server(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 64

            def handle_error(self, *_: object) -> None: ...  # a client that left early

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def asked(self) -> list[str]:
        """The text of the user's message of each request."""
        return [request["messages"][-1]["content"] for request in self.requests]

    def __enter__(self) -> "JudgeServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def impatient(url: str, cache: object, **options: object) -> JudgeConfig:
    """A config whose waits are short enough for tests."""
    waits = {"backoff_s": 0.01, "backoff_max_s": 0.05, "timeout_s": 5.0, "claim_s": 5.0}
    return JudgeConfig(**{"url": url, "model": "tiny-judge", "cache": cache, **waits, **options})
