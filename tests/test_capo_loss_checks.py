"""What the losses refuse, and on which kinds of tensor they run."""

import math
from functools import partial

import pytest
import torch
import torch.distributed as dist
from loss_batches import ALL, every_loss, ones, random_batch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from capo.clipping import check_clip, critical_clip
from capo.kl import k3
from capo.loss import OBJECTIVES, capo_loss, dapo_loss, dr_grpo_loss, grpo_loss, gspo_loss

NAN, INF = math.nan, math.inf
RANGED = [name for name in ALL if name != "grpo"]
LOGPS, MASK = torch.zeros(3, 2), ones(3, 2)
BATCH = (LOGPS, LOGPS, torch.ones(3), MASK)


@pytest.mark.parametrize("bad", [-0.1, -1e-9, NAN, -INF])
@pytest.mark.parametrize("kind", ["number", "scalar", "vector", "column"])
@pytest.mark.parametrize("name", RANGED)
def test_ranges_that_cannot_be_are_refused(name, kind, bad):
    # a negative range turns min(r A, clip(r) A) upside down without any error; only one of the three reports has it
    column = torch.tensor([[0.2], [bad], [0.2]])
    clip = {"number": bad, "scalar": torch.tensor(bad), "vector": column[:, 0], "column": column}[kind]
    with pytest.raises(ValueError, match=r"expected clip_(low|high) of at least 0, got (-|nan)"):
        every_loss(MASK)[name](*BATCH, clip=clip)


@pytest.mark.parametrize("bad", [-0.1, NAN])
def test_either_side_of_a_range_is_checked(bad):
    for loss in (partial(dapo_loss, num_tokens=6), partial(gspo_loss, num_reports=3)):
        for side in ("clip_low", "clip_high"):
            with pytest.raises(ValueError, match=f"expected {side} of at least 0"):
                loss(*BATCH, **{side: bad})
    with pytest.raises(ValueError, match="expected clip_high of at least 0"):
        capo_loss(*BATCH, clip=0.2, clip_high=bad, num_reports=3)
    with pytest.raises(ValueError, match="expected clip_low of at least 0"):
        grpo_loss(*BATCH, clip=bad, num_reports=3)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -0.02, "kl": LOGPS}, "beta of at least 0 and finite, got -0.02"),
        ({"beta": NAN, "kl": LOGPS}, "beta of at least 0 and finite, got nan"),
        ({"beta": INF, "kl": LOGPS}, "beta of at least 0 and finite, got inf"),
        ({"dual_clip": NAN}, "dual_clip above 1, got nan"),
        ({"dual_clip": 0.5}, "dual_clip above 1, got 0.5"),
    ],
)
def test_options_that_cannot_be_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        every_loss(MASK)[name](*BATCH, **options)


@pytest.mark.parametrize("bad", [0, -4, NAN])
def test_counts_below_one_are_refused(bad):
    # a step of 0 reports would be a loss of inf or NaN; one of -4 would climb instead of descend
    good = {"num_reports": 3, "num_tokens": 6, "max_tokens": 2}
    used = {
        partial(capo_loss, clip=0.2): ["num_reports"],
        grpo_loss: ["num_reports"],
        dapo_loss: ["num_tokens"],
        gspo_loss: ["num_reports"],
        dr_grpo_loss: ["num_reports", "max_tokens"],
    }
    for loss, names in used.items():
        for name in names:
            with pytest.raises(ValueError, match=f"expected {name} of at least 1, got {bad}"):
                loss(*BATCH, **{key: good[key] for key in names} | {name: bad})
    with pytest.raises(ValueError, match="expected num_reports of at least 1"):
        dr_grpo_loss(*BATCH, num_reports=-1, max_tokens=-1)  # their product is 1


def test_critical_clip_refuses_nan_and_what_leaves_no_range():
    for eps, tightening in ((NAN, 4.0), (0.2, NAN), (0.2, INF), (0.2, 0.5), (0.0, 4.0), (1.0, 4.0), (-0.2, 4.0)):
        with pytest.raises(ValueError, match="expected 0 < eps_normal < 1 and tightening >= 1, got"):
            check_clip(eps, tightening)
        with pytest.raises(ValueError, match="expected 0 < eps_normal < 1"):
            critical_clip(torch.tensor([True]), eps_normal=eps, tightening=tightening)
    check_clip(0.2, 1.0)


@pytest.fixture
def mesh():
    """A device mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("layout", [Replicate(), Shard(0)], ids=str)
@pytest.mark.parametrize("advantage_dims", [1, 2])
def test_dtensors_give_what_plain_tensors_give(mesh, layout, advantage_dims):
    # a range given as a number was made a plain tensor, and PyTorch refuses to mix those with DTensors
    logps, behaviour, advantages, mask, reference = random_batch(2, spread=1.0)
    if advantage_dims == 2:
        advantages = advantages[:, None] * torch.arange(6)
    plain, kl = (logps, behaviour, advantages, mask), k3(logps.detach(), reference, mask)
    shard = lambda x: distribute_tensor(x.detach(), mesh, [layout])  # noqa: E731
    spread = [shard(x) for x in plain]
    spread[0].requires_grad_()
    for name, loss in every_loss(mask).items():
        expected = loss(*plain, kl=kl, beta=0.1, dual_clip=2.0)
        clips = (
            [{}]
            if name == "grpo"
            else [{}, {"clip": shard(torch.full((4,), 0.02 if name == "gspo" else 0.2).double())}]
        )
        for clip in clips:
            found = loss(*spread, kl=shard(kl), beta=0.1, dual_clip=2.0, **clip)
            (gradient,) = torch.autograd.grad(found.loss, spread[0])
            torch.testing.assert_close(found.loss.full_tensor(), expected.loss, rtol=1e-7, atol=0)
            torch.testing.assert_close(
                gradient.full_tensor(), torch.autograd.grad(expected.loss, logps, retain_graph=True)[0]
            )
            assert torch.equal(found.clipped_high.full_tensor(), expected.clipped_high)


@pytest.mark.parametrize("bad", [-0.1, NAN])
def test_a_range_that_is_not_read_makes_the_loss_nan(mesh, bad):
    # reading a tensor on a device would wait for it, as reading this one would need every rank
    spread = [distribute_tensor(x, mesh, [Replicate()]) for x in (*BATCH, torch.tensor([0.2, bad, 0.2]))]
    assert capo_loss(*spread[:4], clip=spread[4], num_reports=3).loss.full_tensor().isnan()


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_objective_compiles_without_a_graph_break(name):
    logps, behaviour, advantages, mask, reference = random_batch(6)
    options = {"clip": torch.full((4,), 0.2), "num_reports": 4, "num_tokens": 9, "max_tokens": 6, "beta": 0.1}
    options["kl"] = k3(logps.detach(), reference, mask)
    compiled = torch.compile(lambda *a: OBJECTIVES[name](*a, **options).loss, fullgraph=True, backend="eager")
    batch = (logps, behaviour, advantages, mask)
    torch.testing.assert_close(compiled(*batch), OBJECTIVES[name](*batch, **options).loss)
