"""One step as one line of text, on the terminal of the run and in `train.py watch`."""

import math
from collections.abc import Mapping
from typing import Any

from reporting.run_files import Row

SHOWN = {
    "loss": "loss",
    "reward": "reward",
    "kl_before": "KL",
    "entropy": "entropy",
    "length": "length",
    "truncated": "cut",
    "zero_std_groups": "no spread",
    "missing_rewards": "missing",
    "grad_norm": "grad",
}
DASH = "\N{EN DASH}"  # where a value is missing
HIDDEN_AT_ZERO = {"truncated", "missing_rewards"}


def step_line(stage: str, row: Row, last: int | None) -> str:
    """`rl 12/100 | reward 2.31 ±0.40 | KL 0.012 | ... | 4.1 s`; steps are counted from 1, as the bar counts them."""
    of = "" if last is None else f"/{last}"
    cells = [f"{stage} {int(row['step']) + 1}{of}"]
    for key, name in SHOWN.items():
        if key not in row or (key == "loss" and "reward" in row) or (key in HIDDEN_AT_ZERO and not row[key]):
            continue
        spread = row.get("reward_std") if key == "reward" else None
        cells.append(f"{name} {brief(row[key])}" + ("" if spread is None else f" ±{brief(spread)}"))
    if "clip_low_critical" in row:
        kinds = ("critical", "normal")
        shares = [row[f"clip_low_{kind}"] + row[f"clip_high_{kind}"] for kind in kinds]
        cells.append("clipped " + " ".join(f"{kind} {share:.1%}" for kind, share in zip(kinds, shares, strict=True)))
    seconds = [row[key] for key in ("seconds_rollout", "seconds_reward", "seconds_update") if key in row]
    if seconds:
        cells.append(f"{sum(seconds):.1f} s")
    return " | ".join(cells)


def brief(value: Any) -> str:
    """Three significant digits; a missing value as a dash."""
    if value is None:
        return DASH
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    size = abs(value)
    return f"{value:.2e}" if size and (size < 1e-3 or size >= 1e5) else f"{value:.{max(0, 2 - _magnitude(size))}f}"


def _magnitude(size: float) -> int:
    return 0 if size == 0 else max(-1, math.floor(math.log10(size)))


def steps_of(stage: str, config: Mapping[str, Any]) -> int | None:
    """Steps that a stage is to have, by the config."""
    return config.get(stage, {}).get("steps")
