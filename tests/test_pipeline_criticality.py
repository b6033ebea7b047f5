"""`train.py annotate`: every reference is labelled once, whatever happens, and a person has the last word."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from judge_server import JudgeServer, says, slow, status, verdict

from radflow import train
from radflow.data.corpus import DataConfig, load_corpus
from radflow.pipeline.corrections import read_corrections
from radflow.pipeline.criticality import escape_control, format_examples, shorten, summarise, warn_if_one_sided
from radflow.pipeline.run_config import parse_config

ROOT = Path(train.__file__).parent
STUDIES = 24


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def words(folder, *options):
    data = ("--data.num-train", str(STUDIES), "--data.num-test", "2", "--data.image-size", "56")
    return ["annotate", "--run-dir", str(folder), *data, "--criticality.part-size", "5", *options]


def asking(server, folder, *options):
    """The words that let `server` label; waits are short."""
    judge = {
        "url": server.url,
        "model": "tiny-judge",
        "cache": folder.parent / "judge.sqlite",
        "backoff-s": 0.01,
        "backoff-max-s": 0.05,
        "retries": 1,
        "claim-s": 0.5,
        "concurrency": 2,
    }
    dotted = [word for name, value in judge.items() for word in (f"--judge.{name}", str(value))]
    return words(folder, "--criticality.source", "llm", *dotted, *options)


def labels(folder):
    return [json.loads(line) for line in (folder / "criticality.jsonl").read_text().splitlines()]


def report_in(text):
    return text.split("\n")[1]


def by_effusion(text):
    return verdict("yes" if "effusion is" in report_in(text) else "no", "as the test says")


def failing(argv):
    with pytest.raises(SystemExit) as stopped:
        train.main(argv)
    assert stopped.value.code not in (0, None)
    return str(stopped.value.code)


def test_rules_label_every_reference_and_show_examples_of_each_kind(tmp_path, capsys):
    train.main(words(tmp_path / "run"))
    rows, said = labels(tmp_path / "run"), capsys.readouterr().out
    critical = sum(row["critical"] for row in rows)
    assert len(rows) == len({row["id"] for row in rows}) == STUDIES and 0 < critical < STUDIES
    assert {row["source"] for row in rows} == {"rules"}
    assert f"{critical} of {STUDIES} references are critical ({critical / STUDIES:.1%})" in said
    assert f"critical, {min(10, critical)} of {critical}:" in said and "normal, " in said
    assert said.count("because:") == min(10, critical) + min(10, STUDIES - critical)


def test_a_model_labels_every_reference_once_and_the_stage_of_a_run_asks_no_more(tmp_path, capsys):
    with JudgeServer(by_effusion) as server:
        train.main(asking(server, tmp_path / "run"))
        rows, first = labels(tmp_path / "run"), len(server.requests)
        assert first == len(set(server.asked())) <= STUDIES  # reports that are the same are asked once
        assert {row["source"] for row in rows} == {"tiny-judge"} and {row["reason"] for row in rows} == {
            "as the test says"
        }
        assert f"asked {first}," in capsys.readouterr().out
        _, *run = asking(server, tmp_path / "run", "--stages", "criticality")
        train.main(run)
        train.main(asking(server, tmp_path / "run"))
        assert len(server.requests) == first and labels(tmp_path / "run") == rows
        studies = load_corpus(DataConfig(num_train=STUDIES, num_test=2, image_size=56), seed=0).train
        reports = {study.id: study.report for study in studies}
        assert all(row["critical"] == ("effusion is" in reports[row["id"]]) for row in rows)


def test_the_acute_definition_reaches_the_rules_and_asks_a_model_another_question(tmp_path):
    acute = ("--criticality.definition", "acute")
    train.main(words(tmp_path / "rules", *acute))
    reasons = {row["reason"] for row in labels(tmp_path / "rules") if not row["critical"]}
    assert reasons == {"no acute finding"}
    with JudgeServer(by_effusion) as server:
        train.main(asking(server, tmp_path / "asked", *acute))
        assert all("urgent, new or worsening" in str(request) for request in server.requests)


@pytest.mark.parametrize(
    ("critical", "definition", "said"),
    [
        (10, "paper", "100% of the 10 references that RL trains on are critical.*criticality.definition: acute"),
        (10, "acute", "explore.fraction"),
        (0, "acute", "0% of the 10 references.*criticality.definition: paper"),
        (9, "paper", ""),
        (1, "paper", ""),
    ],
)
def test_a_share_that_tells_no_cases_apart_is_said_before_rl(tmp_path, capsys, critical, definition, said):
    config = parse_config(["--run-dir", str(tmp_path), "--criticality.definition", definition])
    rows = [{"id": str(i), "critical": i < critical} for i in range(10)]
    warn_if_one_sided(config, rows)
    out = capsys.readouterr().out
    assert re.search(said, out) if said else not out


def test_the_share_is_that_of_the_hard_studies(tmp_path, capsys):
    config = parse_config(["--run-dir", str(tmp_path)])
    rows = [{"id": str(i), "critical": i < 5} for i in range(10)]
    (tmp_path / "explore").mkdir()
    (tmp_path / "explore" / "selection.json").write_text(json.dumps({"selected": ["0", "1", "2"]}))
    warn_if_one_sided(config, rows)
    assert "100% of the 3 references" in capsys.readouterr().out


def start(argv, *, launcher=()):
    return subprocess.Popen(
        [sys.executable, *launcher, "train.py", *argv],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_killed_in_the_middle_it_goes_on_and_repeats_only_what_was_under_way(tmp_path):
    folder = tmp_path / "run"
    with JudgeServer(by_effusion, takes_s=0.1) as server:
        process = start(asking(server, folder))
        until = time.monotonic() + 120
        while len(server.requests) < 9:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (folder / "criticality.jsonl").exists()
        train.main(asking(server, folder))
        assert len(labels(folder)) == STUDIES and not list(folder.rglob("*.tmp"))
        assert len(server.requests) - len(set(server.asked())) <= 2  # judge.concurrency


def test_ctrl_c_while_the_judge_is_silent_ends_it_at_once_and_answers_are_kept(tmp_path, capsys):
    folder, answered = tmp_path / "run", [None] * 3
    with JudgeServer(by_effusion, script=answered, always=slow(100)) as server:

        def interrupt():
            while len(server.requests) < len(answered) + 2:  # both threads wait
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        began = time.monotonic()
        train.main(asking(server, folder))
        assert time.monotonic() - began < 30
    assert "stopped in stage criticality, as asked; start the same command again" in capsys.readouterr().out
    with JudgeServer(by_effusion) as server:
        train.main(asking(server, folder))
        assert len(server.requests) == STUDIES - len(answered) and len(labels(folder)) == STUDIES


def test_two_ranks_share_the_work_and_ask_nothing_twice(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    with JudgeServer(by_effusion) as server:
        process = start(asking(server, tmp_path / "run"), launcher=launcher)
        said, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors[-2000:]
        assert len(server.requests) == len(set(server.asked())) and f"asked {len(server.requests)}," in said
    assert len(labels(tmp_path / "run")) == STUDIES and said.count("references are critical") == 1


def test_unanswered_questions_end_it_with_their_number_and_the_next_start_asks_only_these(tmp_path):
    folder, refusal = tmp_path / "run", says(None, refusal="no")
    with JudgeServer(by_effusion, script=[None, None, refusal, status(500), status(500)]) as server:
        said = failing(asking(server, folder, "--judge.concurrency", "1"))
        missing = [
            row["id"]
            for path in sorted((folder / "criticality").glob("part_*.jsonl"))
            for row in map(json.loads, path.read_text().splitlines())
            if row["critical"] is None
        ]
        assert len(missing) >= 2 and f"criticality: {len(missing)} of {STUDIES} reports have no label" in said
        assert all(study_id in said for study_id in missing) and "rerun the same command" in said
        assert not (folder / "criticality.jsonl").exists()
        before = set(server.asked())
        server.requests.clear()
        train.main(asking(server, folder))
        assert len(server.requests) == 2 and set(server.asked()) <= before
    assert len(labels(folder)) == STUDIES and all(isinstance(row["critical"], bool) for row in labels(folder))


def test_a_server_that_is_down_writes_no_label_and_its_model_may_not_change_but_its_address_may(tmp_path):
    folder = tmp_path / "run"
    with JudgeServer() as server:
        down = asking(server, folder)
    assert f"{STUDIES} of {STUDIES} reports have no label (ConnectError)" in failing(down)
    with JudgeServer(by_effusion) as server:
        assert "judge.model was tiny-judge, is other" in failing([*asking(server, folder), "--judge.model", "other"])
        train.main(asking(server, folder))
    assert len(labels(folder)) == STUDIES


def test_labels_of_a_person_go_before_all_are_kept_and_spare_the_question(tmp_path):
    folder, file = tmp_path / "run", tmp_path / "mine.jsonl"
    train.main(words(tmp_path / "rules"))
    first, second, *_ = labels(tmp_path / "rules")
    wrong = [
        {**first, "critical": not first["critical"], "reason": "seen by me"},
        {"id": second["id"], "critical": False},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in wrong))
    with JudgeServer(by_effusion) as server:
        train.main(asking(server, folder, "--criticality.corrected", str(file)))
        spared = {row["id"] for row in wrong}
        rows = {row["id"]: row for row in labels(folder)}
        assert rows[first["id"]] == {**wrong[0], "source": "person"}
        assert rows[second["id"]] == {**wrong[1], "reason": "corrected by a person", "source": "person"}
        assert sum(row["source"] == "person" for row in rows.values()) == len(spared)
        train.main(asking(server, folder))  # without the file: what it said stays
        assert {row["id"]: row for row in labels(folder)} == rows
        file.write_text("\n")  # an empty file takes the corrections back; now the judge is asked
        before = len(server.requests)
        train.main(asking(server, folder, "--criticality.corrected", str(file)))
        assert {row["source"] for row in labels(folder)} == {"tiny-judge"} and before <= len(
            server.requests
        ) <= before + 2


def test_labels_do_not_change_under_a_capo_stage_that_has_begun(tmp_path):
    folder, file = tmp_path / "run", tmp_path / "mine.jsonl"
    train.main(words(folder))
    (folder / "rl").mkdir()
    before = labels(folder)
    file.write_text(json.dumps({"id": before[0]["id"], "critical": not before[0]["critical"]}) + "\n")
    assert "1 labels would change, but the CAPO stage" in failing(words(folder, "--criticality.corrected", str(file)))
    assert labels(folder) == before
    file.write_text(json.dumps({"id": before[0]["id"], "critical": before[0]["critical"]}) + "\n")
    train.main(words(folder, f"--criticality.corrected={file}"))  # the same label, by a person
    assert labels(folder)[0]["source"] == "person"


GOOD = '{"id": "a", "critical": true}'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "zz", "critical": true}', "no training study has the id 'zz'"),
        (GOOD, "study 'a' has a label already"),
        ('{"id": "b", "critical": 1}', 'expected {"id": "s1", "critical": true}'),
        ('{"id": "b"}', 'expected {"id": "s1", "critical": true}'),
        ('{"critical": true}', 'expected {"id": "s1", "critical": true}'),
        ('["b", true]', 'expected {"id": "s1", "critical": true}'),
        ('{"id": "b", "critical": true', "expected a JSON object"),
        ("[" * 100_000, "expected a JSON object"),
        ('{"id": "b", "critical": true, "label": 1}', "unknown key 'label'"),
        ('{"id": "b", "critical": true, "reason": 7}', "expected a text as reason"),
    ],
)
def test_a_mistake_in_the_corrected_file_names_its_line(tmp_path, line, said):
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}:3: ") + ".*" + re.escape(said)):
        read_corrections(path, {"a", "b"})


def test_a_corrected_file_of_windows_is_read_and_one_in_latin_1_refused(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(f"\ufeff{GOOD}\r\n".encode())
    assert read_corrections(path, {"a"})["a"].critical
    path.write_bytes('{"id": "ä", "critical": true}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"mine.jsonl: expected JSON lines in UTF-8, got"):
        read_corrections(path, {"ä"})


def test_a_corrected_file_that_is_not_there_is_said(tmp_path):
    assert "mine.jsonl does not exist" in failing(
        words(tmp_path / "run", "--criticality.corrected", str(tmp_path / "mine.jsonl"))
    )


def test_a_model_must_be_named(tmp_path, capsys):
    failing(words(tmp_path / "run", "--criticality.source", "llm"))
    assert "criticality.source llm needs" in capsys.readouterr().err


def test_examples_cannot_steer_the_terminal(studies):
    study = studies[0]
    rows = [{"id": study.id, "critical": True, "reason": "\x1b[2J\u202eevil\r", "source": "m\x07"}]
    said = format_examples(rows, [study], seed=0) + summarise(rows)
    assert all(letter.isprintable() or letter == "\n" for letter in said)
    assert "\\u001b[2J\\u202eevil" in said and "normal, 0 of 0:" in said
    assert escape_control("ä 肺\x00") == "ä 肺\\u0000"
    assert shorten("a\n b\t c") == "a b c" and shorten("x" * 500) == "x" * 240 + " ..."
