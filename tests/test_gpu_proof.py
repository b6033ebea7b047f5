"""`make gpu`: every section runs at tiny sizes on a CPU, and one that fails is recorded while the others go on."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "benchmarks" / "gpu_proof.py"
# What has to be proven, and which sections do it.
ROWS = {
    "versions, copy bandwidth, GEMM rate": {"card"},
    "FlexAttention compiled against dense mask, 20 lengths, head sizes 32/48/128, with gradients": {"flex"},
    "log-probs of a 2-layer cut: CPU float32, CUDA float32, bf16; packed against alone": {"logps"},
    "CUDA-graph decoding against eager greedy, over two batches of different size": {"graphs"},
    "sampler gap, KL before the first update": {"sampler"},
    "3B random weights: tokens/s and share of the bandwidth roofline at 4 to 64 slots, G 4, 8, 16, against HF generate "
    "(static cache, compiled)": {"decode", "generate", "compiled"},
    "vision tower; RL step under a 24 GB cap; SFT step of 4,096 tokens": {"tower", "rl_24gb", "sft_4096"},
    "FSDP2 + NCCL + DCP at world size 1; two ranks on one card over gloo": {"fsdp", "two_ranks"},
    "demo killed in RL and resumed; IU config for 30 steps": {"resume", "iu_xray"},
}


def run(command, folder, *options):
    ran = subprocess.run(
        [sys.executable, *command, "--small", "--out", str(folder), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    (path,) = folder.glob("*.jsonl")
    facts, *lines = [json.loads(line) for line in path.read_text().splitlines()]
    return ran, facts, {line["section"]: line for line in lines}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return run([str(PROGRAM)], tmp_path_factory.mktemp("proof"))


def test_every_section_is_green_at_tiny_sizes(small):
    ran, _, lines = small
    red = {name: (line["error"], line.get("output", "")[-1500:]) for name, line in lines.items() if "error" in line}
    shared = Path(os.environ.get("RADFLOW_SHARED", ROOT.parent / "shared")) / "data" / "iu_xray"
    if not shared.is_dir():
        assert lines["iu_xray"]["status"] == "skipped" and "is not there" in red.pop("iu_xray")[0]
    assert not red and ran.returncode == 0, ran.stdout + ran.stderr


def test_every_row_of_the_table_has_its_sections(small):
    _, _, lines = small
    assert {row: {n for n, line in lines.items() if line["row"] == row} for row in ROWS} == ROWS
    assert len(lines) == sum(map(len, ROWS.values()))
    assert all(line["ran"] and line["figures"] for name, line in lines.items() if line["status"] == "passed")


def test_the_first_line_says_what_ran_where(small):
    ran, facts, _ = small
    assert facts["card"] == "CPU (small)" and facts["python"] == sys.version.split()[0] and facts["date"]
    assert {"torch", "CUDA", "driver", "triton", "transformers", "memory", "power limit", "commit"} <= facts.keys()
    assert "| graphs | passed |" in ran.stdout and "float32, greedy: equal tokens | 1 | = 1, met |" in ran.stdout


def test_a_result_file_can_be_shown_again(small, tmp_path):
    path = tmp_path / "some.jsonl"
    figure = {"name": "a gap", "value": 2.0, "unit": "nats", "bar": "<= 1", "holds": False, "goal": False}
    line = {"section": "x", "row": "y", "status": "failed", "error": "outside its bar: a gap", "figures": [figure]}
    path.write_text(json.dumps({"card": "H100", "driver": None}) + "\n" + json.dumps(line) + "\n")
    shown = subprocess.run(
        [sys.executable, str(PROGRAM), "--show", str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert shown.startswith("card: H100\n") and "|  |  |  | a gap | 2 nats | <= 1, **missed** |" in shown


# Sections that go wrong in every way that one can, before one that does not.
FAULTS = """
    import os, signal, subprocess, sys, time
    from pathlib import Path
    from gpu.report import Bar, Skipped

    def crashes(setting, report):
        report.figure("before", 1.0)
        raise MemoryError("out of memory on the card")

    def dies(setting, report):
        os.kill(os.getpid(), signal.SIGSEGV)

    def hangs(setting, report):
        report.figure("before", 1.0)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(os.environ["CHILD"]).write_text(str(child.pid))
        time.sleep(600)

    def misses(setting, report):
        report.figure("too much", 2.0, Bar(at_most=1.0))
        report.figure("not a number", float("nan"), Bar(at_most=1.0))
        report.figure("only a goal", 2.0, Bar(at_most=1.0, goal=True))

    def lacks(setting, report):
        raise Skipped("no data here")

    hangs_too = hangs

    def works(setting, report):
        report.figure("fine", 0.5, Bar(at_least=0.5, at_most=0.5))
"""
DRIVER = """
    import os, sys
    import torch, gpu_proof
    from gpu.runner import Section
    torch.cuda._is_in_bad_fork = lambda: "FORKED" in os.environ
    names = os.environ["SECTIONS"].split(",")
    sys.exit(gpu_proof.main([Section(name, "row", 1.0, f"faults:{name}") for name in names]))
"""


@pytest.fixture
def faults(tmp_path, monkeypatch):
    """Runs these sections by name, with the options given."""
    for name, text in (("faults", FAULTS), ("driver", DRIVER)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT / 'benchmarks'}")
    monkeypatch.setenv("CHILD", str(tmp_path / "child"))
    (tmp_path / "out").mkdir()

    def start(names, *options):
        monkeypatch.setenv("SECTIONS", names)
        return run([str(tmp_path / "driver.py")], tmp_path / "out", *options)

    return start


def test_a_section_that_fails_is_recorded_and_the_others_run(faults):
    ran, _, lines = faults("crashes,dies,misses,lacks,works,absent")
    assert {name: line["status"] for name, line in lines.items()} == {
        "crashes": "failed",
        "dies": "failed",
        "misses": "failed",
        "lacks": "skipped",
        "works": "passed",
        "absent": "failed",
    }
    assert lines["crashes"]["error"] == "exit status 1: MemoryError: out of memory on the card"
    assert lines["crashes"]["figures"] == [{"name": "before", "value": 1.0, "unit": ""}]
    assert "Traceback" in lines["crashes"]["output"]
    assert lines["dies"]["error"].startswith("signal SIGSEGV")
    assert lines["misses"]["error"] == "outside its bar: too much, not a number"
    assert "no attribute 'absent'" in lines["absent"]["error"]
    assert lines["lacks"]["error"] == "no data here"
    assert ran.returncode == 1 and "failed: crashes, dies, misses, absent" in ran.stdout.splitlines()[-1]


def test_skipped_sections_alone_do_not_fail_the_run(faults):
    ran, _, _ = faults("lacks,works")
    assert ran.returncode == 0 and ran.stdout.splitlines()[-1] == "all sections passed"


def test_a_section_that_hangs_is_killed_with_what_it_started_and_later_ones_have_no_time(faults, tmp_path):
    # 6 seconds for all, two at one time: the first two take them all
    ran, _, lines = faults("hangs,hangs_too,works", "--minutes", "0.1")
    for name in ("hangs", "hangs_too"):
        assert lines[name]["status"] == "failed" and lines[name]["error"].startswith("killed: it took longer than")
        assert lines[name]["figures"] == [{"name": "before", "value": 1.0, "unit": ""}]
    assert lines["works"]["error"] == "no time left" and ran.returncode == 1
    child = Path(f"/proc/{(tmp_path / 'child').read_text()}")
    assert not child.exists() or "Z" in (child / "stat").read_text().split()[2]


def test_without_time_nothing_is_started(faults):
    ran, _, lines = faults("works", "--minutes", "0")
    assert lines["works"]["status"] == "not run" and lines["works"]["error"] == "no time left"
    assert ran.returncode == 1


def test_time_that_earlier_sections_left_over_goes_to_the_next_but_not_the_share_of_later_ones(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from gpu.runner import Runner, Section, Setting

    first, second, third = (Section(name, "row", seconds, "x:y") for name, seconds in (("a", 10), ("b", 20), ("c", 30)))
    runner = Runner(Setting(small=True, folder=tmp_path), out=tmp_path / "out", deadline_s=70)
    # 70 s, of which 50 are kept for the others; with nothing left to spare a section has its own share
    assert runner._limit(first, [second, third]) == pytest.approx(20, abs=0.5)
    assert runner._limit(second, [third]) == pytest.approx(40, abs=0.5)
    runner.until -= 30
    assert runner._limit(second, [third]) == pytest.approx(20, abs=0.5)
    runner.until -= 25
    assert runner._limit(third, []) == pytest.approx(15, abs=0.5)


def test_a_process_that_could_not_use_the_card_is_started_anew(faults, monkeypatch):
    """A copy of a process that started CUDA cannot use it. Here the program is made to believe that it did."""
    monkeypatch.setenv("FORKED", "yes")
    ran, _, lines = faults("works,crashes")
    assert lines["works"]["status"] == "passed" and lines["works"]["figures"][0]["value"] == 0.5
    assert lines["crashes"]["error"].endswith("MemoryError: out of memory on the card") and ran.returncode == 1


def test_the_figures_of_a_killed_process_are_read_up_to_its_last_whole_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from gpu.report import Report

    report = Report(tmp_path / "figures")
    report.ran("something")
    report.figure("a", 1.0)
    with report.path.open("a") as file:
        file.write('{"name": "b", "val')
    assert report.read() == {"ran": "something", "figures": [{"name": "a", "value": 1.0, "unit": ""}]}


def test_the_step_that_is_compared_with_trl_runs_at_tiny_sizes(tmp_path):
    ran, _, lines = run([str(ROOT / "benchmarks" / "gpu_trl.py")], tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert {lines[name]["status"] for name in ("radflow", "radflow_recomputed")} == {"passed"}
    for name in ("trl", "trl_recomputed"):
        assert lines[name]["status"] == "passed" or lines[name]["error"] == "trl is not installed here"


def pins(path):
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return dict(line.lower().replace("_", "-").split("==") for line in lines if line)


def test_wheels_for_the_card_are_the_versions_that_everything_is_tested_with():
    wheels = pins(ROOT / "requirements" / "gpu-wheels.txt")
    tested = pins(ROOT / "constraints.txt") | pins(ROOT / "requirements" / "peers.txt")
    assert {name: version for name, version in wheels.items() if name in tested} == {
        name: tested[name] for name in wheels if name in tested
    }
    assert {"transformers", "tyro", "nltk", "loky", "defusedxml", "rouge-score"} <= wheels.keys()
