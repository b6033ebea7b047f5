"""Graphs and scores against the radgraph package 0.1.18 on the same random archives (`make test-peers`)."""

import csv
import json
import random

import pytest
from radgraph.radgraph import F1RadGraph
from radgraph.rewards import compute_reward
from radgraph.utils import preprocess_reports
from radgraph_archives import Sizes, write_archive
from radgraph_package import load_package, restored_methods

from radflow.rewards.radgraph.f1 import LEVELS, RadGraphConfig, RadGraphF1
from radflow.rewards.radgraph.text import tokenise

MODELS = ("radgraph", "radgraph-xl", "modern-radgraph-xl")


@pytest.fixture(scope="module")
def corpus(shared):
    with (shared / "data/iu_xray/indiana_reports.csv").open(encoding="utf-8") as file:
        return [f"Findings: {row['findings']}\nImpression: {row['impression']}" for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def reports(corpus):
    """60 texts: of 1 to 400 words, cut from real reports, some with marks and words that tokenizers find hard."""
    words, draw = " ".join(corpus[:800]).split(" "), random.Random(0)
    lengths = [1, 2, 3, 8, 9, 398, 399, 400, *(round(400 ** draw.random()) for _ in range(40))]
    texts = []
    for length in lengths:
        start = draw.randrange(len(words) - length)
        texts.append(" ".join(words[start : start + length]))
    odd = [
        "5.2% (2.1 cm) c/w a/p/o ?",
        "no \u200b\u200b effusion",
        "[SEP] normal \ufe0f",
        "a /. b /? c",
        "Ödem 3-4 % µm",
    ]
    blank = ["", " ", "\n\n", "\t \n", "", "  "]
    return [*texts, *odd, *blank, "None"]


@pytest.fixture(scope="module", params=MODELS)
def pair(request, corpus, tmp_path_factory):
    """Model, package and our annotator on one archive; segments are short, so that reports of 400 words need many."""
    folder, model = tmp_path_factory.mktemp(request.param), request.param
    write_archive(folder, model, corpus[1000:1400], Sizes(max_length=96))
    with restored_methods():
        yield model, folder, load_package(folder, model)


def test_graphs_of_60_reports_are_identical(pair, reports):
    model, folder, package = pair
    assert len(reports) == 60
    ours = RadGraphF1.load(RadGraphConfig(path=folder, model=model)).annotate(reports)
    written = [text for text in reports if text.strip()]
    theirs = list(package(written).values())
    expected = dict(zip(written, theirs, strict=True))
    entities = relations = wide = 0
    for text, graph in zip(reports, ours, strict=True):
        if not text.strip():
            assert graph == {}
            continue
        assert graph == expected[text]["entities"]
        assert " ".join(tokenise(text, model)) == expected[text]["text"]
        entities += len(graph)
        relations += sum(len(entity["relations"]) for entity in graph.values())
        wide += sum(entity["end_ix"] > entity["start_ix"] for entity in graph.values())
    # Nothing would be proved by graphs that are empty or full.
    words = sum(len(tokenise(text, model)) for text in reports)
    assert 0.2 * words < entities < 2 * words and relations > 0.05 * words and wide > 0.1 * words


def test_texts_without_words_stop_the_package_and_not_us(pair):
    model, folder, package = pair
    with pytest.raises(AssertionError):
        package([" "])
    assert RadGraphF1.load(RadGraphConfig(path=folder, model=model)).annotate([" ", "\n"]) == [{}, {}]


def test_rewards_are_those_of_the_package(pair, reports):
    model, folder, _ = pair
    short = [text for text in reports if 0 < len(text.split()) < 60]
    references = [*short[:20], ""]  # of length 0 only: one of spaces stops it
    candidates = references[1:] + references[:1]
    theirs = F1RadGraph(reward_level="all", model_type=model, model_cache_dir=str(folder), cuda=-1)(
        refs=references, hyps=candidates
    )[1]
    for level, expected in zip(("simple", "partial", "complete"), theirs, strict=True):
        ours = RadGraphF1.load(RadGraphConfig(path=folder, model=model, level=level))(candidates, references)
        assert ours == pytest.approx(list(expected), abs=1e-12)
        assert max(ours) > 0


def test_words_are_those_of_the_package(corpus, reports):
    texts = [
        *corpus[:400],
        *reports[:54],
        "a-b,c;d:e%.",
        'x\\ny\\fz \\u2122 \\"q\\"',
        "(5%).' 3%, (4%) e.g.'s",
        "a/ b /c",
    ]
    for model in (*MODELS, "echograph"):
        for text, expected in zip(texts, preprocess_reports(texts, model), strict=True):
            assert tokenise(text, model) == expected["sentences"][0]


def test_recorded_scores_are_those_of_the_package(shared):
    for case in json.loads((shared / "data/metric_oracles.json").read_text())["radgraph_f1"]:
        for level in ("simple", "partial", "complete"):
            theirs = compute_reward(case["hyp"], case["ref"], level)
            assert LEVELS[level](case["hyp"]["entities"], case["ref"]["entities"]) == pytest.approx(theirs, abs=1e-12)
