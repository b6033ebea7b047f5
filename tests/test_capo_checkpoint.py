"""Checkpoints are whole or refused with the reason, and what is refused never hides what is good."""

import json
import resource

import pytest
import torch

from capo.checkpoint import CheckpointError, Checkpoints
from capo.ranks import Ranks

IDENTITY = {"config": "c1", "selection": "s1"}


def state(value):
    return {"parameter/w": torch.full((3, 2), float(value)), "exp_avg/w": torch.full((3, 2), value / 2)}


def saved(folder, *steps, identity=IDENTITY, keep=2):
    checkpoints = Checkpoints(folder, Ranks(), identity=identity, keep=keep)
    for step in steps:
        checkpoints.save(step, state(step), {"num_updates": step})
    checkpoints.finish()
    return checkpoints


def loaded(folder, identity=IDENTITY, **options):
    tensors = state(0)
    facts = Checkpoints(folder, Ranks(), identity=identity).load(tensors, **options)
    return facts, tensors


def test_the_newest_comes_back_bit_for_bit_and_old_ones_go(tmp_path):
    saved(tmp_path, 10, 20, 30)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_00000020", "step_00000030"]
    facts, tensors = loaded(tmp_path)
    assert facts["step"] == 30 and facts["num_updates"] == 30
    assert all(torch.equal(tensors[name], value) for name, value in state(30).items())


def test_what_is_saved_is_the_state_at_that_moment(tmp_path):
    live, checkpoints = state(1), Checkpoints(tmp_path, Ranks(), identity={})
    checkpoints.save(1, live, {})
    live["parameter/w"].fill_(99.0)  # the training goes on while the files are written
    checkpoints.finish()
    assert loaded(tmp_path, {})[1]["parameter/w"].unique().tolist() == [1.0]


def test_one_that_the_caller_objects_to_is_passed_over_and_none_is_left_out_in_silence(tmp_path):
    saved(tmp_path, 10, 20)
    with pytest.warns(UserWarning, match=r"step_00000020: is of 20 updates; passed over"):
        facts, tensors = loaded(tmp_path, check=lambda facts: "is of 20 updates" * (facts["num_updates"] == 20))
    assert facts["step"] == 10 and torch.equal(tensors["parameter/w"], state(10)["parameter/w"])
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"step_00000010: too old.*Restore what is missing"):
        loaded(tmp_path, check=lambda _: "too old")


def test_no_checkpoint_is_none_and_an_unfinished_one_is_no_checkpoint(tmp_path):
    assert loaded(tmp_path / "absent")[0] is None
    (tmp_path / "step_00000010.tmp").mkdir()
    assert loaded(tmp_path)[0] is None
    saved(tmp_path, 20)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000020"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-8])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def change(path, key, value):
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


@pytest.mark.parametrize(
    ("damage", "file", "reason"),
    [
        (cut, "*.safetensors", "bytes, expected"),
        (flip, "*.safetensors", "SHA-256"),
        (lambda path: path.unlink(), "*.safetensors", "cannot be read"),
        (cut, "checkpoint.json", "cannot be read"),
        (lambda path: change(path, "num_updates", 2), "checkpoint.json", r"cannot be read \(its SHA-256"),
        (lambda path: path.unlink(), "checkpoint.json", "cannot be read"),
    ],
)
def test_a_damaged_one_is_passed_over_for_the_one_before(tmp_path, damage, file, reason):
    saved(tmp_path, 10, 20)
    damage(next((tmp_path / "step_00000020").glob(file)))
    with pytest.warns(UserWarning, match=f"step_00000020.*{reason}"):
        facts, tensors = loaded(tmp_path)
    assert facts["step"] == 10 and tensors["parameter/w"].unique().tolist() == [10.0]


def test_without_any_good_one_the_stage_does_not_start_over_in_silence(tmp_path):
    saved(tmp_path, 10)
    flip(next((tmp_path / "step_00000010").glob("*.safetensors")))
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"no checkpoint can be used.*start this stage over"),
    ):
        loaded(tmp_path)


@pytest.mark.parametrize("key", IDENTITY)
def test_one_of_another_run_is_refused(tmp_path, key):
    saved(tmp_path, 10)
    with pytest.warns(UserWarning, match=f"belongs to a run of another {key}"), pytest.raises(ValueError):
        loaded(tmp_path, {**IDENTITY, key: "other"})


def test_one_of_an_older_version_without_some_hashes_is_read(tmp_path):
    saved(tmp_path, 10, identity={"config": "c1"})
    path = tmp_path / "step_00000010/checkpoint.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "sha256"}))
    assert loaded(tmp_path)[0]["step"] == 10


def test_one_of_another_policy_is_refused(tmp_path):
    saved(tmp_path, 10)
    other = {**state(0), "parameter/v": torch.zeros(1)}
    with pytest.warns(UserWarning, match="holds other parameters.*parameter/v"), pytest.raises(ValueError):
        Checkpoints(tmp_path, Ranks(), identity=IDENTITY).load(other)


def test_a_disk_that_fills_up_leaves_the_last_good_one(tmp_path):
    checkpoints = saved(tmp_path, 10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {"parameter/w": torch.zeros(1 << 18), "exp_avg/w": torch.zeros(3, 2)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))  # a write beyond 64 kB fails, as on a full disk
    try:
        checkpoints.save(20, big, {})
        with pytest.raises(
            CheckpointError, match=r"step_00000020 could not be written.*the ones before it are untouched"
        ):
            checkpoints.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert loaded(tmp_path)[0]["step"] == 10


def test_facts_are_readable_without_torch(tmp_path):
    saved(tmp_path, 10)
    facts = json.loads((tmp_path / "step_00000010" / "checkpoint.json").read_text())
    assert facts["identity"] == IDENTITY and facts["tensors"]["parameter/w"] == [3, 2]
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob(".metadata"))  # nothing pickled
