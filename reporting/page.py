"""HTML pages that need no other file and no network, and in which text of models and data can do nothing."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from reporting.curves import Chart
from reporting.lines import DASH

FOLDER = Path(__file__).parent / "page"
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
SCRIPTS = ("charts.js", "rollouts.js")  # one script, in this order


@dataclass
class Page:
    """What the script of a page draws."""

    data: dict[str, Any] = field(default_factory=lambda: {"charts": {}})

    def add(self, chart: Chart) -> dict[str, str]:
        """A chart of the page; returns what its place in the HTML needs."""
        key = f"chart{len(self.data['charts'])}"
        self.data["charts"][key] = asdict(chart)
        return {"key": key, "title": chart.title, "unit": chart.unit, "note": chart.note}


def render(template: str, page: Page, **values: Any) -> str:
    """A template of reporting/page/ filled in. Every value is escaped; the content policy forbids all loading."""
    script = "".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    html = environment().get_template(template).render(
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'",
        data=script_json(page.data),
        **values,
    )  # fmt: skip
    # Half a surrogate pair cannot be written as UTF-8, and HTML knows no control characters.
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", html.encode("utf-8", "replace").decode())


@cache
def environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {"number": number, "signed": lambda value: number(value, signed=True)}
    return made


def number(value: Any, *, signed: bool = False) -> str:
    """Three decimals, or fewer where the number is large; a missing one as a dash."""
    if value is None or not isinstance(value, int | float):
        return DASH if value is None else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    decimals = 0 if isinstance(value, int) or abs(value) >= 1000 else 3 if abs(value) < 100 else 1
    text = f"{value:{'+' if signed else ''},.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def script_json(value: Any) -> Markup:
    """JSON that may stand inside a script element: no text in it can end the element or a line of script.

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


def flat(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A nested config as sections of dotted keys; what stands at the top level forms the section `run`."""
    sections: dict[str, dict[str, Any]] = {"run": {}}
    for key, value in config.items():
        if isinstance(value, Mapping):
            sections[key] = dict(_dotted(value, ""))
        else:
            sections["run"][key] = value
    return sections


def _dotted(node: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found = []
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            found += _dotted(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found
