import dataclasses
import os
import signal
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from capo.ranks import LostRankError
from radflow.pipeline.command_line import DEFAULT_CONFIG, parse_source
from radflow.pipeline.run import run_on_ranks
from radflow.pipeline.run_config import open_run, parse_config, plain, read_config


@dataclass(frozen=True)
class Inner:
    """Inner."""

    beta: float = 0.1
    """Weight."""
    weights: MutableMapping[str, float] = field(default_factory=lambda: {"a": 1.0, "b": 0.0})
    """Weights."""

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"expected beta of at least 0, got {self.beta}")


@dataclass(frozen=True)
class Outer:
    """Outer."""

    run_dir: Path = Path("runs/x")
    """Folder."""
    flag: bool = False
    """Flag."""
    rl: Inner = field(default_factory=Inner)


def read(tmp_path, text, *argv):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return read_config(Outer, path, argv)


def test_file_then_command_line(tmp_path):
    config = read(tmp_path, "flag: true\nrl: {beta: 0.5, weights: {b: 2}}\n", "--rl.beta", "0.7")
    assert config == Outer(flag=True, rl=Inner(beta=0.7, weights={"b": 2.0}))


@pytest.mark.parametrize("words", [["--config", "F", "--rl.beta", "1"], ["--rl.beta=1", "--config=F"]])
def test_config_option_names_the_file_and_the_rest_goes_over_it(words):
    source, options = parse_source(words)
    assert source.config == Path("F") and options == [word for word in words if "onfig" not in word and word != "F"]


def test_the_default_config_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, others = parse_source([])
    assert (source.config, others) == (DEFAULT_CONFIG, []) and DEFAULT_CONFIG.is_file()


def test_a_preset_goes_over_the_file_and_options_go_over_it():
    assert parse_config([]).rl.advantage == "decoupled" and not parse_config([]).reward.printed
    config = parse_config(["--rl.beta", "0.3", "--preset", "paper", "--rl.kl", "k2"])
    assert (config.rl.advantage, config.rl.beta, config.rl.kl, config.reward.printed) == ("group", 0.3, "k2", True)


def test_unknown_key_of_the_file_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(SystemExit, match=r"config.yaml: unknown key rl.betta; did you mean rl.beta\?"):
        read(tmp_path, "rl: {betta: 1}\n")


@pytest.mark.parametrize(
    ("text", "argv", "said"),
    [
        ("rl: {beta: -1}\n", (), "beta of at least 0, got -1"),
        ("", ("--rl.beta", "-2"), "beta of at least 0, got -2"),
        ("", ("--rl.betta", "2"), "--rl.beta"),
        ("rl: {beta: much}\n", (), "much"),
    ],
)
def test_impossible_values_are_refused_by_name(tmp_path, capsys, text, argv, said):
    with pytest.raises(SystemExit) as stopped:
        read(tmp_path, text, *argv)
    assert stopped.value.code not in (0, None)
    # boxes break lines; compare without the frame
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert said in printed


def test_broken_or_absent_file_is_an_error_not_a_default(tmp_path):
    with pytest.raises(SystemExit, match="error"):
        read(tmp_path, "rl: [unclosed\n")
    with pytest.raises(SystemExit, match="expected keys under rl"):
        read(tmp_path, "rl: 3\n")
    with pytest.raises(SystemExit, match="absent"):
        read_config(Outer, tmp_path / "absent.yaml")


def begin(folder, config, *, work=True):
    """A start, and a stage that leaves a row of metrics."""
    with open_run(folder, config, may_change=("run_dir",)):
        (folder / "start").mkdir(exist_ok=True)
        (folder / "start/model").write_text(f"beta {config.rl.beta}")
        (folder / "sft/checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "sft/metrics.jsonl").write_text("{}\n" if work else "")


def with_beta(beta):
    return Outer(rl=Inner(beta=beta))


def test_a_folder_keeps_one_config_and_one_process(tmp_path):
    folder, config = tmp_path / "run", Outer()
    with open_run(folder, config, may_change=("run_dir",)):
        assert yaml.safe_load((folder / "config.yaml").read_text()) == plain(config)
        with pytest.raises(ValueError, match="in use"), open_run(folder, config):
            pass
    begin(folder, config)
    with pytest.raises(ValueError, match=r"rl.beta was 0.1, is 0.9. Give the values .* or choose another run_dir$"):
        begin(folder, with_beta(0.9))
    begin(folder, dataclasses.replace(config, run_dir=Path("elsewhere")))


def test_a_folder_in_which_nothing_ran_takes_the_corrected_command(tmp_path):
    begin(tmp_path, with_beta(0.9), work=False)
    with open_run(tmp_path, with_beta(0.2)):
        assert yaml.safe_load((tmp_path / "config.yaml").read_text())["rl"]["beta"] == 0.2
        assert not (tmp_path / "start").exists()  # it was built for the other one


@pytest.mark.parametrize("damage", ["", "rl: {beta", "- 1", "2020-99-99", "rl:\n  beta: 0.1\n", None])
def test_a_damaged_config_is_written_anew_by_the_same_command_and_no_other(tmp_path, damage):
    path = tmp_path / "config.yaml"
    begin(tmp_path, Outer())
    path.unlink() if damage is None else path.write_text(damage)
    with pytest.raises(ValueError, match=r"config.yaml: expected|of another config") as refused:
        begin(tmp_path, with_beta(0.9))
    assert "remove" not in str(refused.value) and "\n" not in str(refused.value)
    begin(tmp_path, Outer())
    assert yaml.safe_load(path.read_text()) == plain(Outer())
    (tmp_path / "environment.json").write_text("[")  # only one of the two files is needed
    begin(tmp_path, Outer())


def test_a_killed_process_leaves_no_lock(tmp_path):
    if (child := os.fork()) == 0:
        with open_run(tmp_path, Outer()):
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    begin(tmp_path, Outer())


def test_a_rank_that_lost_another_ends_with_one_line(tmp_path, monkeypatch):
    def lose(ranks, stop):
        raise LostRankError("rank 1 of 2, stage rl: not every rank answered")

    monkeypatch.setattr("radflow.pipeline.run.StopSignal", Mock())  # the signals of this process stay as they are
    with pytest.raises(SystemExit, match=r"^error: rank 1 of 2, stage rl"):
        run_on_ranks(parse_config(["--run-dir", str(tmp_path)]), lose)
