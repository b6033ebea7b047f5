"""The RL stage of train.py: which numbers of the paper's equations reach the update."""

import json
import shutil

import pytest
import torch
from small_run import ROOT, SMALL

from capo.journal import write_json, write_lines
from capo.ranks import Ranks
from capo.stopping import StopSignal
from capo.trainer import Trainer
from radflow import train
from radflow.pipeline.generation import suppressed_mask
from radflow.pipeline.run import build_run
from radflow.pipeline.run_config import parse_config

# None is the default: whoever leaves one out shows.
OPTIONS = "--rl.steps 2 --rl.eps-normal 0.3 --rl.tightening 3 --rl.advantage-eps 0.5 --rl.inner-epochs 3"
OPTIONS += " --rollout.temperature 0.7 --reward.workers 0 --reward.preset bleu"


def test_advantages_clip_ranges_and_sampling_of_a_step_reach_the_update(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = parse_config(["--run-dir", str(tmp_path), *SMALL, *OPTIONS.split()])
    run, start = build_run(config, Ranks(), StopSignal(), None)
    shutil.copytree(start, tmp_path / "sft" / "model")
    names = [study.id for study in run.corpus.train]
    critical = {name: number % 4 == 0 for number, name in enumerate(names)}
    write_json(tmp_path / "explore" / "selection.json", {"selected": names[:8]})
    write_lines(tmp_path / "criticality.jsonl", [{"id": name, "critical": critical[name]} for name in names])
    updates = []

    def update(trainer, cases, rl, *, temperature, suppressed):
        assert torch.equal(suppressed, suppressed_mask(trainer.policy, run.processor)) and suppressed.any()
        assert (rl, temperature, trainer.num_steps) == (config.rl, 0.7, 2 * 3)
        updates.append(cases)
        return {}

    monkeypatch.setattr(Trainer, "capo_step", update)
    train.reinforce(run)
    cases = [case for batch in updates for case in batch]
    assert sorted(case.prompt.study_id for case in cases) == sorted(names[:8])
    for case in cases:
        label = critical[case.prompt.study_id]
        assert (case.critical, case.clip) == (label, pytest.approx(0.1 if label else 0.3))
    paths = sorted((tmp_path / "rl" / "rollouts").iterdir())
    rows = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    spread = 0.0
    for row, case in zip(rows, cases, strict=True):
        assert row["id"] == case.prompt.study_id
        rewards = torch.tensor([report["total"] for report in row["reports"]])
        spread += float(rewards.std())
        expected = (rewards - rewards.mean()) / (rewards.std() + 0.5)
        torch.testing.assert_close(case.advantages, expected)
    assert spread > 0
