"""A real OpenAI-compatible server on this machine: llama.cpp with the weights that `make test-served` installs."""

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODEL = "gemma-3-270m"
WEIGHTS = Path(sys.prefix) / "gemma-3-270m-q4_k_m.gguf"  # not the instruct model; the file has no chat template


@contextmanager
def llama_server(folder: Path, *, chat_format: str = "chatml", starts_within_s: float = 60) -> Iterator[str]:
    """URL of the API (http://127.0.0.1:PORT/v1) of a server of `MODEL` that ends with the context.

    Args:
        folder: for its log, server.log.
        chat_format: how llama.cpp writes messages as a prompt; `gemma` has no system role and drops its messages.

    Raises:
        RuntimeError: it ended or did not answer in time; with the last lines of its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llama_cpp.server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(WEIGHTS), "--model_alias", MODEL, "--chat_format", chat_format]
    command += ["--n_ctx", "4096", "--n_threads", "2", "--seed", "0"]
    log = folder / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}/v1"
        _wait_for(server, url, log, starts_within_s)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:  # it is still writing an answer
            server.kill()
            server.wait()


def _wait_for(server: subprocess.Popen[bytes], url: str, log: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/models", timeout=5).close()
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.1)
        else:
            return
    how = f"no answer within {seconds:g} s" if server.poll() is None else f"it ended with status {server.returncode}"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise RuntimeError(f"expected llama.cpp's server to answer at {url}, got: {how}. Its log ends:\n{tail}")
