"""The example that puts `capo_loss` into TRL's trainer runs, and agrees with TRL's own loss where it must."""

import importlib.util
from pathlib import Path

import pytest
import torch
from trl import GRPOTrainer

path = Path(__file__).parents[1] / "docs" / "examples" / "trl_trainer.py"
spec = importlib.util.spec_from_file_location("trl_trainer", path)
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)


def test_trains_and_clips_critical_prompts(tmp_path):
    trainer = example.build_trainer(str(tmp_path))
    before = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    metrics = trainer.last_metrics
    assert not torch.equal(before, trainer.model.lm_head.weight) and metrics.reports == 8
    # the last step is the second pass over its rollouts: ratios have left 1
    assert metrics.ratio_gap_max > 0


def test_equals_trls_loss_when_every_case_has_the_same_range(tmp_path, monkeypatch):
    trainer = example.build_trainer(str(tmp_path), max_steps=2)
    trainer.critical = dict.fromkeys(example.CASES, False)
    trainer.loss_type = "grpo"
    trainer.args.use_bias_correction_kl = False
    pairs = []

    def both(self, model, inputs):
        ours = capo(self, model, inputs)
        pairs.append((float(ours.detach()), float(GRPOTrainer._compute_loss(self, model, inputs).detach())))
        return ours

    capo = example.CapoTrainer._compute_loss
    monkeypatch.setattr(example.CapoTrainer, "_compute_loss", both)
    trainer.train()
    for ours, theirs in pairs:
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert len(pairs) == 2 and abs(pairs[1][0]) > 1e-6
