"""dashboard.html and compare.html: complete, small, self-contained; text of models and data does nothing in them."""

import json
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from made_run import CONFIG, change_rollouts, healthy_rows, make_run, study_ids, write_lines
from PIL import Image

from radflow.dashboard.build import build_dashboard
from radflow.dashboard.charts import MOST_POINTS, buckets, curve
from radflow.dashboard.compare import compare_runs, distinct_names, find_differences
from radflow.dashboard.render import number, script_json
from radflow.dashboard.run_files import RunFiles, evenly, reward_parts
from radflow.dashboard.studies import LONGEST_TEXT, StudySource, shorten
from radflow.pipeline.command_line import TRAIN_COMMANDS, run_command

VOID = {"meta", "link", "img", "br", "input", "rect", "circle", "line"}
EVIL = "<script>alert(1)</script> </script><img src=x onerror=alert(2)> \u2028 \x00 \ud800 {{ 7 * 7 }} & \"'"


class Checked(HTMLParser):
    """The elements of a page, refusing what is not well-formed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(page)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, text):
        self.texts.append((self.open[-1] if self.open else "", text))

    def text(self):
        return " ".join(text for tag, text in self.texts if tag not in ("script", "style"))

    def data(self):
        start = self.elements.index(("script", {"type": "application/json", "id": "data"}))
        assert start
        return json.loads(next(text for tag, text in self.texts if tag == "script"))


def read_dashboard(folder):
    return Checked(build_dashboard(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return read_dashboard(make_run(tmp_path_factory.mktemp("runs") / "made"))


def test_nothing_on_the_page_comes_from_elsewhere(page):
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "base")
        assert not any(name.startswith("on") for name in attributes), attributes
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "#").startswith(("#", "data:")), attributes
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy and "http" not in policy


def test_every_part_of_a_run_is_shown(page):
    text = page.text()
    for wanted in (
        "made-up",
        "steps",
        "123.0 s",
        "threshold",
        "trained on",
        "Hardest cases",
        "critical",
        "Total reward",
        "+0.300 to +0.500",
        "best constant",
        "SFT: 50.0 % distinct",
        "BLEU-2",
    ):
        assert wanted in text, wanted
    titles = {chart["title"] for chart in page.data()["charts"].values()}
    assert {
        "Reward",
        "BLEU-2",
        "KL to the SFT policy",
        "Entropy",
        "Clipped tokens",
        "Loss",
        "Importance ratio",
        "Groups without spread",
        "Report length",
        "Cut at the token limit",
        "Missing rewards",
        "Gradient norm",
        "Speed",
        "Time of a step, by phase",
        "Composite score s",
    } <= titles


def test_the_numbers_on_the_curves_are_those_of_the_run(page):
    charts = {chart["title"]: chart for chart in page.data()["charts"].values()}
    rows = healthy_rows(30)
    (reward,) = charts["Reward"]["series"]
    assert reward["x"] == list(range(1, 31))
    assert reward["y"] == pytest.approx([row["reward"] for row in rows], rel=1e-4)
    assert reward["high"] == pytest.approx([row["reward"] + row["reward_std"] for row in rows], rel=1e-4)
    assert reward["low"] == pytest.approx([row["reward"] - row["reward_std"] for row in rows], rel=1e-4)
    # each part is 0, 0.25, 0.5 and 0.75 for the four reports of every study: mean 0.375, std sqrt(0.078125) = 0.2795
    assert charts["BLEU-2"]["series"][0]["low"] == pytest.approx([0.375 - 0.2795] * 30, abs=1e-3)
    assert charts["Groups without spread"]["series"][0]["y"] == [100 * row["zero_std_groups"] / 4 for row in rows]
    # 1100 tokens over both passes: 550 sampled in 1.2 s, 1100 trained on in 2.4 s
    assert [s["y"][0] for s in charts["Speed"]["series"]] == pytest.approx([458.33, 458.33], rel=1e-4)


def test_rewards_of_any_name_get_a_chart_and_missing_counts_are_no_reward(tmp_path):
    folder = make_run(tmp_path / "run")
    rows = [
        row
        | {
            "reward_radgraph_f1": 0.3,
            "reward_missing_consistency_llm": 2,
            "seconds_bertscore": 0.5,
            "held_out_label_f1_rules": 0.5,
            "brand_new": 1.5,
        }
        for row in healthy_rows(30)
    ]
    write_lines(folder / "rl/metrics.jsonl", rows)
    charts = {chart["title"]: chart for chart in read_dashboard(folder).data()["charts"].values()}
    assert "RadGraph F1" in charts and "brand_new" in charts and "Missing consistency llm" not in charts
    assert [s["name"] for s in charts["Missing rewards"]["series"]] == ["whole reward", "Consistency llm"]
    assert [s["name"] for s in charts["Time inside other parts"]["series"]] == ["bertscore"]
    assert reward_parts(rows) == ["bleu2", "rouge_l", "entity_f1_rules", "label_f1_rules", "radgraph_f1"]


def test_texts_of_models_and_data_stay_texts(tmp_path):
    folder = make_run(tmp_path / EVIL.partition(" ")[0].replace("/", ""), text=EVIL)
    scores = [{"id": EVIL, "s": -1.0, "bleu2": 0.1}, *({"id": i, "s": 0.5, "bleu2": 0.2} for i in study_ids(20))]
    write_lines(folder / "explore/scores.jsonl", scores)
    write_lines(folder / "explore/predictions/part_00000.jsonl", [{"id": row["id"], "report": EVIL} for row in scores])
    labels = [{"id": row["id"], "critical": True, "reason": EVIL, "source": EVIL} for row in scores]
    write_lines(folder / "criticality.jsonl", labels)
    rows = [row | {f"reward_{EVIL}": 1.0} for row in healthy_rows(30)]
    write_lines(folder / "rl/metrics.jsonl", rows)
    source = build_dashboard(folder).read_text(encoding="utf-8")
    page = Checked(source)
    assert [tag for tag, _ in page.elements].count("script") == 2 and "\x00" not in source
    assert not any("\u2028" in text for tag, text in page.texts if tag == "script")
    assert not [a for _, a in page.elements if "onerror" in a or a.get("src") == "x"]
    report = page.data()["rollouts"]["steps"][0]["studies"][0]["reports"][0]
    assert report["text"].startswith("<script>alert(1)</script>") and "{{ 7 * 7 }}" in page.text()


def edit_first(folder, step, **changed):
    """Change the first report of each study of a step's rollouts."""
    change_rollouts(folder, step, lambda rows: [row["reports"][0].update(changed) for row in rows])


def test_edited_reports_are_named_and_count_in_no_mean(tmp_path):
    folder = make_run(tmp_path / "run", steps=3)
    edit_first(folder, 1, edited="missed Edema: added", parts={"bleu2": 9.0})
    edit_first(folder, 2, edited=None)
    page = read_dashboard(folder)
    shown = [step["studies"][0]["reports"] for step in page.data()["rollouts"]["steps"]]
    assert [[report["edited"] for report in reports] for reports in shown] == [
        [None] * 4,
        ["missed Edema: added", None, None, None],
        [None] * 4,
    ]
    (bleu2,) = next(c for c in page.data()["charts"].values() if c["title"] == "BLEU-2")["series"]
    # 0, 0.25, 0.5, 0.75: mean 0.375, deviation 0.2795; without the first: mean 0.5, deviation sqrt(0.125 / 3) = 0.2041
    assert bleu2["high"] == pytest.approx([0.6545, 0.7041, 0.6545], abs=1e-3)


def test_shares_of_the_variance_are_lines_of_one_chart_and_what_a_run_lacks_is_no_chart(tmp_path):
    folder = make_run(tmp_path / "run", steps=12)
    optional = {"Edited reports", "Gain of an edit", "Groups drawn anew"}
    titles = {chart["title"] for chart in read_dashboard(folder).data()["charts"].values()}
    assert not titles & {*optional, "Share of each part in the variance within groups"}
    new = {"edited_reports": 3, "edit_gain": 0.4, "resampled_groups": 2, "reward_overlong": -0.1}
    new |= {"variance_share_bleu2": -0.01, "variance_share_consistency_rules": 1.01}
    write_lines(folder / "rl/metrics.jsonl", [row | new for row in healthy_rows(12)])
    page = read_dashboard(folder)
    charts = {chart["title"]: chart for chart in page.data()["charts"].values()}
    assert optional | {"Punishment near the token limit"} <= charts.keys() and not new.keys() & charts.keys()
    shares = charts["Share of each part in the variance within groups"]["series"]
    assert [(line["name"], line["y"][0]) for line in shares] == [("BLEU-2", -0.01), ("Consistency (rules)", 1.01)]


def test_a_huge_report_is_cut_visibly(tmp_path):
    folder = make_run(tmp_path / "run", text="x" * 2_000_000, steps=3, studies=1)
    assert build_dashboard(folder).stat().st_size < 1_000_000
    assert shorten("a" * (LONGEST_TEXT + 1234)).endswith("a … [cut here: 1,234 more characters]")


def test_json_inside_a_script_ends_neither_it_nor_a_line():
    text = script_json({"a": "</script>\u2028<!--", "b": [float("nan"), float("inf"), 1 / 3], "c": None})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"a": "</script>\u2028<!--", "b": [None, None, 0.33333], "c": None}


def test_a_killed_run_is_read(tmp_path):
    folder = make_run(tmp_path / "run")
    path = folder / "rl/metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 30, "reward": 2.')
    (folder / "eval/table.json").unlink()
    (folder / "eval/table.md").unlink()
    page = read_dashboard(folder)
    assert len(page.data()["charts"]["chart4"]["series"][0]["x"]) == 30
    assert "not finished" in page.text() and "have not been compared yet" in page.text()


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    text = read_dashboard(tmp_path).text()
    assert text.count("has taken no step yet") == 2 and "No rollouts yet" in text


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="expected the folder of a run"):
        run_command("train.py", ["dashboard", str(tmp_path)], TRAIN_COMMANDS, None)


def test_five_thousand_steps_are_thinned_and_nothing_extreme_is_lost(tmp_path):
    folder = make_run(tmp_path / "run", steps=5000, studies=2)
    rows = healthy_rows(5000)
    rows[3210]["ratio_max"] = 99.0
    write_lines(folder / "rl/metrics.jsonl", rows)
    began = time.monotonic()
    page = read_dashboard(folder)
    assert time.monotonic() - began < 20 and (folder / "dashboard.html").stat().st_size < 20_000_000
    charts = {chart["title"]: chart for chart in page.data()["charts"].values()}
    largest = charts["Importance ratio"]["series"][0]
    assert len(largest["x"]) == MOST_POINTS and max(largest["high"]) == 99.0
    assert (largest["x"][0], largest["x"][-1]) == (1, 5000)
    shown = [step["step"] for step in page.data()["rollouts"]["steps"]]
    assert len(shown) == 32 and (shown[0], shown[-1]) == (1, 5000)
    assert "rl: 5,000 steps" in page.text() and "32 of 5000 steps, evenly spaced" in page.text()


def test_buckets_cover_every_step_once():
    for count in (1, 2, 499, 500, 501, 777, 5000, 12345):
        groups = buckets(count)
        assert [i for group in groups for i in group] == list(range(count)) and len(groups) <= MOST_POINTS
        assert len(groups[0]) == len(groups[-1]) == 1 and all(groups)


def test_a_curve_keeps_gaps_and_skips_steps_that_logged_nothing():
    rows = [{"step": 0, "a": 1.0}, {"step": 1}, {"step": 2, "a": None}, {"step": 3, "a": float("nan")}]
    line = curve(rows, "a", "a")
    assert (line.x, line.y, line.low) == ([1, 3, 4], [1.0, None, None], None)


def test_evenly_by_hand():
    assert evenly(range(10), 4) == [0, 3, 6, 9] and evenly([1, 2], 5) == [1, 2] and evenly([1, 2, 3], 1) == [3]


def test_a_moved_manifest_or_image_leaves_a_placeholder(tmp_path):
    data = CONFIG["data"] | {"source": "manifest", "manifest": str(tmp_path / "gone.jsonl")}
    folder = make_run(tmp_path / "run", config=CONFIG | {"data": data})
    assert "no image here" in read_dashboard(folder).text()
    row = {"id": study_ids(1)[0], "images": ["a.png", "gone.png"], "findings": "Clear.", "impression": ""}
    write_lines(tmp_path / "gone.jsonl", [row])
    Image.fromarray(np.zeros((700, 900), dtype=np.uint8)).save(tmp_path / "a.png")
    assert StudySource.of_config(CONFIG | {"data": data}).images(row["id"], 64) == []  # one of two is gone
    write_lines(tmp_path / "gone.jsonl", [row | {"images": ["a.png"]}])
    (uri,) = StudySource.of_config(CONFIG | {"data": data}).images(row["id"], 64)
    assert uri.startswith("data:image/jpeg;base64,") and len(uri) < 2000  # 64 x 50 pixels of the 900 x 700
    assert row["findings"] in read_dashboard(folder).text()


def test_compared_runs_share_charts_and_differ_where_they_differ(tmp_path, capsys):
    first, second = make_run(tmp_path / "a/run"), make_run(tmp_path / "b/run", steps=10)
    config = CONFIG | {"rl": CONFIG["rl"] | {"beta": 0.5, "optimizer": {"lr": 1e-3}}, "run_dir": "elsewhere"}
    (second / "config.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "compare.html"
    run_command("train.py", ["compare", str(first), str(second), "--out", str(out)], TRAIN_COMMANDS, None)
    table = capsys.readouterr().out
    assert re.search(r"rl.optimizer.lr +0.0002 +0.001\n", table) and re.search(r"rl.beta +None +0.5\n", table)
    assert "run_dir" not in table and re.search(r"Total reward +0.400 \(\+0.400\)", table)
    page = Checked(out.read_text(encoding="utf-8"))
    charts = {chart["title"]: chart for chart in page.data()["charts"].values()}
    assert [(s["name"], len(s["x"])) for s in charts["Reward"]["series"]] == [("a/run", 30), ("b/run", 10)]
    with pytest.raises(SystemExit, match="at least two run folders"):
        run_command("train.py", ["compare", str(first), "--out", str(out)], TRAIN_COMMANDS, None)


def test_find_differences_name_nested_keys():
    found = find_differences(
        [
            {"a": {"b": 1, "c": 2}, "run_dir": "x"},
            {"a": {"b": 1, "c": 3}, "run_dir": "y", "tracking": {"dashboard": True}},
        ]
    )
    assert found == {"a.c": [2, 3]}


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    assert distinct_names([tmp_path / "a/x", tmp_path / "b/x"]) == ["a/x", "b/x"]
    same = distinct_names([tmp_path / "x", tmp_path / "x"])
    assert len(set(same)) == 2


def test_numbers_read_alike():
    assert [number(v) for v in (0.12345, 1234.5, 120.25, 7, None)] == ["0.123", "1,234", "120.2", "7", "\N{EN DASH}"]
    assert number(-0.5, signed=True) == "\N{MINUS SIGN}0.500"


def test_seconds_of_a_stage_add_up_over_its_starts(tmp_path):
    assert RunFiles.read(make_run(tmp_path / "run")).seconds() == {"sft": 61.5, "explore": 61.5, "rl": 123.0}


def test_compare_reads_what_it_is_given(tmp_path):
    with pytest.raises(ValueError, match="expected the folder of a run"):
        compare_runs([tmp_path, tmp_path], tmp_path / "out.html")
