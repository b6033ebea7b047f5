"""A tiny Qwen2.5-VL written to disk in the published layout and loaded back, shared by the tests that need a model."""

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from capo.stopping import STOP_SIGNALS
from radflow.data.phantoms import make_studies
from radflow.models.processing import ProcessorConfig, ReportProcessor
from radflow.models.qwen_vl import load
from radflow.models.tiny import TinyConfig, build_tiny

LOCAL = re.compile(r"localhost|127\..*|::1|::ffff:127\..*")


class LocalSocket(socket.socket):
    """Reaches this machine only: a run, a score or a page of the tests that sends anything elsewhere fails."""

    def connect(self, address):
        if isinstance(address, tuple) and not LOCAL.fullmatch(address[0]):
            raise PermissionError(f"expected connections to this machine only, got one to {address[0]}")
        return super().connect(address)


socket.socket = LocalSocket  # type: ignore[misc]
torch.set_num_threads(1)  # two processes share the tests
# Files that take longest, started first: one left for the end would run alone.
LONGEST = ("test_train_faults", "test_capo_ranks", "test_train", "test_gpu_proof", "test_dashboard_run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A run in this process listens to signals; Ctrl-C is pytest's again after the test, however often it comes."""
    signal.set_wakeup_fd(-1)  # of a program that was imported
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the real studies and recorded metric values; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("RADFLOW_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the shared data folder, not found at {folder}; set RADFLOW_SHARED")
    return folder


@pytest.fixture(scope="session")
def studies():
    return make_studies("chest", num_train=24, num_val=0, num_test=8, seed=5, size=112)


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory, studies) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    build_tiny(folder, [study.report for study in studies], TinyConfig(), seed=0)
    return folder


@pytest.fixture
def policy(tiny_dir):
    """A fresh copy for each test: tests train it."""
    return load(tiny_dir)


@pytest.fixture(scope="session")
def processor(tiny_dir):
    return ReportProcessor.load(tiny_dir, ProcessorConfig())


@pytest.fixture(scope="session")
def states():
    """Hidden states [1, P, D] of a policy after a prompt."""

    def run(policy, prompt):
        length = len(prompt.input_ids)
        mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        embeds = policy.embed([prompt], policy.features([prompt]))[0][None]
        return policy.decoder(embeds, prompt.positions[:, None], mask)

    return run


@pytest.fixture
def refuse(capsys):
    """Run a program that refuses its words; returns its one line, or what the box of its option parser says."""

    def run(main, words) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        boxed = re.sub(r"[\s│]+", " ", capsys.readouterr().err)
        return boxed if stopped.value.code == 2 else str(stopped.value.code)

    return run
