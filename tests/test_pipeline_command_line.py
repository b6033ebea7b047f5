"""The programs: help without the imports of a run, nearest names, one line for what a user can cause."""

import os
import subprocess
import sys
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from radflow import __main__, evaluate, train
from radflow.pipeline import command_line
from radflow.pipeline.command_line import TRAIN_COMMANDS, run_command
from radflow.pipeline.run_config import Config

SECTIONS = [one.name for one in fields(Config) if is_dataclass(one.type)]
PROGRAMS = {
    "train.py": (train, TRAIN_COMMANDS),
    "evaluate.py": (evaluate, evaluate.COMMANDS),
    "radflow": (__main__, __main__.COMMANDS),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_short_help_names_every_command_and_fits_on_a_screen(program, capsys):
    module, commands = PROGRAMS[program]
    module.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 45
    for name in commands:
        assert any(name in line.split() for line in lines), name


def test_short_help_of_train_names_every_section_and_key(capsys):
    train.main(["-h"])
    words = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert words.issuperset(SECTIONS)
    assert all(f"--{one.name.replace('_', '-')}" in train.__doc__ for one in fields(Config) if one.name not in SECTIONS)


@pytest.mark.parametrize("command", [["train.py"], ["train.py", "export"], ["train.py", "plan"], ["evaluate.py"]])
def test_help_loads_no_torch(command):
    # torch and transformers take seconds
    program = "import runpy, sys; sys.argv = sys.argv[1:] + ['--help']\n"
    program += "try: runpy.run_path(sys.argv[0], run_name='__main__')\nexcept SystemExit: pass\n"
    program += "print('torch' in sys.modules)"
    root = Path(__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-c", program, *command], cwd=root, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines()[-1] == "False" and len(run.stdout) > 100


def test_the_options_of_a_section_show_the_defaults_of_a_config_without_the_key(capsys):
    train.main(["--help", "rl", "rollout"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--rl.beta FLOAT Weight of the KL to the frozen SFT policy. (default: 0.02)" in shown  # the demo's: 0.06
    assert "--rollout.slots INT" in shown and "--sft" not in shown
    with pytest.raises(SystemExit, match="no section rolout; did you mean rollout"):
        train.main(["--help", "rolout"])


def test_every_option_has_a_help_text(capsys):
    train.main(["--help", "all"])
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    bare = [a for a, b in pairwise(lines) if a.startswith("--") and b.startswith("(default")]
    assert len(lines) > 300 and not bare


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_mistyped_command_gets_the_nearest(program):
    module, _ = PROGRAMS[program]
    with pytest.raises(SystemExit, match=f"error: {program} has no command comapre; did you mean compare"):
        module.main(["comapre", "a", "b"])
    with pytest.raises(SystemExit, match="expected one of"):
        module.main(["zzz"])


def test_a_mistyped_option_gets_the_nearest(capsys):
    with pytest.raises(SystemExit):
        evaluate.main(["score", "--predictoins", "a.json"])
    assert "--predictions" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="expected a command among predict"):
        evaluate.main([])


def test_a_full_disk_ends_a_command_with_one_line(monkeypatch):
    def fail(words):
        raise OSError(28, "No space left on device", "out.json")

    monkeypatch.setattr("radflow.pipeline.commands.annotate", fail)
    with pytest.raises(SystemExit, match=r"error: out\.json: No space left on device"):
        run_command("train.py", ["annotate"], TRAIN_COMMANDS, None)


@pytest.mark.parametrize("words", [["--help"], ["score", "--help"], ["weights"]])
def test_a_reader_that_leaves_early_ends_a_command_without_a_word(words):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "radflow", *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # as for most users
    run = subprocess.run(command, env=environment, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (run.returncode, run.stderr) == (1, "")


@pytest.mark.parametrize(
    ("running", "given", "policy"),
    [
        (3, {}, "PASSIVE"),  # two others, and this program itself
        (1, {}, None),
        (3, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),  # whoever sets it decides
        (3, {"OMP_NUM_THREADS": "2"}, None),  # six cores are spare
        (8, {"OMP_NUM_THREADS": "2"}, "PASSIVE"),
    ],
)
def test_threads_that_wait_sleep_if_other_programs_need_the_cores(
    running, given, policy, tmp_path, monkeypatch, capsys
):
    (tmp_path / "loadavg").write_text(f"0.10 0.20 0.30 {running}/321 4711\n")
    monkeypatch.setattr(command_line, "LOADS", tmp_path / "loadavg")
    monkeypatch.setattr(os, "cpu_count", lambda: 8 if "OMP_NUM_THREADS" in given else 2)
    for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    command_line.share_cores()
    assert os.environ.get("OMP_WAIT_POLICY") == policy
    assert ("OMP_WAIT_POLICY=PASSIVE is set" in capsys.readouterr().err) == (policy == "PASSIVE")


def test_a_system_that_does_not_tell_what_runs_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(command_line, "LOADS", tmp_path / "none")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    command_line.share_cores()
    assert "OMP_WAIT_POLICY" not in os.environ
