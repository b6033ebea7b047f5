"""status.json: whether a run goes on, so that another machine can know it from the files alone."""

import os
import socket
import time
from pathlib import Path
from typing import Any, Literal

from capo.journal import write_json
from reporting.run_files import read_json

State = Literal["running", "complete", "stopped", "failed"]


def write_status(folder: Path, state: State, *, stage: str, detail: str = "") -> None:
    """What the run does now.

    Args:
        detail: why it stopped or failed.
    """
    place = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.strftime("%Y-%m-%d %H:%M:%S %z")}
    write_json(folder / "status.json", {"state": state, "stage": stage, "detail": detail, **place})


def ended(folder: Path) -> dict[str, Any] | None:
    """How the run ended; None while it goes on. A killed run is not noticed here: nobody is left to write it down."""
    status = read_json(folder / "status.json")
    if status is not None:
        return None if status["state"] == "running" else status
    if (folder / "eval" / "table.md").is_file():  # a run before there was status.json
        return {"state": "complete", "stage": "evaluate", "detail": ""}
    return None
