"""Metrics that RadEval 2.2 also has, and RaTEScore's own package, on tiny models and made-up reports."""

import json
import sys
from types import ModuleType, SimpleNamespace

import nltk
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from RaTEScore import RaTEScore
from tiny_encoders import TEXTS, empty_punkt, tiny_bert, tiny_srr_bert
from transformers import BertTokenizer, DebertaV2Config, DebertaV2ForTokenClassification, MPNetConfig, MPNetModel

from radflow.rewards.metrics.lexical import RougeL
from radflow.rewards.metrics.ratescore import TYPES, RateScore, RateScoreConfig
from radflow.rewards.metrics.srrbert import LABELS, SrrBert, SrrBertConfig
from radflow.rewards.metrics.temporal import TemporalF1

CANDIDATES = [*TEXTS, "Stable cardiomegaly.\n2. No new effusion", "Edema. Edema. The heart is normal."]
REFERENCES = [
    TEXTS[1],
    TEXTS[2],
    TEXTS[0],
    "1. Cardiomegaly is unchanged.2. Clear lungs.",
    "Heart size normal; no edema",
]


def marked(text):
    """Stands in for stanza's pipeline: every word cut at a slash is an observation."""
    words = text.replace("/", " ").split()
    return SimpleNamespace(entities=[SimpleNamespace(text=word, type="OBSERVATION") for word in words])


@pytest.fixture(scope="module")
def temporal():
    stanza = ModuleType("stanza")
    stanza.Pipeline = lambda **_: marked
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "stanza", stanza)
        from radeval.metrics.f1temporal.f1temporal import KEYWORDS, F1Temporal

        yield F1Temporal, sorted(KEYWORDS)


@given(data=st.data())
def test_temporal_f1_equals_radevals(temporal, data):
    theirs, words = temporal
    piece = st.sampled_from([*words, "edema", "New", "UNCHANGED.", " ", ", ", "-", "_", "/", "'", "\n", "é", "___"])
    pairs = data.draw(st.lists(st.tuples(*[st.lists(piece, max_size=12).map("".join)] * 2), min_size=1, max_size=5))
    candidates, references = zip(*pairs, strict=True)
    expected = theirs(predictions=list(candidates), references=list(references))["sample_scores"]
    assert TemporalF1(marked)(candidates, references) == pytest.approx(expected, abs=1e-12)


def test_srr_bert_equals_radevals(tmp_path, monkeypatch):
    from radeval.metrics.SRRBert import srr_bert

    bert = tiny_bert(tmp_path / "cxr-bert")
    folder = tiny_srr_bert(tmp_path / "srr", bert)
    monkeypatch.setattr(nltk.data, "path", [str(empty_punkt(tmp_path / "nltk_data"))])
    load = BertTokenizer.from_pretrained
    files = {"model_path": str(folder), "mapping_file": "leaves_with_statuses_mapping.json"}
    monkeypatch.setattr(srr_bert.SRRBert, "MODEL_CONFIGS", {"leaves_with_statuses": files})
    with monkeypatch.context() as offline:  # for theirs alone, which names its tokenizer on the hub
        offline.setattr(srr_bert.BertTokenizer, "from_pretrained", lambda _: load(bert, model_max_length=64))
        theirs = srr_bert.SRRBert(model_type="leaves_with_statuses")
    assert tuple(sorted(theirs.mapping, key=theirs.mapping.__getitem__)) == LABELS
    ours = SrrBert.load(SrrBertConfig(folder, bert, device="cpu"))
    found, expected = ours(CANDIDATES), ours(REFERENCES)
    report = theirs.evaluate(REFERENCES, CANDIDATES)[0]
    support = {label: sum(label in labels for labels in expected) for label in LABELS}
    assert support == {label: report[label]["support"] for label in LABELS}
    from radflow.evaluation.table_metrics import label_cells, weighted_f1

    cells = label_cells(*([[label in labels for label in LABELS] for labels in side] for side in (found, expected)))
    assert weighted_f1(cells.sum(0).astype(float)) == pytest.approx(report["weighted avg"]["f1-score"], abs=1e-12)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of entities and one of embeddings in the published layout, each with the words of TEXTS."""
    root = tmp_path_factory.mktemp("ratescore")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    for name in ("ner", "lord"):
        vocabulary = (tiny_bert(root / name) / "vocab.txt").read_text().splitlines()
        labels = {0: "O"}
        for kind in sorted(TYPES):
            labels |= {len(labels): f"B-{kind}", len(labels) + 1: f"I-{kind}"}
        options = {"vocab_size": len(vocabulary), "initializer_range": 0.5, **sizes}
        if name == "ner":
            config = DebertaV2Config(**options, id2label=labels, label2id={v: k for k, v in labels.items()})
            DebertaV2ForTokenClassification(config).save_pretrained(root / name)
        else:
            MPNetModel(MPNetConfig(**options, max_position_embeddings=64)).save_pretrained(root / name)
        settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
        (root / name / "tokenizer_config.json").write_text(json.dumps(settings))
    return root / "ner", root / "lord"


def test_ratescore_equals_its_packages(models):
    theirs = RaTEScore(*map(str, models), use_gpu=False).compute_score(CANDIDATES, REFERENCES)
    ours = RateScore.load(RateScoreConfig(*models, device="cpu"))(CANDIDATES, REFERENCES)
    assert ours == pytest.approx(theirs, abs=1e-6) and len({*ours}) == len(ours) and 0.5 not in ours


def test_the_package_gives_reports_after_an_empty_one_the_scores_of_others(models):
    # The reason why reports are handed over one at a time. When this fails, the package has been mended.
    package, ours = RaTEScore(*map(str, models), use_gpu=False), RateScore.load(RateScoreConfig(*models, device="cpu"))
    candidates = ["", *CANDIDATES[1:]]
    expected = [0.5, *ours(CANDIDATES[1:], REFERENCES[1:])]
    assert ours(candidates, REFERENCES) == pytest.approx(expected, abs=1e-6)
    shifted = package.compute_score(candidates, REFERENCES)
    assert len(shifted) == len(candidates) - 1 and shifted[0] == pytest.approx(ours(CANDIDATES[1:2], REFERENCES[:1])[0])


def test_rouge_l_equals_radevals():
    from radeval import RadEval

    theirs = RadEval(metrics=["rouge"], per_sample=True, show_progress=False)(refs=REFERENCES, hyps=CANDIDATES)
    assert RougeL()(CANDIDATES, REFERENCES) == pytest.approx(theirs["rougeL"], abs=1e-9)
