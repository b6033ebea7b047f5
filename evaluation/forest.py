"""A forest plot: differences of systems with their intervals, as an SVG picture that needs no other file.

Metrics share an axis if all their values are within -1 and 1 and the same direction is better; each other metric has
its own axis, because its unit differs. Text stays text, and colours follow the reader's theme.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.etree.ElementTree import Element, indent, tostring

from radflow.pipeline.tables import bounds, number
from radflow.rewards.statistics import Interval

STYLE = """
svg { --paper: #ffffff; --ink: #1d2429; --soft: #5a656d; --line: #dcdfe1; --better: #00795a; --worse: #b3400a; }
@media (prefers-color-scheme: dark) {
svg { --paper: #1c2226; --ink: #e6e9eb; --soft: #9eabb3; --line: #353e44; --better: #4fd0a5; --worse: #ff9a62; } }
rect { fill: var(--paper); }
text { fill: var(--ink); font: 12px system-ui, sans-serif; font-variant-numeric: tabular-nums; }
.title { font-weight: 600; } .soft { fill: var(--soft); } .middle { text-anchor: middle; } .end { text-anchor: end; }
.tick { stroke: var(--line); } .zero { stroke: var(--soft); } .interval, circle { stroke-width: 2; }
.better { stroke: var(--better); fill: var(--better); } .worse { stroke: var(--worse); fill: var(--worse); }
.unclear { stroke: var(--soft); fill: var(--paper); }
"""
ROW, LETTER, GAP, AXIS, MARGIN = 20, 7, 20, 380, 20  # pixels: a row, a letter at most, between columns, an axis, around
LONGEST_NAME, LONGEST_ENDS = 40, 36  # characters of a system, and of the two systems at the ends of an axis
LEGEND = "Filled: the interval, not corrected for the number of tests, excludes 0. p: corrected (Holm)."


@dataclass(frozen=True)
class Difference:
    """A metric of the second system minus that of the first."""

    metric: str
    first: str
    second: str
    interval: Interval
    better: Literal["higher", "lower"]
    bounded: bool
    """Every value of the metric is within -1 and 1."""
    p: str

    @property
    def verdict(self) -> str:
        """What the interval says of the second system: better, worse, or unclear."""
        low, high = self.interval.low, self.interval.high
        if not (low > 0 or high < 0):
            return "unclear"
        return "better" if (low > 0) == (self.better == "higher") else "worse"


@dataclass(frozen=True)
class Layout:
    """What all panels share."""

    ends: Sequence[str]
    """The first and the second system, as the ends of an axis call them."""
    pairs: float | None
    """Position of the column that names each row's systems; None if all rows have the same."""
    axis: float
    """Left end of every axis."""


def forest_plot(rows: Sequence[Difference]) -> str:
    """The picture: a row per metric and pair of systems; 0 is marked, the values are at the right."""
    pairs = list(dict.fromkeys(_pair(row) for row in rows))
    ends, column = ["first", "second"], MARGIN + GAP + LETTER * max(len(row.metric) for row in rows)
    title = f"Differences with 95 % intervals: {pairs[0] if len(pairs) == 1 else 'second - first'}"
    if len(pairs) == 1:
        names = [_shown(rows[0].first), _shown(rows[0].second)]
        layout = Layout(names if len("".join(names)) <= LONGEST_ENDS else ends, None, column)
    else:
        layout = Layout(ends, column, column + GAP + LETTER * max(map(len, pairs)))
    shown, y = [_text(MARGIN, MARGIN + ROW / 2, title, "title")], MARGIN + ROW / 2
    for name, panel in _panels(rows).items():
        y += 2 * ROW
        shown += _draw(name, panel, layout, y)
        y += ROW * (len(panel) + 2)
    shown.append(_text(MARGIN, y + 2 * ROW, LEGEND, "soft"))
    width, height = layout.axis + AXIS + GAP + 36 * LETTER + MARGIN, y + 2 * ROW + MARGIN
    size = {"width": f"{width:g}", "height": f"{height:g}", "viewBox": f"0 0 {width:g} {height:g}"}
    svg = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", **size})
    svg.extend([_element("title", title), _element("style", STYLE), _element("rect", width="100%", height="100%")])
    svg.extend(shown)
    indent(svg)
    return tostring(svg, encoding="unicode") + "\n"


def _draw(name: str, rows: Sequence[Difference], layout: Layout, y: float) -> list[Element]:
    """One panel: its scale, its rows, its axis."""
    low, high = _reach(rows)
    right, top, bottom = layout.axis + AXIS, y + ROW / 2, y + ROW / 2 + ROW * len(rows)

    def x(value: float) -> float:
        return layout.axis + AXIS * (value - low) / (high - low)

    shown = [_text(MARGIN, y, name, "title")]
    for tick in _ticks(low, high):
        shown.append(_line((x(tick), top), (x(tick), bottom), "tick" if tick else "zero"))
        shown.append(_text(x(tick), bottom + ROW / 2, f"{tick:+g}" if tick else "0", "soft middle"))
    for i, row in enumerate(rows):
        d, baseline = row.interval, y + ROW * (i + 1)
        if not i or rows[i - 1].metric != row.metric:
            shown.append(_text(MARGIN, baseline, row.metric))
        if layout.pairs is not None:
            shown.append(_text(layout.pairs, baseline, _pair(row)))
        if math.isfinite(d.low) and math.isfinite(d.high):
            shown.append(_line((x(d.low), baseline - 4), (x(d.high), baseline - 4), f"interval {row.verdict}"))
        at = {"cx": f"{x(d.mean):.1f}", "cy": f"{baseline - 4:g}", "r": "4", "class": row.verdict}
        shown.append(_element("circle", **at))
        values = f"{number(d.mean, signed=True)} {bounds(d.low, d.high, signed=True)}  p {row.p}"
        shown.append(_text(right + GAP, baseline, values))
    left_end, right_end = layout.ends if rows[0].better == "higher" else reversed(layout.ends)
    shown.append(_text(layout.axis, bottom + 1.5 * ROW, f"\N{LEFTWARDS ARROW} {left_end} is better", "soft"))
    shown.append(_text(right, bottom + 1.5 * ROW, f"{right_end} is better \N{RIGHTWARDS ARROW}", "soft end"))
    return shown


def _panels(rows: Sequence[Difference]) -> Mapping[str, list[Difference]]:
    """Name of a scale -> its rows, those of a metric below one another."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    panels: dict[str, list[Difference]] = {}
    for row in sorted(rows, key=lambda row: metrics.index(row.metric)):
        unit = f"metrics between -1 and 1 ({row.better} is better)" if row.bounded else row.metric
        panels.setdefault(f"Scale of {unit}", []).append(row)
    return panels


def _reach(rows: Sequence[Difference]) -> tuple[float, float]:
    """Ends of an axis that holds 0 and every interval."""
    values = [0.0, *(value for row in rows for value in (row.interval.low, row.interval.mean, row.interval.high))]
    low, high = (pick(value for value in values if math.isfinite(value)) for pick in (min, max))
    pad = 0.05 * (high - low) or 1.0  # equal systems differ by 0 everywhere
    return low - pad, high + pad


def _ticks(low: float, high: float) -> list[float]:
    """Four to ten round numbers between the two, 0 among them."""
    power = 10 ** math.floor(math.log10((high - low) / 4))
    step = next((step for step in (5 * power, 2 * power) if (high - low) / step >= 4), power)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _pair(row: Difference) -> str:
    return f"{_shown(row.second)} - {_shown(row.first)}"


def _shown(name: str) -> str:
    """A system's name as XML can hold it, cut if it is long."""
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return printable if len(printable) <= LONGEST_NAME else f"{printable[: LONGEST_NAME - 1]}…"


def _text(x: float, y: float, text: str, kind: str = "") -> Element:
    return _element("text", text, x=f"{x:.1f}", y=f"{y:g}", **({"class": kind} if kind else {}))


def _line(start: tuple[float, float], end: tuple[float, float], kind: str) -> Element:
    (x1, y1), (x2, y2) = start, end
    return _element("line", x1=f"{x1:.1f}", x2=f"{x2:.1f}", y1=f"{y1:g}", y2=f"{y2:g}", **{"class": kind})


def _element(tag: str, content: str | None = None, **attributes: str) -> Element:
    element = Element(tag, attributes)
    element.text = content
    return element
