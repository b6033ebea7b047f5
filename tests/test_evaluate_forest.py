"""The forest plot of a comparison: where points are, which side is better, which metrics share an axis."""

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radflow.evaluation.forest import AXIS, Difference, _ticks, forest_plot
from radflow.rewards.statistics import Interval

SVG = "{http://www.w3.org/2000/svg}"


def row(metric="BLEU-2", low=0.0, mean=0.5, high=1.0, better="higher", bounded=True, second="capo"):
    return Difference(metric, "sft", second, Interval(mean, low, high), better, bounded, "0.012")


def drawn(*rows):
    return ElementTree.fromstring(forest_plot(rows))


def texts(svg):
    return [element.text for element in svg.iter(f"{SVG}text")]


def test_point_interval_and_zero_line_by_hand():
    svg = drawn(row())  # the axis has 5 % more than [0, 1] on both sides: 0.55 of 1.1 is its middle
    (point,), lines = svg.iter(f"{SVG}circle"), {line.get("class"): line for line in svg.iter(f"{SVG}line")}
    left = float(point.get("cx")) - AXIS / 2
    zero, interval = lines["zero"], lines["interval unclear"]
    assert float(zero.get("x1")) - left == pytest.approx(AXIS * 0.05 / 1.1, abs=0.1)
    ends = [(float(interval.get(end)) - left) / AXIS for end in ("x1", "x2")]
    assert ends == pytest.approx([0.05 / 1.1, 1.05 / 1.1], abs=1e-3)
    assert "+0.500 [+0.000, +1.000]  p 0.012" in texts(svg)


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
    svg = drawn(row(low=low, mean=(low + high) / 2 if low == low else 0.2, high=high, better=better))
    (point,) = svg.iter(f"{SVG}circle")
    assert point.get("class") == verdict
    at_the_right = "capo" if better == "higher" else "sft"
    assert f"{at_the_right} is better \N{RIGHTWARDS ARROW}" in texts(svg)


def test_only_metrics_of_one_scale_and_direction_share_an_axis():
    rows = [row(), row("RadCliQ-v1", better="lower", bounded=False), row("ROUGE-L"), row("CIDEr", bounded=False)]
    rows += [row(one.metric, better=one.better, bounded=one.bounded, second="other") for one in rows]
    shown = texts(drawn(*rows, row("errors", better="lower")))
    scales = [text.removeprefix("Scale of ") for text in shown if text.startswith("Scale of ")]
    shared = [f"metrics between -1 and 1 ({better} is better)" for better in ("higher", "lower")]
    assert scales == [shared[0], "RadCliQ-v1", "CIDEr", shared[1]]
    at = shown.index("BLEU-2")  # the pairs of a metric are below one another
    assert [text for text in shown[at:] if " - " in text][:4] == ["capo - sft", "other - sft"] * 2
    assert "second is better \N{RIGHTWARDS ARROW}" in shown


def test_hostile_names_do_no_harm_and_nothing_has_an_id():
    evil = '</text><script>alert("1")</script>\x1b[31m\ud800' + "a" * 90
    made = forest_plot([row(second=evil), row("ROUGE-L", second=evil)])
    assert made.encode() and made == forest_plot([row(second=evil), row("ROUGE-L", second=evil)])
    svg = ElementTree.fromstring(made)
    known = {"svg", "title", "style", "rect", "text", "line", "circle"}
    assert {element.tag.removeprefix(SVG) for element in svg.iter()} == known
    assert not any("id" in element.attrib or "href" in element.attrib for element in svg.iter())
    assert max(map(len, texts(svg))) < 120


@given(low=st.floats(-1e6, 0), high=st.floats(0, 1e6))
def test_the_ticks_are_few_and_round_and_one_is_zero(low, high):
    if high - low < 1e-6:
        return
    ticks = _ticks(low, high)
    assert 0 in ticks and 4 <= len(ticks) <= 11 and low <= ticks[0] and ticks[-1] <= high
