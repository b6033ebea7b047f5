"""BERTScore: the recorded matching, the traps of transformers 5, rescaling. With the package: test_peers_bertscore."""

import json
import math

import pytest
import torch
from tiny_encoders import TEXTS, tiny_roberta
from transformers import RobertaModel, RobertaTokenizer

from radflow.rewards.metrics.bertscore import BertScore, BertScoreConfig, f_measure


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_roberta(tmp_path_factory.mktemp("roberta") / "model")


def load(folder, **options):
    return BertScore.load(BertScoreConfig(path=str(folder), num_layers=2, device="cpu", **options))


@pytest.fixture(scope="module")
def metric(folder):
    return load(folder)


def test_recorded_matching_and_rescaling(shared):
    (case,) = json.loads((shared / "data/metric_oracles.json").read_text())["bertscore"]["greedy_matching"]
    sides = [torch.tensor(case[f"{side}_{kind}"]) for side in ("hyp", "ref") for kind in ("vectors", "weights")]
    f = f_measure(*sides)
    assert f == pytest.approx(case["F"], abs=1e-6)
    published = BertScore(None, baseline=BertScoreConfig().rescaling, cache_mb=0)
    assert published._rescaled(f) == pytest.approx(case["F_rescaled"], abs=1e-5)
    assert published._rescaled(0.0) == pytest.approx(-5.5501561)  # of an empty report


def test_matching_by_hand():
    # hypothesis: one word along x between special tokens along y; reference: words along x and at 45 degrees
    hypothesis = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 1.0]])
    reference = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    # P: the word meets x exactly, 1. R: x meets it, 1; the 45 degrees meet the word or a special token, 0.7071
    recall = (1 + math.sqrt(0.5)) / 2
    f = f_measure(hypothesis, torch.tensor([0.0, 1.0, 0.0]), reference, torch.ones(2))
    assert f == pytest.approx(2 * 1 * recall / (1 + recall))
    assert f_measure(hypothesis, torch.zeros(3), reference, torch.ones(2)) == 0.0


def test_the_first_word_is_read_like_any_other(metric):
    ids = metric.encoder.ids(["heart", "the heart"])
    assert ids[1][-2:] == ids[0][1:]
    plain = RobertaTokenizer.from_pretrained(metric.encoder.tokenizer.name_or_path)
    assert plain("heart")["input_ids"] != ids[0]  # what transformers 5 gives by default


def test_the_layer_asked_for_is_the_one_compared(folder, metric):
    ids = torch.tensor(metric.encoder.ids([TEXTS[0]]))
    expected = RobertaModel.from_pretrained(folder).eval()(ids, output_hidden_states=True).hidden_states[2]
    ((_, states),) = metric.encoder.batches(ids.tolist())
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=0)


def test_a_copy_gets_one_and_empty_texts_the_lowest_value(metric):
    assert metric([TEXTS[0], "", "", "x"], [TEXTS[0], "", "x", " \n"]) == pytest.approx([1, 0, 0, 0], abs=1e-6)


def test_texts_longer_than_the_model_are_cut(metric):
    # no model_max_length in the tokenizer's files; 66 positions, two of them unused by RoBERTa
    long = " ".join(TEXTS * 5)
    assert len(metric.encoder.ids([long])[0]) == 64
    assert metric([long], [long + " and more"]) == pytest.approx([1.0], abs=1e-6)


def test_values_do_not_depend_on_neighbours_batches_or_memory(folder, metric):
    candidates, references = [TEXTS[1], "Clear.", TEXTS[0]] * 2, [TEXTS[0], TEXTS[1], TEXTS[1], *TEXTS]
    together = metric(candidates, references)
    alone = [load(folder, token_budget=1, cache_mb=0)([c], [r])[0] for c, r in zip(candidates, references, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert metric(candidates, references) == together


def test_references_are_encoded_once(metric, monkeypatch):
    metric(["a"], [TEXTS[2]])
    asked, before = [], metric.encoder.ids
    monkeypatch.setattr(metric.encoder, "ids", lambda texts: asked.extend(texts) or before(texts))
    metric(["b", "b", "c"], [TEXTS[2]] * 3)
    assert asked == ["b", "c"]


def test_memory_of_references_is_bounded(folder):
    metric = load(folder, cache_mb=1)
    metric.kept.limit = 5000  # bytes: one of these reports, 27 tokens of 32 numbers of 4 bytes and its text
    for text in TEXTS:
        metric(["x"], [text])
    assert metric.kept.size <= 5000 and list(metric.kept.values) == [TEXTS[-1]]


def test_rescaling_is_in_force_only_where_a_baseline_is_known():
    assert BertScoreConfig(path="/models/distilroberta-base/").rescaling == 0.8473319
    assert BertScoreConfig(num_layers=4).rescaling is None
    assert BertScoreConfig(path="xlm-roberta-base").rescaling is None
    assert BertScoreConfig(path="xlm-roberta-base", baseline=0.5).rescaling == 0.5


def test_an_encoder_that_is_not_there_says_what_was_expected(folder, tmp_path):
    with pytest.raises(ValueError, match="expected the directory of an encoder"):
        load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="num_layers from 1 to 3"):
        BertScore.load(BertScoreConfig(path=str(folder)))
