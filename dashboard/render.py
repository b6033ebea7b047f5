"""HTML pages that need no other file and no network, and in which text of models and data can do nothing."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from radflow.dashboard.charts import Chart, label

FOLDER = Path(__file__).parent / "page"
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
SCRIPTS = ("charts.js", "rollouts.js")  # one script, in this order
DASH = "\N{EN DASH}"  # for a missing value


def render(template: str, charts: Mapping[str, Sequence[Chart]], *, data: Mapping[str, Any], **values: Any) -> str:
    """A template of dashboard/page/ filled in. Every value is escaped; the content policy forbids all loading.

    Args:
        charts: group -> its charts; the template finds each by a key of `data`, which the script draws.
        data: what else the script reads.
    """
    drawn: dict[str, Any] = {}
    shown: dict[str, list[dict[str, str]]] = {group: [] for group in charts}
    for group, chart in ((group, chart) for group, some in charts.items() for chart in some):
        key = f"chart{len(drawn)}"
        drawn[key] = asdict(chart)
        shown[group].append({"key": key, "title": chart.title, "unit": chart.unit, "note": chart.note})
    script = "".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    page = environment().get_template(template)
    html = page.render(
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'",
        data=script_json({"charts": drawn, **data}),
        charts=shown,
        **values,
    )
    # Half a surrogate pair cannot be written as UTF-8, and HTML knows no control characters.
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", html.encode("utf-8", "replace").decode())


@cache
def environment() -> jinja2.Environment:
    loader, undefined = jinja2.FileSystemLoader(FOLDER), jinja2.StrictUndefined
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=undefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"number": number, "signed": lambda value: number(value, signed=True), "label": label}
    return made


def number(value: Any, *, signed: bool = False) -> str:
    """Three decimals, or fewer if the number is large; a missing one as a dash."""
    if value is None or not isinstance(value, int | float):
        return DASH if value is None else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    decimals = 0 if isinstance(value, int) or abs(value) >= 1000 else 3 if abs(value) < 100 else 1
    text = f"{value:{'+' if signed else ''},.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def script_json(value: Any) -> Markup:
    """JSON that is safe inside a script element: no text in it can end the element or a line of script.

    Numbers have five significant digits, which no screen shows; those that JSON lacks (nan, inf) become null.
    """
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested config as dotted key -> value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        found |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found
