"""What the JSON files of a run hold, as far as it is read; any other form is refused by file and key."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

# A shape is the types that fit; a list with the shape of each item; or an object with the shapes of its keys, further
# ones allowed, under `str` that of all further ones. NUMBER is finite.
NUMBER, TEXT, FLAG, WHOLE = (int, float), (str,), (bool,), (int,)
MAYBE = (int, float, NoneType)
INTERVAL = {"mean": NUMBER, "low": NUMBER, "high": NUMBER}
OF_STEPS = {"step": WHOLE, str: (int, float, bool, NoneType)}
CLIPPED = [f"clip_{side}_{kind}" for side in ("low", "high") for kind in ("critical", "normal")]
COUNTED = ["reports", "tokens", "zero_std_groups", "length", "truncated", *CLIPPED]
COMPARED = {"metric": TEXT, "studies": WHOLE, "first": INTERVAL, "second": INTERVAL, "difference": INTERVAL}
SHAPES: Mapping[str, Any] = {
    "config.yaml": {
        "seed": WHOLE,
        "data": {"source": TEXT, "image_size": WHOLE, "image_root": (str, NoneType), "manifest": (str, NoneType)},
        "explore": {"threshold": MAYBE},
        "rl": dict.fromkeys(("steps", "studies_per_step", "group_size", "inner_epochs", "mini_batches"), WHOLE),
        "rollout": {"max_new_tokens": WHOLE},
    },
    "environment.json": {"commit": (str, NoneType), "packages": {str: TEXT}, "devices": [TEXT]},
    "status.json": {"state": TEXT, "stage": TEXT, "detail": TEXT, "host": TEXT, "time": TEXT},
    "timing.jsonl": [{"stage": TEXT, "seconds": NUMBER}],
    "metrics.jsonl": [OF_STEPS],
    "rl metrics": [{**OF_STEPS, "reward": MAYBE, **dict.fromkeys(COUNTED, NUMBER)}],
    "scores.jsonl": [{"id": TEXT, "s": NUMBER, str: MAYBE}],
    "selection.json": {"selected": [TEXT]},
    "criticality.jsonl": [{"id": TEXT, "critical": FLAG, "reason": TEXT, "source": TEXT}],
    "labels": [{"id": TEXT, "critical": (bool, NoneType)}],
    "warnings.jsonl": [{"stage": TEXT}],
    "predictions": [{"id": TEXT, "report": TEXT}],
    "table.json": {"studies": WHOLE, "rows": [COMPARED], "notes": [TEXT]},
    "reports": {str: {"report": (str, NoneType)}},
}


def check_shape(value: Any, shape: Any, path: Path, where: str = "") -> None:
    """ValueError unless a value has a shape; names the file, and the key or the line in `where`."""
    if isinstance(shape, dict) and isinstance(value, dict):
        others = [key for key in value if key not in shape] if str in shape else []
        for key, part in [*shape.items(), *((key, shape[str]) for key in others)]:
            if key is not str and key not in value:
                raise _refusal(path, where, f"the key {key}", ", ".join(map(str, value)))
            if key is not str:
                check_shape(value[key], part, path, f"{where}.{key}".removeprefix("."))
    elif isinstance(shape, list) and isinstance(value, list):
        for number, item in enumerate(value, 1):
            check_shape(item, shape[0], path, f"{where} {number}".strip())
    elif not isinstance(shape, tuple) or type(value) not in shape or (shape is NUMBER and not abs(value) < math.inf):
        wanted = "an object" if isinstance(shape, dict) else "a list" if isinstance(shape, list) else _names(shape)
        raise _refusal(path, where, wanted, repr(value))


def _names(kinds: Iterable[type]) -> str:
    return " or ".join("null" if kind is NoneType else kind.__name__ for kind in kinds)


def _refusal(path: Path, where: str, wanted: str, got: str) -> ValueError:
    prefix = f"{where}: " if where else ""
    return ValueError(f"{path}: {prefix}expected {wanted}, got {got[:100]}; the file is damaged: restore it")
