"""A forest plot: differences of systems with their intervals, as an SVG picture that needs no other file.

Metrics share an axis if all their values are within -1 and 1 and the same direction is better; each other metric has
its own axis, because its unit differs.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from radflow.pipeline.tables import bounds, number
from radflow.rewards.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"better": "#00795a", "worse": "#b3400a", "unclear": "#5a656d"}
LONGEST_NAME = 40  # characters of a system
ROW_INCHES = 0.25
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
    def pair(self) -> str:
        return f"{_shown(self.second)} - {_shown(self.first)}"

    @property
    def verdict(self) -> str:
        """What the interval says of the second system: better, worse, or unclear."""
        low, high = self.interval.low, self.interval.high
        if not (low > 0 or high < 0):
            return "unclear"
        return "better" if (low > 0) == (self.better == "higher") else "worse"


def forest_plot(rows: Sequence[Difference]) -> str:
    """The picture, of the same bytes for the same rows: a line per row, its values on the right."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels, pairs = list(_panels(rows).items()), {row.pair for row in rows}
    heights = [len(panel) + 2.5 for _, panel in panels]
    drawn = io.StringIO()
    # Text stays text, and the names of clip paths are no random numbers.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "radflow", "font.size": 9}):
        figure = Figure(figsize=(11, ROW_INCHES * sum(heights) + 1), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
        for axes, (scale, panel) in zip(grid[:, 0], panels, strict=True):
            axes.set_title(scale, loc="left", fontweight="bold")
            draw(axes, panel, name_pairs=len(pairs) > 1)
        title = f"Differences with 95 % intervals: {pairs.pop() if len(pairs) == 1 else 'second - first'}"
        figure.suptitle(f"{title}\n{LEGEND}", parse_math=False)
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()


def draw(axes: "Axes", rows: Sequence[Difference], *, name_pairs: bool) -> None:
    """The rows of one scale from above, 0 marked, and at the ends of the axis the system that is better there."""
    names = [f"{row.metric}, {row.pair}" if name_pairs else row.metric for row in rows]
    values = []
    for y, row in enumerate(rows):
        d, colour = row.interval, COLOURS[row.verdict]
        values.append(f"{number(d.mean, signed=True)} {bounds(d.low, d.high, signed=True)}, p {row.p}")
        axes.hlines(y, d.low, d.high, color=colour)
        axes.plot(d.mean, y, "o", color=colour, markerfacecolor="white" if row.verdict == "unclear" else colour)
    axes.axvline(0, color=COLOURS["unclear"], linewidth=0.8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), names, parse_math=False)
    axes.secondary_yaxis("right").set_yticks(range(len(rows)), values)
    ends = ["first", "second"] if name_pairs else [_shown(rows[0].first), _shown(rows[0].second)]
    left, right = ends if rows[0].better == "higher" else reversed(ends)
    axes.set_xlabel(
        f"\N{LEFTWARDS ARROW} {left} is better \N{MIDDLE DOT} {right} is better \N{RIGHTWARDS ARROW}", parse_math=False
    )


def _panels(rows: Sequence[Difference]) -> Mapping[str, list[Difference]]:
    """Name of a scale -> its rows, those of a metric below one another."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    panels: dict[str, list[Difference]] = {}
    for row in sorted(rows, key=lambda row: metrics.index(row.metric)):
        unit = f"metrics between -1 and 1 ({row.better} is better)" if row.bounded else row.metric
        panels.setdefault(f"Scale of {unit}", []).append(row)
    return panels


def _shown(name: str) -> str:
    """A system's name as XML can hold it, cut if it is long."""
    printable = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    return printable if len(printable) <= LONGEST_NAME else f"{printable[: LONGEST_NAME - 1]}…"
