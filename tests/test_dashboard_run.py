"""A real run that shows itself: what it writes on the way, and that looking changes nothing."""

import json
import subprocess
import time

import pytest
from small_run import ROOT, count_lines, start_run

from radflow.dashboard.archive import Archive
from radflow.dashboard.run_files import RunFiles, keys_with, reward_parts

SHOWN = ["--stages", "sft,explore,criticality,rl", "--warmup.steps", "0", "--sft.steps", "3", "--rl.steps", "5"]
TRACKED = ["--evaluate.validate-every", "2", "--evaluate.validate-studies", "3", "--tracking.tensorboard", "True"]


def finish(folder, *options):
    process = start_run(folder, *SHOWN, *options, stdout=subprocess.PIPE)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    return output


def rows_of(folder, *, held_out):
    """The rows of the RL stage without times, and with or without held-out metrics."""
    return [
        {k: v for k, v in row.items() if not k.startswith("seconds") and (held_out or not k.startswith("held_out"))}
        for row in RunFiles.read(folder).steps["rl"]
    ]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    folder = tmp_path_factory.mktemp("runs") / "tracked"
    return folder, finish(folder, *TRACKED)


def test_each_step_of_the_run_is_one_line(tracked):
    _, output = tracked
    said = [line for line in output.splitlines() if line.startswith("rl ")]
    assert [line.split(" | ")[0] for line in said] == [f"rl {step}/5" for step in range(1, 6)]
    assert all("reward" in line and "clipped critical" in line for line in said)


def test_the_run_leaves_its_dashboard_its_status_and_its_events(tracked):
    folder, _ = tracked
    assert json.loads((folder / "status.json").read_text())["state"] == "complete"
    page = (folder / "dashboard.html").read_text(encoding="utf-8")
    assert "Held-out studies during training" in page and page.count("data:image/jpeg") > 10
    assert list((folder / "tensorboard/rl").iterdir()) and list((folder / "tensorboard/sft").iterdir())


def test_held_out_studies_are_reported_every_second_step(tracked):
    rows = rows_of(tracked[0], held_out=True)
    assert [row["step"] for row in rows if "held_out_total" in row] == [0, 2, 4]
    assert {"held_out_bleu2", "held_out_label_f1_true_state"} <= set(rows[0])


def held_out_files(folder):
    return {path.name: path.read_bytes() for path in (folder / "rl/held_out").iterdir()}


def test_what_was_measured_of_each_held_out_study_is_kept_and_its_means_are_the_row(tracked):
    members = Archive(tracked[0] / "rl/held_out").members()
    assert list(members) == [0, 2, 4]
    for row in rows_of(tracked[0], held_out=True)[::2]:
        studies = members[row["step"]].read()
        assert len({study["id"] for study in studies}) == 3 and all(study["report"] for study in studies)
        means = {}
        for name in studies[0].keys() - {"step", "id", "report"}:
            known = [study[name] for study in studies if study[name] is not None]
            means[f"held_out_{name}"] = sum(known) / len(known) if known else None
        assert means == pytest.approx({key: value for key, value in row.items() if key.startswith("held_out_")})


def test_every_metric_that_a_run_logs_is_explained(tracked):
    page = (ROOT / "docs/reading-a-run.md").read_text(encoding="utf-8")
    run = RunFiles.read(tracked[0])
    # one row of the page for the parts of any reward
    parts = {f"{kind}_{part}" for part in reward_parts(run.steps["rl"]) for kind in ("reward", "seconds")}
    parts |= set(keys_with(run.steps["rl"], "variance_share_"))
    for key in {key for stage in ("sft", "rl") for row in run.steps[stage] for key in row} - parts - {"step"}:
        assert f"`{key}`" in page or key.startswith("held_out_"), key


def test_looking_changes_no_number_and_a_kill_changes_none_of_what_is_seen(tracked, tmp_path):
    # the held-out reports are greedy and come before the step: training draws the same random numbers without them
    folder = tmp_path / "killed"
    process, until = start_run(folder, *SHOWN, *TRACKED, stdout=subprocess.PIPE), time.monotonic() + 120
    while count_lines(folder / "rl/metrics.jsonl") < 3:
        assert process.poll() is None and time.monotonic() < until, "the moment to kill never came"
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert json.loads((folder / "status.json").read_text())["state"] == "running"  # nobody was left to write more
    finish(folder, *TRACKED)
    assert rows_of(folder, held_out=True) == rows_of(tracked[0], held_out=True)
    assert held_out_files(folder) == held_out_files(tracked[0])
    plain = tmp_path / "plain"
    finish(plain, "--tracking.dashboard", "False")
    assert rows_of(plain, held_out=False) == rows_of(tracked[0], held_out=False)
    assert not (plain / "dashboard.html").exists() and not (plain / "rl/held_out").exists()
