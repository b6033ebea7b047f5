import json

import pytest

from radflow.rewards.metrics.radcliq import SUB_SCORES, RadCliq, radcliq_v0, radcliq_v1

NAMES = ("radgraph", "bertscore", "sembscore", "bleu2")  # in the order of the regressions


def sub_scores(row):
    return [row[name] for name in NAMES]


def test_recorded_points(shared):
    cases = json.loads((shared / "data/metric_oracles.json").read_text())["radcliq_cases"]
    assert len(cases) == 8
    for case in cases:
        assert radcliq_v0(*sub_scores(case)) == pytest.approx(case["radcliq_v0"], abs=1e-10)
        assert radcliq_v1(*sub_scores(case)) == pytest.approx(case["radcliq_v1"], abs=1e-10)


def test_published_tables_within_rounding(shared):
    """RadCliQ is linear, so the printed means give the printed value but for half a unit of each third decimal."""
    rows = json.loads((shared / "data/metric_oracles.json").read_text())["radcliq_tables"]
    assert len(rows) == 16
    half = dict.fromkeys(NAMES, 0.0005)
    for version, key in ((radcliq_v0, "radcliq_v0"), (radcliq_v1, "radcliq_v1")):
        slopes = [abs(c / s) for c, s in zip(version.coefficients, version.scales, strict=True)]
        bound = 0.0005 + sum(slope * half[name] for slope, name in zip(slopes, NAMES, strict=True))
        assert bound == pytest.approx({"radcliq_v0": 0.0041, "radcliq_v1": 0.0025}[key], abs=1e-4)
        for row in rows:
            assert abs(version(*sub_scores(row)) - row[key]) <= bound, row


def test_nothing_and_everything_by_the_written_out_formula():
    nothing = [0.0] * 4
    assert radcliq_v1(*nothing) == pytest.approx(2.4501430833, abs=1e-9)
    assert radcliq_v0(*nothing) == pytest.approx(5.5161608041, abs=1e-9)
    # v1 = 2.4501430833 - 1.2452163302 - 1.6508453287 - 0.9947717072
    assert radcliq_v1(*[1.0] * 4) == pytest.approx(-1.4406902828, abs=1e-9)


def test_bleu_is_a_bad_sign_in_v0_and_none_in_v1():
    low, high = ((0.2, 0.4, 0.4, bleu) for bleu in (0.0, 1.0))
    assert radcliq_v0(*high) - radcliq_v0(*low) == pytest.approx(0.7139418527, abs=1e-9)
    assert radcliq_v1(*high) == pytest.approx(radcliq_v1(*low), abs=1e-10)


class Column:
    """A metric with one value."""

    def __init__(self, value):
        self.value = value

    def __call__(self, candidates, references):
        return [self.value] * len(candidates)


def test_the_metric_gives_each_sub_score_its_place():
    metric = RadCliq(radcliq_v0, [Column(value) for value in (0.1, 0.2, 0.3, 0.4)])
    assert metric(["a", "b"], ["c", "d"]) == [radcliq_v0(0.1, 0.2, 0.3, 0.4)] * 2
    assert SUB_SCORES == ("radgraph_f1_rexrank", "bertscore", "sembscore", "bleu2")
