"""CheXbert from its published file formats; labels, embeddings."""

import json

import pytest
import torch
from tiny_encoders import TEXTS, bert_config, chexbert_state, tiny_bert, tiny_chexbert
from transformers import BertModel

from radflow.rewards.metrics.chexbert import (
    NUM_CLASSES,
    Chexbert,
    ChexbertConfig,
    ChexbertLabels,
    SembScore,
    positive_labels,
)
from radflow.rewards.rules.chexpert_rules import LABELS


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("bert") / "bert-base-uncased")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, bert):
    return tiny_chexbert(tmp_path_factory.mktemp("chexbert") / "chexbert.pth", bert)


def load(checkpoint, bert, **options):
    return Chexbert.load(ChexbertConfig(path=checkpoint, bert=str(bert), device="cpu", **options))


@pytest.fixture(scope="module")
def model(checkpoint, bert):
    return load(checkpoint, bert)


def test_equal_to_the_published_arithmetic(model, bert):
    """The [CLS] of the last layer, and each head on it, computed a text at a time as stanfordmlgroup/CheXbert does."""
    state = {name.removeprefix("module."): value for name, value in chexbert_state(bert).items()}
    plain = BertModel(bert_config(bert)).eval()
    plain.load_state_dict(
        {k.removeprefix("bert."): v for k, v in state.items() if k.startswith("bert.") and "position_ids" not in k}
    )
    texts = [*TEXTS, "", "effusion " * 100]
    for text, embedding, classes in zip(texts, model.embeddings(texts), model.classes(texts), strict=True):
        ids = torch.tensor(model.encoder.tokenizer(text, truncation=True, max_length=64)["input_ids"])
        cls = plain(ids[None])[0][0, 0]
        torch.testing.assert_close(embedding, cls, atol=1e-5, rtol=0)
        heads = [state[f"linear_heads.{i}.weight"] @ cls + state[f"linear_heads.{i}.bias"] for i in range(14)]
        assert classes == tuple(int(head.argmax()) for head in heads)


def test_zip_and_legacy_files_hold_the_same_model(tmp_path, bert, model):
    old = load(tiny_chexbert(tmp_path / "old.pth", bert, legacy=True), bert)
    torch.testing.assert_close(old.embeddings(TEXTS), model.embeddings(TEXTS), atol=0, rtol=0)


def test_white_space_does_not_count(model):
    texts = ["the heart is normal", " the\nheart  is\t normal \n"]
    assert model.encoder.ids([" ".join(t.split()) for t in texts])[0] == model.encoder.ids(texts[:1])[0]
    first, second = model.embeddings(texts)
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)


def test_labels_follow_the_uncertain_rule():
    class Fixed:
        def classes(self, texts):
            # Cardiomegaly positive, Edema uncertain, Pneumonia negative, No Finding positive
            row = [0] * 14
            row[LABELS.index("Cardiomegaly")], row[LABELS.index("Edema")], row[LABELS.index("Pneumonia")] = 1, 3, 2
            row[-1] = 1
            return [tuple(row)] * len(texts)

    both = {"Cardiomegaly", "Edema", "No Finding"}
    assert ChexbertLabels(Fixed(), uncertain="positive")(["a", "a"]) == [both, both]
    assert ChexbertLabels(Fixed(), uncertain="negative")(["a"]) == [both - {"Edema"}]


def test_a_text_is_labelled_once(model, monkeypatch):
    labels, asked = ChexbertLabels(model, uncertain="positive"), []
    before = model.classes
    monkeypatch.setattr(model, "classes", lambda texts: asked.extend(texts) or before(texts))
    first = labels([TEXTS[0], TEXTS[1], TEXTS[0]])
    assert labels([TEXTS[1], TEXTS[2]])[0] == first[1]
    assert asked == [TEXTS[0], TEXTS[1], TEXTS[2]]


def test_sembscore_is_the_cosine_of_the_embeddings(model):
    values = SembScore(model)([TEXTS[0], TEXTS[1]], [TEXTS[0], TEXTS[0]])
    a, b = model.embeddings(TEXTS[:2])
    assert values == pytest.approx([1.0, float(a @ b / (a.norm() * b.norm()))], abs=1e-5)


def test_recorded_class_conversions(shared):
    (case,) = json.loads((shared / "data/metric_oracles.json").read_text())["chexbert"]["class_conversion"]
    assert positive_labels(case["argmax"]) == case["rrg"]


def test_references_are_encoded_once_and_come_out_the_same(checkpoint, bert):
    metric, encoded = SembScore(load(checkpoint, bert)), []
    real = metric.model.encoder.ids
    metric.model.encoder.ids = lambda texts: encoded.extend(texts) or real(texts)
    first = metric(TEXTS[:2] * 2, TEXTS[2:3] * 4)
    assert sorted(encoded) == sorted(TEXTS)  # a text that comes twice is encoded once
    assert metric(TEXTS[:1], TEXTS[2:3]) == pytest.approx(first[:1], abs=1e-6) and encoded[3:] == [TEXTS[0]]
    assert metric([], []) == []


def test_labels_read_the_embeddings_that_the_score_has_made(model):
    texts, encoded = [f"{text} Again." for text in (*TEXTS, "Edema.")], []
    real = model.encoder.ids
    model.encoder.ids = lambda texts: encoded.extend(texts) or real(texts)
    SembScore(model)(texts[:2], texts[2:])
    labels = ChexbertLabels(model, uncertain="positive")
    assert labels(texts[:2]) + labels(texts[2:]) == labels(texts) and sorted(encoded) == sorted(texts)
    model.encoder.ids = real


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("module.linear_heads.13.bias"), "14 heads"),
        (lambda s: s.update({"module.linear_heads.13.weight": torch.zeros(4, 32)}), "linear_heads.13 of 2 x 32"),
        (lambda s: s.pop("module.bert.embeddings.LayerNorm.weight"), "does not fit the BERT"),
        (lambda s: s.update({"module.extra": torch.zeros(1)}), "extra"),
    ],
)
def test_a_checkpoint_that_is_not_chexbert_is_refused(tmp_path, bert, change, said):
    state = chexbert_state(bert)
    change(state)
    torch.save({"model_state_dict": state}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match=said):
        load(tmp_path / "c.pth", bert)


def test_files_that_cannot_be_read_are_named(tmp_path, bert):
    with pytest.raises(ValueError, match=r"expected chexbert\.path to name the published"):
        load(None, bert)
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text.pth: expected weights as torch"):
        load(tmp_path / "text.pth", bert)
    torch.save({"state": 1}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="model_state_dict"):
        load(tmp_path / "other.pth", bert)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, bert):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"model_state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="cannot read them"):
        load(tmp_path / "evil.pth", bert)


def test_classes_of_the_heads():
    assert NUM_CLASSES == (4,) * 13 + (2,)
