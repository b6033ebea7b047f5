"""Draw the method: python benchmarks/study/method.py writes docs/figures/method.svg."""

from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

INK, STAGE, STEP, POLICY = "#1b2a38", "#e8eef4", "#fdf3e3", "#dcefe2"
Point = tuple[float, float]
SIZE = (1.9, 1.0)  # of a box

# name, what it does, centre, colour
STAGES = (
    ("SFT", "image-report pairs\n→ reference policy", (1.2, 4.5), STAGE),
    ("Target Exploration", "report every training study,\nkeep those it reports worst", (3.8, 4.5), STAGE),
    ("Criticality", "is the reference report\nabnormal?", (6.4, 4.5), STAGE),
    ("CAPO policy", "evaluated on\nheld-out studies", (11.6, 4.5), POLICY),
)
STEPS = (
    ("Sample", "G reports per study", (1.2, 1.6), STEP),
    ("Score", "hierarchical reward\nequations 4 to 7", (3.8, 1.6), STEP),
    ("Group advantages", "compare reports of a study\nequation 1", (6.4, 1.6), STEP),
    ("Clip range per case", "ε, or ε / 4 if critical\nequation 9", (9.0, 1.6), STEP),
    ("Update", "clipped objective\nand KL to the SFT policy\nequation 8", (11.6, 1.6), STEP),
)


def draw(path: Path) -> None:
    """The stages above, one CAPO step below; the same file each time."""
    pyplot.rcParams["svg.hashsalt"] = "radflow"
    figure, axes = pyplot.subplots(figsize=(11, 4.6), layout="constrained")
    axes.set(xlim=(-0.1, 12.9), ylim=(-0.1, 5.4))
    axes.set_axis_off()
    add_frame(axes)
    for name, text, centre, colour in (*STAGES, *STEPS):
        add_box(axes, name, text, centre, colour)
    for row in (STAGES[:3], STEPS):
        for (_, _, left, _), (_, _, right, _) in pairwise(row):
            add_arrow(axes, (left[0] + 1.03, left[1]), (right[0] - 1.03, right[1]))
    add_arrow(axes, (6.4, 3.94), (6.4, 2.98))  # into the loop
    axes.text(6.55, 3.42, "hard studies, each critical or normal", fontsize=8.5, color=INK, va="center")
    add_arrow(axes, (11.6, 2.98), (11.6, 3.94))  # out of it
    add_arrow(axes, (11.6, 1.04), (1.2, 1.04), curve="arc,angleA=-90,angleB=-90,armA=18,armB=18,rad=8")
    axes.text(6.4, 0.5, "the updated policy samples the next studies", fontsize=8.5, color=INK, ha="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def add_frame(axes: Axes) -> None:
    axes.add_patch(FancyBboxPatch((0.1, 0.2), 12.6, 2.7, "round,pad=0.05", fc="white", ec=INK, lw=1, ls="--"))
    axes.text(0.2, 2.62, "One CAPO step", fontsize=10, color=INK, weight="bold", va="center")


def add_box(axes: Axes, name: str, text: str, centre: Point, colour: str) -> None:
    corner = (centre[0] - SIZE[0] / 2, centre[1] - SIZE[1] / 2)
    axes.add_patch(FancyBboxPatch(corner, *SIZE, "round,pad=0.06", fc=colour, ec=INK, lw=1))
    axes.text(centre[0], centre[1] + 0.33, name, fontsize=10, color=INK, weight="bold", ha="center", va="center")
    axes.text(centre[0], centre[1] - 0.17, text, fontsize=8, color=INK, ha="center", va="center")


def add_arrow(axes: Axes, start: Point, end: Point, curve: str = "arc3") -> None:
    style = {"arrowstyle": "-|>", "connectionstyle": curve, "color": INK, "lw": 1.2}
    axes.annotate("", xy=end, xytext=start, arrowprops={**style, "shrinkA": 0, "shrinkB": 0})


if __name__ == "__main__":
    draw(Path(__file__).parents[2] / "docs" / "figures" / "method.svg")
