"""Metrics by packages that need not be there, RaTEScore and stanza: what they are asked, and what is said without them.

The packages are stood in for; tests/test_peers_radeval.py compares with the real ones.
"""

import importlib.util
import re
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from radflow.evaluation.score import ScoreConfig, score
from radflow.evaluation.scored import tables
from radflow.evaluation.table_metrics import label_cells, table_metrics, weighted_f1
from radflow.evaluation.weights import NEEDED, Weights, fetch_weights
from radflow.rewards.metrics.ratescore import TYPES, RateScore, RateScoreConfig
from radflow.rewards.metrics.temporal import EPSILON, TemporalConfig, TemporalF1


def document(*words, kind="OBSERVATION_MODIFIER"):
    return SimpleNamespace(entities=[SimpleNamespace(text=word, type=kind) for word in words])


@pytest.mark.parametrize(
    ("candidate", "reference", "expected"),
    [
        ("Worse edema.", "Stable edema.", 0.0),
        ("Worse edema, new effusion.", "worse-than-before edema", 2 / 3),  # hyphens separate
        ("Clear lungs.", "No effusion.", 1.0),  # neither says how anything changed
        ("Worse edema.", "Clear lungs.", EPSILON),
        ("", "Stable.", 0.0),
        ("stable/improved", "Stable and improved.", 0.0),  # the mark vanishes: one word
    ],
)
def test_temporal_f1_by_hand(candidate, reference, expected):
    metric = TemporalF1(lambda text: document())
    assert metric([candidate], [reference]) == pytest.approx([expected], abs=2e-10)


def test_what_stanza_marks_counts_if_it_is_one_of_the_words():
    marks = {
        "stable/improved": document("Improved", "effusion"),
        "Improved.": document(),
        "worse/so": document("worse", kind="ANATOMY"),
    }
    metric = TemporalF1(marks.__getitem__)
    assert metric(["stable/improved", "worse/so"], ["Improved.", "Improved."]) == pytest.approx([1.0, 0.0], abs=1e-9)


def test_stanza_is_asked_for_the_published_models_and_downloads_nothing(monkeypatch, tmp_path):
    asked = {}
    stanza = ModuleType("stanza")
    stanza.__version__ = "1.13.0"
    stanza.Pipeline = lambda language, **options: asked.update(options) or (lambda text: document())
    monkeypatch.setitem(sys.modules, "stanza", stanza)
    assert TemporalF1.load(TemporalConfig(tmp_path, "cpu"))(["New."], ["New."]) == pytest.approx([1.0])
    assert asked["download_method"] is None and asked["dir"] == str(tmp_path)
    assert (asked["package"], asked["processors"]) == ("radiology", {"tokenize": "default", "ner": "radiology"})
    stanza.__version__ = "1.9.2"
    with pytest.raises(ValueError, match=r"stanza: .*expected 1\.13 or newer, .*got 1\.9\.2"):
        TemporalF1.load(TemporalConfig(tmp_path))


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A RaTEScore whose entities are the words of a text, all diseases, embedded as themselves."""
    whole, score_part, utils, loguru = (
        ModuleType(n) for n in ("RaTEScore", "RaTEScore.score", "RaTEScore.utils", "loguru")
    )
    read = []

    def run_ner(texts, *_):
        read.extend(texts)
        return [[(word, "DISEASE") for word in text.lower().strip(".").split()] for text in texts if text]

    score_part.run_ner = run_ner
    score_part.process_embedding = lambda pairs, *_: ([word for word, _ in pairs], [kind for _, kind in pairs])
    utils.sentence_split = lambda texts: ([text for text in texts if text], [1])
    utils.compute = lambda first, second, *_: float(np.mean([word in second for word in first]))
    labels = {i: f"B-{kind}" for i, kind in enumerate(sorted(TYPES))} | {9: "O"}

    class RaTEScore:
        affinity_matrix, batch_size, idx2label = {}, 1, labels
        tokenizer = model = device = eval_tokenizer = eval_model = None

        def __init__(self, bert_model, eval_model, *, use_gpu):
            self.made = bert_model, eval_model, use_gpu

    loguru.logger, whole.RaTEScore = SimpleNamespace(disable=lambda name: None), RaTEScore
    for module in (whole, score_part, utils, loguru):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("ner", "lord"):
        (tmp_path / name).mkdir()
    return SimpleNamespace(
        scorer=RaTEScore, read=read, config=RateScoreConfig(tmp_path / "ner", tmp_path / "lord", "cpu")
    )


def test_an_empty_report_scores_half_and_moves_no_other_score(package):
    metric = RateScore.load(package.config)
    assert metric.scorer.made == (str(package.config.entities), str(package.config.embeddings), False)
    values = metric(["Edema.", "", "No edema here now."], ["Edema.", "Edema.", "Edema."])
    # the last one: a quarter of its words in the reference, and all of the reference in it
    assert values == pytest.approx([1.0, 0.5, 2 * 0.25 / 1.25])


def test_each_text_is_read_once(package):
    metric = RateScore.load(package.config)
    package.read.clear()
    metric(["a", "b", "a"], ["b", "c", "c"])
    assert sorted(package.read) == ["a", "b", "c"]


def test_a_model_of_other_entities_and_any_error_of_the_package_are_reasons(package, monkeypatch):
    for labels, kinds in (({0: "LABEL_0"}, "[]"), ({0: "B-PER", 1: "O"}, "['PER']")):
        monkeypatch.setattr(package.scorer, "idx2label", labels)
        said = f"ner: expected a model of {sorted(TYPES)}, got one of {kinds}"
        with pytest.raises(ValueError, match=re.escape(said)):
            RateScore.load(package.config)

    def fail(self, *_, **__):
        raise AttributeError("no encode_plus\nin this version")

    monkeypatch.setattr(package.scorer, "__init__", fail)
    said = r"^RaTEScore: cannot load .*: AttributeError: no encode_plus in this version; install"
    with pytest.raises(ValueError, match=said):
        RateScore.load(package.config)


def test_without_them_the_table_says_the_commands(tmp_path, monkeypatch):
    absent, find = {"RaTEScore", "stanza"}, importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name in absent else find(name, *rest))
    (tmp_path / "p.csv").write_text("id,report\n1,Findings: Clear. Impression: Normal.\n")
    config = ScoreConfig(predictions=tmp_path / "p.csv", references=tmp_path / "p.csv", num_resamples=100)
    notes = tables(score(config, Weights(tmp_path)), explained=True)[1]
    said = {line.split(": ")[1]: line for line in notes if line.startswith("unavailable")}
    assert "RaTEScore==0.6.0 medspacy" in said["RaTEScore"]
    assert "; radflow weights --fetch rate-ner biolord --accept-licence, or set weights.rate_ner" in said["RaTEScore"]
    assert "--fetch srr-bert cxr-bert, or set" in said["SRR-BERT weighted F1"]
    assert f"model_dir='{tmp_path / 'stanza'}')\", or set weights.stanza" in said["temporal F1"]
    with pytest.raises(ValueError, match="stanza is not on the hub; get it by: python -c"):
        fetch_weights("stanza", Weights(tmp_path), accept_licence=False)


def test_a_set_that_is_there_is_not_asked_for_again(tmp_path):
    for name in ("rate-ner", "biolord"):
        (tmp_path / NEEDED[name].path).mkdir()
    assert "biolord" not in (Weights(tmp_path).how_to_get("ratescore") or "")
    assert Weights(tmp_path, stanza=tmp_path).temporal_config().path == tmp_path


def test_weighted_f1_by_hand():
    # Support 3, 1 and 0. First label: 2 of 2 predicted are right, of 3: F1 = 4/5. Second: none of 1 is found: 0. The
    # third is only predicted and has no weight. (3 * 4/5 + 1 * 0) / 4 = 0.6
    expected = [[1, 0, 0], [1, 1, 0], [1, 0, 0]]
    predicted = [[1, 0, 0], [1, 0, 1], [0, 0, 0]]
    sums = label_cells(predicted, expected).sum(0)
    assert weighted_f1(sums.astype(float)) == pytest.approx(0.6)
    assert weighted_f1(label_cells([[1, 0]], [[0, 0]]).sum(0).astype(float)) == 0.0
    (row,) = [row for row in table_metrics(()) if row.name == "srrbert_weighted_f1"]
    cells = {"labels_srrbert": label_cells([r + [0] * 160 for r in predicted], [r + [0] * 160 for r in expected])}
    assert row.value(cells) == pytest.approx(0.6)
