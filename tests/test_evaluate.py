# ruff: noqa: RUF001
"""`evaluate.py score`: numbers by hand, baselines, what is unavailable, files written."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from tiny_encoders import tiny_bert, tiny_chexbert, tiny_roberta

from radflow import evaluate
from radflow.evaluation.measuring import MeasureConfig, Measures
from radflow.evaluation.rules import Rules
from radflow.evaluation.score import ScoreConfig, score
from radflow.evaluation.table_metrics import inverted, label_cells, table_metrics
from radflow.evaluation.weights import Weights
from radflow.pipeline.comparison import Variety
from radflow.rewards.metrics.lexical import Bleu
from radflow.rewards.rules.chexpert_rules import LABELS
from radflow.rewards.statistics import Interval

NORMAL = "Findings: The heart is normal. No effusion. Impression: No acute abnormality."
EFFUSION = "Findings: The heart is normal. Small left effusion. Impression: Small left effusion."
EDEMA = "Findings: Pulmonary edema. Impression: Pulmonary edema."
ROWS = {row.name: row for row in table_metrics(LABELS)}


def write(path, reports):
    path.write_text(json.dumps({key: {"report": value} for key, value in reports.items()}))
    return path


@pytest.fixture
def references(tmp_path):
    return write(tmp_path / "r.json", {"a": NORMAL, "b": EFFUSION, "c": EDEMA})


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No weights of the user's get into a test."""
    monkeypatch.setenv("RADFLOW_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def run(tmp_path, *options):
    """summary.json of a score, and the folder."""
    out = tmp_path / "out"
    evaluate.main(["score", "--num-resamples", "200", "--out", str(out), *map(str, options)])
    return json.loads((out / "summary.json").read_text()), out


def by_name(summary):
    return {entry["metric"]: entry for entry in summary["metrics"]}


def test_perfect_predictions_have_the_best_value_of_every_metric_by_rules(tmp_path, references, capsys):
    summary, out = run(tmp_path, "--predictions", references, "--references", references)
    found = by_name(summary)
    best = ("bleu2", "rouge_l", "label_f1_rules", "entity_f1_rules", "consistency_rules", "rules_micro_f1_14")
    assert {name: found[name]["value"] for name in best} == dict.fromkeys(best, pytest.approx(1.0))
    assert found["bleu2"]["low"] == found["bleu2"]["high"] == pytest.approx(1.0) and found["bleu2"]["studies"] == 3
    shown = capsys.readouterr().out
    assert "predictions: 100.0 % distinct reports" in shown and (out / "summary.txt").read_text() in shown


def test_a_value_by_hand_in_every_file(tmp_path, references):
    # b is told as a: "small left" is not there; c is empty. BLEU-2 is that of the metric itself, and its mean.
    predictions = write(tmp_path / "p.json", {"a": NORMAL, "b": NORMAL, "c": ""})
    summary, out = run(tmp_path, "--predictions", predictions, "--references", references)
    expected = Bleu(2)([NORMAL, NORMAL, ""], [NORMAL, EFFUSION, EDEMA])
    assert by_name(summary)["bleu2"]["value"] == pytest.approx(sum(expected) / 3) and expected[2] == 0
    with (out / "per_study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["bleu2"]) for row in rows] == expected and [row["study_id"] for row in rows] == ["a", "b", "c"]
    lines = [json.loads(line) for line in (out / "per_study.jsonl").read_text().splitlines()]
    assert lines[1]["labels_rules"] == {"prediction": ["No Finding"], "reference": ["Pleural Effusion"]}
    # labels: a right (No Finding), b wrong on both sides, c missed: 2 TP / (2 TP + FP + FN) = 2 / (2 + 1 + 2)
    assert by_name(summary)["rules_micro_f1_14"]["value"] == pytest.approx(2 / 5)
    # No Finding: TP 1, FP 1, FN 0 -> 2/3; Pleural Effusion and Edema, missed, 0; nobody has one of the 11 others
    assert by_name(summary)["rules_macro_f1_14"]["value"] == pytest.approx(2 / 9)
    assert summary["left_out"] == {"empty predictions, scored as empty texts": ["c"]}
    for ending, said in (("md", "| BLEU-2 "), ("tex", r"\begin{tabular}"), ("txt", "BLEU-2")):
        assert said in (out / f"summary.{ending}").read_text()


def test_a_report_without_the_impression_that_its_reference_has_agrees_on_nothing(tmp_path, references):
    predictions = write(tmp_path / "p.json", {"a": "Findings: Clear.", "b": EFFUSION, "c": EDEMA})
    summary, _ = run(tmp_path, "--predictions", predictions, "--references", references)
    assert by_name(summary)["label_f1_rules"]["value"] == pytest.approx(2 / 3)
    assert by_name(summary)["consistency_rules"]["value"] == pytest.approx(1 / 3)  # -1, 1, 1


def test_sections_are_compared_alone_where_the_protocol_says_so(tmp_path, references):
    predictions = write(tmp_path / "p.json", {"a": "No acute abnormality.", "b": "Small left effusion.", "c": "Clear."})
    arguments = ("--predictions", predictions, "--references", references, "--protocol", "impression")
    found = by_name(run(tmp_path, *arguments)[0])
    assert found["label_f1_rules"]["value"] == pytest.approx(2 / 3)
    assert found["consistency_rules"]["unavailable"] == "compares Findings with Impression: protocol rexrank only"


def test_what_has_no_weights_is_unavailable_with_the_command_and_never_a_number(tmp_path, references, capsys):
    options = ("--predictions", references, "--references", references)
    found = by_name(run(tmp_path, *options, "--all")[0])
    for name in ("bertscore", "sembscore", "radgraph_f1_rexrank", "chexbert_micro_f1_14", "radcliq_v1"):
        assert found[name]["value"] is None and found[name]["unavailable"]
    assert "--fetch bertscore" in found["bertscore"]["unavailable"]
    assert "--fetch chexbert bert --accept-licence" in found["sembscore"]["unavailable"]
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("RadCliQ-v1"))
    assert "unavailable" in line and "0.000" not in line
    assert run(tmp_path, *options)[0]["metrics"] == [*found.values()]  # the file holds them all the same
    rows, foot = capsys.readouterr().out.split("\n\nprotocol")
    assert "RadCliQ-v1" not in rows and "unavailable" not in foot and "--fetch" not in foot
    (line,) = (line for line in foot.splitlines() if line.startswith("not computed here: "))
    assert "RadCliQ-v1, 1/RadCliQ-v1" in line and line.endswith("; --all lists them with reasons and commands")


def test_models_that_are_there_are_used_and_a_broken_one_is_said(tmp_path, references):
    bert = tiny_bert(tmp_path / "weights" / "bert-base-uncased")
    tiny_chexbert(tmp_path / "weights" / "chexbert.pth", bert)
    tiny_roberta(tmp_path / "weights" / "distilroberta-base", layers=5)
    (tmp_path / "weights" / "radgraph.tar.gz").mkdir()
    found = by_name(
        run(tmp_path, "--predictions", references, "--references", references, "--weights.device", "cpu")[0]
    )
    assert found["sembscore"]["value"] == pytest.approx(1.0) and found["bertscore"]["value"] == pytest.approx(1.0)
    assert 0 < found["chexbert_micro_f1_14"]["value"] <= 1
    assert found["radgraph_f1_rexrank"]["unavailable"].startswith("does not load:")


def test_baselines_are_chosen_on_training_reports_for_each_metric(tmp_path, references):
    # b and c are scored themselves: were their training reports read, the effusion would be the best constant
    train = write(tmp_path / "t.json", {"x": NORMAL, "y": NORMAL, "z": EFFUSION, "b": EFFUSION, "c": EFFUSION})
    arguments = ("--predictions", references, "--references", references, "--train", train)
    summary, _ = run(tmp_path, *arguments)
    assert summary["constant_reports"]["label_f1_rules"] == NORMAL
    bleu = sum(Bleu(2)([NORMAL] * 3, [NORMAL, EFFUSION, EDEMA])) / 3
    assert by_name(summary)["bleu2"]["baselines"]["best constant"] == pytest.approx(bleu)
    assert by_name(summary)["bleu2"]["baselines"]["random"] is not None
    assert "2 studies of t.json are scored themselves" in "".join(summary["notes"])
    assert "needs a manifest" in summary["baselines_unavailable"]["nearest neighbour"]
    summary, _ = run(tmp_path, "--predictions", references, "--references", references)
    assert "training references" in summary["baselines_unavailable"]["best constant"]


def test_the_nearest_neighbour_copies_by_image_and_the_manifest_holds_everything(tmp_path):
    rows, reports = [], {"x": NORMAL, "y": EFFUSION, "a": EFFUSION, "b": NORMAL}
    for study_id, column in (("x", 4), ("y", 20), ("a", 19), ("b", 5)):
        pixels = np.zeros((32, 32), dtype=np.uint8)
        pixels[:, :column] = 200
        Image.fromarray(pixels).save(tmp_path / f"{study_id}.png")
        findings, impression = reports[study_id].removeprefix("Findings: ").split(" Impression: ")
        split = "train" if study_id in "xy" else "test"
        rows.append(
            {
                "id": study_id,
                "split": split,
                "images": [f"{study_id}.png"],
                "findings": findings,
                "impression": impression,
            }
        )
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    predictions = write(tmp_path / "p.json", {"a": NORMAL, "b": NORMAL})
    summary, _ = run(tmp_path, "--predictions", predictions, "--manifest", manifest, "--split", "test")
    assert by_name(summary)["bleu2"]["baselines"]["nearest neighbour"] == pytest.approx(1.0)
    assert not summary["baselines_unavailable"] and not summary["left_out"]


def test_rexrank_files_hold_the_references_and_a_file_is_not_its_own(tmp_path, references):
    both = {"a": {"report": EFFUSION, "model_prediction": NORMAL}, "b": {"report": EDEMA, "model_prediction": EDEMA}}
    (tmp_path / "both.json").write_text(json.dumps(both))
    found = by_name(run(tmp_path, "--predictions", tmp_path / "both.json")[0])
    assert found["label_f1_rules"]["value"] == pytest.approx(0.5)
    with pytest.raises(SystemExit, match="expected references in the file of the predictions"):
        run(tmp_path, "--predictions", references)


def test_ids_on_one_side_only_are_listed(tmp_path, references, capsys):
    predictions = write(tmp_path / "p.json", {"a": NORMAL, "q": NORMAL})
    summary, _ = run(tmp_path, "--predictions", predictions, "--references", references)
    assert summary["left_out"] == {
        "references without a prediction, not scored": ["b", "c"],
        "predictions without a reference, not scored": ["q"],
    }
    assert "1 predictions without a reference, not scored: q" in capsys.readouterr().out


def test_workers_change_no_digit(tmp_path):
    texts = [f"{NORMAL} Study {i} has {i} nodules." for i in range(300)]
    names = ("bleu2", "labels_rules", "label_f1_rules")
    measures = [Measures(MeasureConfig(workers=n), Weights(tmp_path), Rules()) for n in (0, 2)]
    alone, together = (m.cells(texts, texts[1:] + texts[:1], title="t", names=names) for m in measures)
    assert all((alone[name] == together[name]).all() for name in names)


def test_a_lexicon_of_another_organ_compares_nothing(tmp_path, references):
    found = by_name(run(tmp_path, "--predictions", references, "--references", references)[0])
    assert "0 of 3 references name a keyword of the lexicon" in found["keyword_f1_rules"]["unavailable"]
    plaque = write(tmp_path / "k.json", {"a": "Findings: Soft plaque on the left. Impression: Plaque."})
    config = ScoreConfig(predictions=plaque, references=plaque, labeler="carotid_rules", num_resamples=200)
    (row,) = (row for row in score(config, Weights(tmp_path)).rows if row.metric.name == "keyword_f1_rules")
    assert row.interval.mean == 1


def test_tables_of_chinese_reports_say_that_their_metrics_are_by_character(tmp_path, capsys):
    chinese = write(tmp_path / "c.json", {"a": "超声所见：右侧颈动脉窦部可见斑块。超声提示：右侧斑块形成。"})
    summary, _ = run(tmp_path, "--predictions", chinese, "--references", chinese, "--labeler", "carotid_rules")
    found = by_name(summary)
    assert found["bleu2"]["label"] == "BLEU-2 by character" and found["rouge_l"]["value"] == 1
    assert any("not as published: 1 of 1 references" in note for note in summary["notes"])


def test_the_inverse_has_no_interval_where_that_of_the_mean_holds_zero():
    assert inverted(Interval(0.5, 0.25, 1.0)) == Interval(2.0, 1.0, 4.0)
    around = inverted(Interval(0.5, -0.1, 1.0))
    assert around.mean == 2.0 and np.isnan([around.low, around.high]).all()


def test_the_inverse_is_that_of_the_mean():
    # the mean of inverses would be (1.25 + 2 + 5) / 3
    assert ROWS["inverse_radcliq_v1"].value({"radcliq_v1": np.array([0.8, 0.5, 0.2])}) == pytest.approx(2.0)


def test_corpus_statistics_are_over_sums_and_not_means_of_parts():
    rows = np.eye(14, dtype=int)[[0, 0, 1]], np.eye(14, dtype=int)[[0, 1, 1]]
    cells = {"labels_chexbert": label_cells(*rows)}
    assert ROWS["chexbert_micro_f1_14"].value(cells) == pytest.approx(2 / 3)
    # two labels have F1 of 2/3; the twelve that nobody has are left out
    assert ROWS["chexbert_macro_f1_14"].value(cells) == pytest.approx(2 / 3)
    assert ROWS["chexbert_micro_f1_5"].value(cells) == pytest.approx(2 / 3)  # only Cardiomegaly: TP 1, FN 1


def test_variety_counts_copies_and_repetition():
    found = Variety.of(["No effusion. No effusion.", "Clear.", "Clear.", "Clear."])
    assert (found.distinct, found.most_common, found.words) == (0.5, 0.75, 7 / 4)
    assert found.repeated == pytest.approx(1 / 5)


def test_the_real_studies_rate_a_constant_report_high(shared, tmp_path):
    # METRICS.md: one constant report scores a BLEU-2 of 0.205 on IU X-ray, above most published systems
    manifest = shared / "data" / "iu_xray" / "manifest.jsonl"
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    chosen = [row for row in rows if row["split"] == "val"][:100] + [r for r in rows if r["split"] == "train"][:40]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    predictions = {row["id"]: f"Findings: {row['findings']} Impression: {row['impression']}" for row in chosen[:100]}
    ids = list(predictions)
    shuffled = dict(zip(ids, [predictions[i] for i in ids[1:] + ids[:1]], strict=True))
    config = ScoreConfig(
        predictions=write(tmp_path / "p.json", shuffled),
        references=tmp_path / "m.jsonl",
        train=tmp_path / "m.jsonl",
        split="val",
        baseline_sample=20,
        num_resamples=200,
    )
    row = next(row for row in score(config, Weights(tmp_path)).rows if row.metric.name == "bleu2")
    assert row.studies == 100 and 0.15 < row.baselines["random"] < row.baselines["best constant"] < 0.35
