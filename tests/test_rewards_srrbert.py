"""SRR-BERT from its published file format: sentences, labels of a report, and what is not the published model."""

import json

import nltk
import pytest
import torch
from tiny_encoders import TEXTS, empty_punkt, tiny_bert, tiny_srr_bert
from transformers import BertForSequenceClassification

from radflow.evaluation.score import ScoreConfig, score
from radflow.evaluation.scored import write
from radflow.evaluation.weights import Weights
from radflow.rewards.metrics.srrbert import LABELS, SrrBert, SrrBertConfig, prepared


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("srr")
    bert = tiny_bert(root / "cxr-bert")
    return tiny_srr_bert(root / "srr", bert), bert, empty_punkt(root / "nltk_data")


@pytest.fixture
def config(folders, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(folders[2])])
    return SrrBertConfig(*folders[:2], device="cpu", token_budget=48)


def test_a_report_has_the_labels_that_any_of_its_sentences_has(config):
    model = SrrBert.load(config)
    alone = BertForSequenceClassification.from_pretrained(config.path).eval()

    def by_hand(sentence):
        inputs = model.tokenizer(sentence, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            (row,) = torch.sigmoid(alone(**inputs).logits) > 0.5
        return {label for label, there in zip(LABELS, row.tolist(), strict=True) if there}

    sentences = ["The heart is normal in size.", "The lungs are clear.", "No pleural effusion or pneumothorax."]
    expected = set().union(*map(by_hand, sentences))
    assert model([TEXTS[0], "", "Cardiomegaly"]) == [expected, by_hand("."), by_hand("Cardiomegaly.")]
    assert 20 < len(expected) < len(LABELS) and by_hand(sentences[0]) < expected


def test_the_model_reads_a_sentence_once(config, monkeypatch):
    model, asked = SrrBert.load(config), []
    before = model._labels
    monkeypatch.setattr(model, "_labels", lambda sentences: asked.extend(sentences) or before(sentences))
    first = model([TEXTS[0], TEXTS[0]])
    assert model([f"{TEXTS[0]} Edema."])[0] >= first[0] and len(asked) == len(set(asked)) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. Clear lungs.2. No effusion", "Clear lungs. No effusion."),
        ("A nodule of 3.5 cm.No edema", "A nodule of 3.5 cm. No edema."),
        ("Clear. 2. Normal heart!", "Clear. Normal heart!"),
        ("", "."),
    ],
)
def test_numbers_of_a_list_are_taken_out_and_measurements_stay(text, expected):
    assert prepared(text) == expected


def test_another_model_or_no_sentence_model_is_refused(config, folders, tmp_path, monkeypatch):
    from transformers import BertModel

    leaves = tiny_srr_bert(tmp_path / "leaves", folders[1], outputs=55)
    with pytest.raises(ValueError, match="leaves: expected SRR-BERT with weights for 163 outputs, got 55"):
        SrrBert.load(SrrBertConfig(leaves, folders[1]))
    plain = BertModel.from_pretrained(folders[0], add_pooling_layer=False)
    plain.config.num_labels = len(LABELS)
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"163 outputs, without \['bert.pooler"):
        SrrBert.load(SrrBertConfig(tmp_path / "plain", folders[1]))
    with pytest.raises(
        ValueError, match=r"SRR-BERT: expected the directory of a published model at .*absent, found none"
    ):
        SrrBert.load(SrrBertConfig(tmp_path / "absent", folders[1]))
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(ValueError, match=r"python -m nltk\.downloader punkt_tab"):
        SrrBert.load(config)


def test_its_row_is_the_f1_of_each_label_weighted_by_the_references_that_have_it(config, tmp_path):
    predictions = {f"s{i}": text for i, text in enumerate([*TEXTS, "Edema. Atelectasis."])}
    references = {f"s{i}": text for i, text in enumerate([*TEXTS[1:], "Pneumonia.", TEXTS[0]])}
    for name, texts in (("p", predictions), ("r", references)):
        (tmp_path / f"{name}.json").write_text(json.dumps(texts))
    asked = ScoreConfig(predictions=tmp_path / "p.json", references=tmp_path / "r.json", num_resamples=100)
    weights = Weights(tmp_path, srr_bert=config.path, cxr_bert=config.tokenizer, device="cpu")
    scored = score(asked, weights)
    model = SrrBert.load(config)
    found, expected = model(list(predictions.values())), model(list(references.values()))
    total, support = 0.0, 0
    for label in LABELS:
        both = sum(label in f and label in e for f, e in zip(found, expected, strict=True))
        counts = sum(label in f for f in found), sum(label in e for e in expected)
        support += counts[1]
        total += counts[1] * (2 * both / sum(counts) if both else 0.0)
    (row,) = [row for row in scored.rows if row.metric.name == "srrbert_weighted_f1"]
    assert row.interval.mean == pytest.approx(total / support) and 0 < total < support
    write(scored, tmp_path / "out", asked)
    lines = [json.loads(line) for line in (tmp_path / "out" / "per_study.jsonl").read_text().splitlines()]
    assert [set(line["labels_srrbert"]["prediction"]) for line in lines] == found
