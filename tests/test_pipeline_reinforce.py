"""The RL stage of train.py: which numbers of the paper's equations reach the update."""

import dataclasses
import json

import pytest
import torch
from small_run import ROOT, SMALL, write_before_rl

from capo.ranks import Ranks
from capo.stopping import StopSignal
from capo.trainer import Trainer
from radflow import train
from radflow.dashboard.archive import Archive
from radflow.pipeline.credit import advantages_of
from radflow.pipeline.generation import suppressed_mask
from radflow.pipeline.rollouts import sample_flat_groups_anew
from radflow.pipeline.run import build_run
from radflow.pipeline.run_config import parse_config

# None is the default: whoever leaves one out shows.
OPTIONS = "--rl.steps 2 --rl.eps-normal 0.3 --rl.tightening 3 --rl.advantage-eps 0.5 --rl.inner-epochs 3"
OPTIONS += " --rl.advantage group --rl.edits.share 0 --rollout.temperature 0.7 --reward.workers 0 --reward.preset bleu"


@pytest.fixture
def step(tmp_path, monkeypatch):
    """Run the RL stage without its updates; return the run, its names of studies, their labels, the cases and rows."""
    monkeypatch.chdir(ROOT)

    def reinforce(options):
        config = parse_config(["--run-dir", str(tmp_path), *SMALL, *options.split()])
        run, start = build_run(config, Ranks(), StopSignal(), None)
        names = [study.id for study in run.corpus.train]
        critical = {name: number % 4 == 0 for number, name in enumerate(names)}
        write_before_rl(tmp_path, start, names[:8], critical)
        cases = []

        def update(trainer, batch, rl, *, temperature, suppressed, max_tokens):
            assert torch.equal(suppressed, suppressed_mask(trainer.policy, run.processor)) and suppressed.any()
            assert (rl, temperature) == (config.rl, config.rollout.temperature)
            assert max_tokens == config.rollout.max_new_tokens == 24
            assert trainer.num_steps == rl.steps * rl.inner_epochs
            cases.extend(batch)
            return {}

        monkeypatch.setattr(Trainer, "capo_step", update)
        train.reinforce(run)
        members = Archive(tmp_path / "rl" / "rollouts").members().values()
        rows = [row for member in members for row in member.read()]
        assert sorted(case.prompt.study_id for case in cases) == sorted(names[:8])
        assert [row["id"] for row in rows] == [case.prompt.study_id for case in cases]
        metrics = [json.loads(line) for line in (tmp_path / "rl" / "metrics.jsonl").read_text().splitlines()]
        return critical, cases, rows, metrics

    return reinforce


def test_advantages_clip_ranges_and_sampling_of_a_step_reach_the_update(step):
    critical, cases, rows, _ = step(OPTIONS)
    for case in cases:
        label = critical[case.prompt.study_id]
        assert (case.critical, case.clip) == (label, pytest.approx(0.1 if label else 0.3))
    spread = 0.0
    for row, case in zip(rows, cases, strict=True):
        rewards = torch.tensor([report["total"] for report in row["reports"]])
        spread += float(rewards.std())
        expected = (rewards - rewards.mean()) / (rewards.std() + 0.5)
        torch.testing.assert_close(case.advantages, expected)
    assert spread > 0


CHOSEN = "--rl.steps 2 --rl.advantage decoupled --rl.credit section --rl.truncated mask --rl.resample 1"
WEIGHTED = "--reward.workers 0 --reward.consistent 0.5 --reward.gamma 3"


def test_what_a_run_chooses_reaches_the_update(step, monkeypatch):
    """Masked reports leave, each token has its advantage, flat groups are sampled anew, weights are the reward's."""
    given, flat = [], []

    def anew(batch, engine, run, *, step):
        flat.append((step, run.config.rl.resample))
        return dataclasses.replace(sample_flat_groups_anew(batch, engine, run, step=step), resampled=7)

    def advantages(batch, rl, weights, decode, **options):
        given.append(weights)
        return advantages_of(batch, rl, weights, decode, **options)

    monkeypatch.setattr(train, "advantages_of", advantages)
    monkeypatch.setattr(train, "sample_flat_groups_anew", anew)
    _, cases, rows, metrics = step(f"{CHOSEN} {WEIGHTED} --rollout.temperature 1")
    assert given == [{"syntax": 1.0, "entity_f1_rules": 1.0, "consistency_rules": 0.5, "label_f1_rules": 3.0}] * 2
    for row, case in zip(rows, cases, strict=True):
        kept = [report for report in row["reports"] if not report["truncated"]]
        assert [len(r.response_ids) for r in case.rollouts] == [report["tokens"] for report in kept]
        assert case.advantages.shape[0] == len(kept) and case.advantages.ndim == 2
    assert any(report["truncated"] for row in rows for report in row["reports"])
    for row in metrics:
        shares = [row[f"variance_share_{name}"] for name in given[0]]
        assert sum(shares) == pytest.approx(1.0) and row["edited_reports"] == 0 and row["resampled_groups"] == 7
    assert flat == [(0, 1), (1, 1)]
