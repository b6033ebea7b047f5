"""Sums that do not depend on which thread comes first, so that a busy machine rounds as a quiet one does.

An operation that adds into the same row twice adds in the order in which threads come; it is found here by its
arguments, on one thread, and not by chance. `same_bits.py` compares results on two threads next to busy processes.
"""

import pytest
import torch
from same_bits import Steps
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from capo.logprobs import add_at
from radflow.models.qwen_vl import FAMILIES
from radflow.models.tiny import TinyConfig

# On a CPU adds of index_put and put race; on a GPU all others do, and index_put is sorted.
RACING = ("index_put", "_index_put_impl", "put", "index_add", "index_copy", "index_reduce", "scatter")
SMALL = {"hidden_size": 64, "layers": 2, "vision_hidden": 64, "vision_depth": 2}


class Writes(TorchDispatchMode):
    """Names of the operations that write to one element twice."""

    def __init__(self):
        super().__init__()
        self.repeated = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name.startswith(RACING):
            given = args[2] if isinstance(args[1], int) else args[1]  # after the dimension, if there is one
            indices = [t for t in tree_leaves(given) if isinstance(t, torch.Tensor) and t.dtype == torch.int64]
            cells = list(zip(*(t.flatten().tolist() for t in torch.broadcast_tensors(*indices)), strict=True))
            if len(set(cells)) < len(cells):
                self.repeated.append(name)
        return operator(*args, **(kwargs or {}))


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def steps(request, tmp_path_factory):
    # Of three reports two read the prompt in one call of attention.
    return Steps(
        tmp_path_factory.mktemp("model"), TinyConfig(family=request.param, **SMALL), studies=1, group=3, tokens=8
    )


@pytest.mark.parametrize("name", ["warm-up", "SFT", "rollout", "CAPO, all weights", "CAPO, LoRA"])
def test_no_step_adds_to_one_row_twice_by_an_operation_that_races(steps, name):
    with Writes() as writes:
        steps.named[name]()
    assert not writes.repeated


def test_what_races_is_found():
    # what a CAPO update did: each report's first token is predicted by the prompt's last hidden state
    hidden, predictors = torch.ones(4, 2, requires_grad=True), torch.tensor([1, 2, 1])
    with Writes() as writes:
        hidden[predictors].sum().backward()
    assert writes.repeated == ["index_put"]


def test_repeats_are_added_by_the_operation_that_keeps_their_order():
    # in float32 1e8 + 1 - 1e8 is 0, and 1 in the order 1e8 - 1e8 + 1
    index, values = torch.tensor([1, 1, 1, 0]), torch.tensor([1e8, 1.0, -1e8, 3.0])
    assert add_at(torch.zeros(2), index, values).tolist() == [3.0, 0.0]
    with FakeTensorMode():  # of a GPU without one
        graph = make_fx(add_at)(*(torch.zeros(4, dtype=t.dtype, device="cuda") for t in (values, index, values))).graph
    assert [str(node.target) for node in graph.nodes if node.op == "call_function"] == ["aten._index_put_impl_.default"]
