"""The forest plot of a comparison: where points are, which side is better, which metrics share an axis."""

from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from radflow.evaluation.forest import COLOURS, Difference, draw, forest_plot
from radflow.rewards.statistics import Interval

SVG = "{http://www.w3.org/2000/svg}"


def row(metric="BLEU-2", low=0.0, mean=0.5, high=1.0, better="higher", bounded=True, second="capo"):
    return Difference(metric, "sft", second, Interval(mean, low, high), better, bounded, "0.012")


def texts(*rows):
    return [element.text for element in ElementTree.fromstring(forest_plot(rows)).iter(f"{SVG}text")]


def drawn(*rows):
    axes = Figure().subplots()
    draw(axes, rows, name_pairs=False)
    return axes


def test_points_and_intervals_are_at_their_values_the_first_row_above():
    axes = drawn(row(), row("ROUGE-L", low=-0.5, mean=-0.25, high=0.0))
    points = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert points == [[[0.5, 0]], [[-0.25, 1]]] and axes.yaxis.get_inverted()
    ends = [one.get_segments()[0].tolist() for one in axes.collections]
    assert ends == [[[0.0, 0], [1.0, 0]], [[-0.5, 1], [0.0, 1]]]
    assert "+0.500 [+0.000, +1.000], p 0.012" in texts(row())


@pytest.mark.parametrize(
    ("low", "high", "better", "verdict"),
    [
        (0.1, 0.3, "higher", "better"),
        (0.1, 0.3, "lower", "worse"),
        (-0.3, -0.1, "higher", "worse"),
        (-0.3, -0.1, "lower", "better"),
        (-0.1, 0.1, "higher", "unclear"),
        (0.0, 0.1, "higher", "unclear"),
        (float("nan"), float("nan"), "higher", "unclear"),
    ],
)
def test_the_better_system_is_marked_by_the_interval_and_at_the_end_of_the_axis(low, high, better, verdict):
    one = row(low=low, mean=(low + high) / 2 if low == low else 0.2, high=high, better=better)
    axes = drawn(one)
    assert one.verdict == verdict and axes.lines[0].get_color() == COLOURS[verdict]
    at_the_right = "capo" if better == "higher" else "sft"
    assert axes.get_xlabel().endswith(f"{at_the_right} is better \N{RIGHTWARDS ARROW}")


def test_only_metrics_of_one_scale_and_direction_share_an_axis():
    rows = [row(), row("RadCliQ-v1", better="lower", bounded=False), row("ROUGE-L"), row("CIDEr", bounded=False)]
    rows += [row(one.metric, better=one.better, bounded=one.bounded, second="other") for one in rows]
    shown = texts(*rows, row("errors", better="lower"))
    scales = [text.removeprefix("Scale of ") for text in shown if text.startswith("Scale of ")]
    shared = [f"metrics between -1 and 1 ({better} is better)" for better in ("higher", "lower")]
    assert scales == [shared[0], "RadCliQ-v1", "CIDEr", shared[1]]
    named = [text for text in shown if text.startswith(("BLEU-2, ", "ROUGE-L, "))]  # of a metric below one another
    assert named == [f"{metric}, {second} - sft" for metric in ("BLEU-2", "ROUGE-L") for second in ("capo", "other")]


def test_hostile_names_do_no_harm_and_the_same_rows_give_the_same_bytes():
    evil = '</text><script>alert("1")</script>\x1b[31m\ud800 $\\frac' + "a" * 90
    rows = [row(second=evil), row("ROUGE-L", second=evil)]
    made = forest_plot(rows)
    assert made.encode() and made == forest_plot(rows)
    assert not [element for element in ElementTree.fromstring(made).iter() if element.tag.endswith("script")]
    assert max(map(len, texts(*rows))) < 140
