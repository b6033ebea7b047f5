"""Files as people have them, through `evaluate.py`: rows without ids, bare sections, names that steer a terminal."""

import csv
import json

import pytest

from radflow import evaluate

BARE = ["The heart is enlarged. Small left effusion.", "The lungs are clear.", "Right lower lobe pneumonia."]
WHOLE = [f"Findings: {text} Impression: {text}" for text in BARE]
EVIL = ["a\x1b[2J\nx|y", "=1+1", "\u202ed"]


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("RADFLOW_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def save(tmp_path):
    def write(name, content):
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path / name

    return write


@pytest.fixture
def score(tmp_path):
    def run(predictions, references, *options):
        words = ["--predictions", predictions, "--references", references, "--num-resamples", 100, *options]
        evaluate.main(["score", *map(str, words), "--out", str(tmp_path / "out")])
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        rows = [json.loads(line) for line in (tmp_path / "out" / "per_study.jsonl").read_text().split("\n")[:-1]]
        return summary, {row["study_id"]: row for row in rows}

    return run


def values(summary):
    return {row["metric"]: row["value"] for row in summary["metrics"]}


def test_bare_findings_of_a_table_are_scored_as_findings(save, score):
    rows = "".join(f"s{n},{text}\n" for n, text in enumerate(BARE))
    r2gen = {"train": [], "test": [{"id": f"s{n}", "report": text} for n, text in enumerate(BARE)]}
    summary, _ = score(save("p.csv", f"id,report\n{rows}"), save("r.json", r2gen), "--protocol", "findings")
    assert values(summary)["entity_f1_rules"] == values(summary)["bleu2"] == 1
    assert "3 references without sections, taken as the findings: s0, s1, s2" in summary["notes"]
    assert summary["left_out"]["predictions without sections, taken as the findings"] == ["s0", "s1", "s2"]


def test_whole_references_without_sections_have_entities_and_labels_and_no_consistency(save, score):
    references = save("r.json", {f"s{n}": text for n, text in enumerate(BARE)})
    summary, _ = score(save("p.json", {f"s{n}": text for n, text in enumerate(WHOLE)}), references)
    found = values(summary)
    assert found["entity_f1_rules"] == found["label_f1_rules"] == found["rules_micro_f1_14"] == 1
    assert found["consistency_rules"] is None
    assert "3 references without sections, compared as a whole, without consistency: s0, s1, s2" in summary["notes"]


def test_rows_without_ids_are_paired_in_order_under_the_ids_of_the_other_file(save, score):
    lines, ids = "\n".join(BARE), {name: [text] for name, text in zip("cab", BARE, strict=True)}
    for predictions, references in (
        (save("p.txt", lines), save("r.json", ids)),
        (save("r.json", ids), save("p.txt", lines)),
    ):
        summary, rows = score(predictions, references)
        assert list(rows) == ["c", "a", "b"] and values(summary)["bleu2"] == 1
        assert "p.txt: no id; its 3 rows are numbered and paired in order" in summary["notes"]
    _, rows = score(save("p.txt", lines), save("q.json", BARE))
    assert list(rows) == ["1", "2", "3"]


def test_other_numbers_of_rows_are_refused(save, refuse, tmp_path):
    words = ["score", "--predictions", save("p.txt", "Clear.\n"), "--references", save("r.txt", "Clear.\n\nWet.\n")]
    said = refuse(evaluate.main, words)
    assert said.endswith(
        "p.txt: expected as many rows as references (3), since rows without ids are paired in order, "
        "got 1; add ids, or choose the split of the references"
    )


def test_systems_in_two_orders_are_refused_if_the_references_have_no_ids(save, refuse):
    a, b = (dict(zip(order, BARE, strict=True)) for order in ("abc", "acb"))
    words = ["compare", save("a.json", a), save("b.json", b), "--references", save("r.txt", "\n".join(BARE))]
    assert "expected systems in one order, since the references have no ids, got study b" in refuse(
        evaluate.main, words
    )


def test_training_reports_without_ids_are_none_of_the_references(save, score, refuse):
    predictions, references = (
        save("p.json", {f"s{n}": text for n, text in enumerate(BARE)}),
        save("r.txt", "\n".join(BARE)),
    )
    words = ["score", "--predictions", predictions, "--references", references, "--train", references]
    assert "training references other than the studies that are scored" in refuse(evaluate.main, words)
    summary, _ = score(predictions, references, "--train", save("t.txt", "\n".join(BARE[::-1])))
    assert "3 studies of t.txt have no ids, so that some may be scored themselves" in summary["notes"]


def test_names_reach_no_terminal_and_no_table_as_they_are(save, score, tmp_path, capsys, refuse):
    reports = dict(zip(EVIL, WHOLE, strict=True))
    path, other = save("p\x1b[31m.json", reports), save("q.json", dict(zip(EVIL, WHOLE[::-1], strict=True)))
    _, rows = score(other, save("r.json", {**reports, "\x9b31m": WHOLE[0]}))
    assert list(rows) == EVIL  # JSON files hold them as they are
    out = tmp_path / "compared"
    evaluate.main(
        ["compare", str(path), str(other), "--references", str(path), "--num-resamples", "100", "--out", str(out)]
    )
    printed = capsys.readouterr()
    files = [file for folder in (out, tmp_path / "out") for file in folder.iterdir() if file.suffix[:2] in (".t", ".m")]
    assert len(files) == 6
    for text in (printed.out, printed.err, *(file.read_text() for file in files)):
        assert all(line.isprintable() for line in text.split("\n"))
    assert r"a\u001b[2J\nx|y" in printed.out and r"a\u001b[2J\nx\|y" in (out / "comparison.md").read_text()
    said = refuse(
        evaluate.main, ["score", "--predictions", path, "--references", save("x.json", {"\x1b[1m": "Clear."})]
    )
    assert said.isprintable() and r"a\u001b[2J\nx|y" in said and r"\u001b[1m" in said


def test_no_cell_of_a_csv_file_is_run_by_a_spreadsheet(save, score, tmp_path):
    ids = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "'=1", "-0.5", "+7", "1e-5", "plain", "\uff1d1"]
    reports = dict.fromkeys(ids, WHOLE[0])
    score(save("p.json", reports), save("r.json", reports))
    with (tmp_path / "out" / "per_study.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    written = [row[0] for row in rows]
    assert written == ["'=1+1", "'+1+1", "'-1+1", "'@SUM(A1)", "''=1", "-0.5", "+7", "1e-5", "plain", "'\uff1d1"]
    assert [cell[cell.startswith("'") :] for cell in written] == ids  # one apostrophe less gives the id back
    assert {float(row[head.index("bleu2")]) for row in rows} == {1.0}
