"""Encoders whose linear layers multiply with reordered weights, against the layers as they were."""

import copy

import pytest
import torch
from transformers import BertConfig, BertModel

from radflow.rewards.metrics.encoder import place_encoder

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return BertModel(BertConfig(vocab_size=50, initializer_range=0.3, **SIZES))


def states(model, rows):
    with torch.inference_mode():
        ids = torch.arange(rows * 7).view(rows, 7) % 50
        return model(input_ids=ids, attention_mask=(ids != 3).long()).last_hidden_state


@pytest.mark.parametrize("rows", [1, 5])
def test_hidden_states_are_those_of_the_layers_as_they_were(model, rows):
    expected = states(copy.deepcopy(model).eval(), rows)
    placed = place_encoder(model, "cpu")
    # float32 sums in another order, of states with a scale of 1
    torch.testing.assert_close(states(placed, rows), expected, atol=1e-5, rtol=0)


def test_the_weights_as_they_were_are_freed_and_their_biases_kept(model):
    placed = place_encoder(model, "cpu")
    linear = [layer for layer in placed.modules() if isinstance(layer, torch.nn.Linear)]
    assert len(linear) == 2 * 6 + 1 and all(layer.weight is None and layer.bias is not None for layer in linear)
    assert not placed.training and not any(parameter.requires_grad for parameter in placed.parameters())


def test_half_precision_keeps_its_layers(model):
    placed = place_encoder(model.bfloat16(), "cpu")
    assert all(layer.weight is not None for layer in placed.modules() if isinstance(layer, torch.nn.Linear))
