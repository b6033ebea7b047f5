"""Files that are not what a command expects end it with one line that says so; weights are told apart and checked."""

import hashlib
import json
import re
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from report_forms import FILES, REPORTS, damaged

from radflow import evaluate
from radflow.evaluation.weights import NEEDED, Weights, check_hash, default_root
from radflow.rewards.hub import COMMITS

NORMAL = "Findings: The heart is normal. No effusion. Impression: No acute abnormality."
TEXTS = st.sampled_from([NORMAL, "", "nan", "Findings:", "x", "\u2028", "Impression: Edema."]) | st.text(max_size=12)
IDS = st.sampled_from(["a", "b", "", " a", "study"])
VALUES = st.none() | st.booleans() | st.floats() | st.integers(-2, 2) | TEXTS | st.lists(TEXTS, max_size=2)
ENTRIES = TEXTS | VALUES | st.dictionaries(st.sampled_from(["report", "findings", "id", "x"]), VALUES, max_size=3)
JSON = st.dictionaries(IDS, ENTRIES, max_size=3).map(json.dumps) | VALUES.map(json.dumps)
CELLS = st.sampled_from(["study_id", "report", "a", "b", NORMAL, '"', '"a', "nan", "", "id", "\r", "\x00"])
CSV = st.lists(st.lists(CELLS, max_size=3).map(",".join), max_size=4).map("\n".join)
CONTENTS = (
    st.tuples(st.just(".json"), JSON.map(str.encode))
    | st.tuples(st.just(".csv"), CSV.map(str.encode))
    | st.tuples(st.sampled_from([".json", ".jsonl", ".csv", ".tsv", ".txt"]), st.binary(max_size=40))
)


def ends_well(arguments, capsys):
    """The command works, or ends with one line; returns whether it worked."""
    try:
        evaluate.main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        assert isinstance(stopped.code, str) and stopped.code.startswith("error: "), stopped.code
        assert stopped.code.isprintable()
        return False
    finally:
        printed = capsys.readouterr()
        assert (printed.out + printed.err).replace("\n", "").replace("\r", "").isprintable()
    return True


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("RADFLOW_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=CONTENTS, role=st.sampled_from(["predictions", "references", "train"]))
@example(content=(".json", json.dumps({"a": NORMAL}).encode()), role="predictions")
def test_score_never_ends_in_a_traceback_and_drops_nothing_in_silence(tmp_path, capsys, content, role):
    ending, data = content
    (tmp_path / f"file{ending}").write_bytes(data)
    (tmp_path / "good.json").write_text(json.dumps({"a": NORMAL, "b": NORMAL}))
    files = dict.fromkeys(("predictions", "references"), tmp_path / "good.json")
    files[role] = tmp_path / f"file{ending}"
    out = tmp_path / "out"
    options = [word for name, path in files.items() for word in (f"--{name}", path)]
    if ends_well(["score", *options, "--num-resamples", "100", "--baseline-sample", "2", "--out", out], capsys):
        summary = json.loads((out / "summary.json").read_text())
        said = {study_id for ids in summary["left_out"].values() for study_id in ids}
        scored = {json.loads(line)["study_id"] for line in (out / "per_study.jsonl").read_text().splitlines()}
        assert {"a", "b"} <= said | scored and summary["studies"] == len(scored)


def test_damaged_files_are_scored_or_refused_in_one_line(tmp_path, capsys):
    """RADFLOW_FUZZ=3000 tries that many files."""
    good, out, scored = tmp_path / "good.json", tmp_path / "out", 0
    good.write_text(json.dumps(REPORTS))
    for seed in range(FILES or 40):
        name, content = damaged(seed)
        (tmp_path / name).write_bytes(content)
        sides = ("--predictions", tmp_path / name, "--references", good)
        if seed % 2:
            sides = ("--predictions", good, "--references", tmp_path / name)
        if ends_well(["score", *sides, "--num-resamples", "100", "--out", out], capsys):
            summary = json.loads((out / "summary.json").read_text())
            rows = (json.loads(line) for line in (out / "per_study.jsonl").read_text().split("\n")[:-1])
            said = {study_id for ids in summary["left_out"].values() for study_id in ids}
            assert REPORTS.keys() <= said | {row["study_id"] for row in rows}, (seed, name)
            scored += 1
    assert scored > (FILES or 40) / 5


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=CONTENTS)
def test_compare_and_precomputed_never_end_in_a_traceback(tmp_path, capsys, content):
    ending, data = content
    path, good = tmp_path / f"file{ending}", tmp_path / "good.json"
    path.write_bytes(data)
    good.write_text(json.dumps({"a": NORMAL, "b": NORMAL}))
    ends_well(["compare", good, path, "--references", good, "--num-resamples", "100"], capsys)
    ends_well(["score", "--precomputed", path, "--num-resamples", "100"], capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["score"], "expected predictions, or precomputed sub-scores"),
        (["score", "--predictions", "absent.json", "--references", "absent.json"], "absent.json: cannot be read"),
        (["score", "--predictions", "P", "--references", "P", "--split", "test"], "references of split test, got none"),
        (
            ["score", "--predictions", "P", "--references", "P", "--train", "P"],
            "training references other than",
        ),
        (["score", "--predictions", "P", "--references", "P", "--workers", "-1"], "workers of at least 0"),
        (
            ["score", "--predictions", "P", "--references", "P", "--weights.chexbert", "no.pth"],
            "weights.chexbert: .* no.pth",
        ),
        (["score", "--predictions", "P", "--references", "P", "--out", "P"], "P"),
        (["cases", "--predictions", "P", "--manifest", "absent.jsonl", "--out", "x.html"], "absent.jsonl"),
        (["generate", "--data", "m.jsonl", "--out", "x.json"], "expected model or endpoint.url"),
        (["weights", "--fetch", "bleu"], "expected names of weights among bertscore"),
        (["weights", "--fetch", "chexbert"], "its licence: .*accept it if you"),
    ],
)
def test_mistakes_end_with_their_reason(tmp_path, arguments, said, refuse):
    (tmp_path / "p.json").write_text(json.dumps({"a": NORMAL}))
    words = [tmp_path / "p.json" if word == "P" else word for word in arguments]
    assert re.search(f"[Ee]rror.*{said.replace('P', 'p.json') if said == 'P' else said}", refuse(evaluate.main, words))


def test_weights_are_listed_with_place_licence_and_hash(tmp_path, capsys):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "chexbert.pth").write_bytes(b"x")
    evaluate.main(["weights"])
    shown = capsys.readouterr().out
    assert f"chexbert: present: {tmp_path / 'weights' / 'chexbert.pth'}" in shown and "bertscore: not here" in shown
    assert NEEDED["chexbert"].sha256 in shown and "PhysioNet" in shown and "weights --fetch bertscore" in shown


def test_places_go_option_then_root(tmp_path):
    root, other = tmp_path / "weights", tmp_path / "mine"
    (root / "radgraph").mkdir(parents=True)
    other.mkdir()
    assert default_root() == root
    assert Weights(root).find("radgraph") == root / "radgraph" and Weights(root).how_to_get("radgraph") is None
    assert Weights(root, radgraph=other).find("radgraph") == other
    assert Weights(root).find("chexbert") is None and Weights(root).how_to_get("chexbert")


def test_fetching_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    said = "error: bertscore: could not fetch .* no route to host.* if there is no network, copy it to .*or set"
    with pytest.raises(SystemExit, match=said):
        evaluate.main(["weights", "--fetch", "bertscore"])


def test_fetched_files_are_checked_against_their_hash(tmp_path, monkeypatch):
    def downloads(repository, *, revision, local_dir, allow_patterns):
        assert revision == COMMITS[repository]
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / allow_patterns[0]).write_bytes(b"other")

    monkeypatch.setattr("huggingface_hub.snapshot_download", downloads)
    with pytest.raises(SystemExit, match=r"chexbert\.pth: expected SHA-256 6550703c"):
        evaluate.main(["weights", "--fetch", "chexbert", "--accept-licence"])
    path = tmp_path / "weights" / "chexbert.pth"
    check_hash(path, replace(NEEDED["chexbert"], sha256=hashlib.sha256(b"other").hexdigest()))
