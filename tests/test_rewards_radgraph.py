"""RadGraph without a network: words, graphs, scores, the reward and its cache."""

import json
import multiprocessing
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radflow.rewards.radgraph.cache import GraphCache
from radflow.rewards.radgraph.f1 import LEVELS, RadGraphConfig, RadGraphF1, complete, partial, rexrank, simple
from radflow.rewards.radgraph.text import graph_of, tokenise


@pytest.fixture(scope="module")
def oracles(shared):
    return json.loads((shared / "data/metric_oracles.json").read_text())


def graph(*entities):
    """Each entity as (tokens, label, *relations), a relation as (type, number of the target)."""
    return {
        str(number): {
            "tokens": tokens,
            "label": label,
            "relations": [[kind, str(target)] for kind, target in relations],
        }
        for number, (tokens, label, *relations) in enumerate(entities, start=1)
    }


def test_recorded_scores(oracles):
    assert len(oracles["radgraph_f1"]) == 11
    for case in oracles["radgraph_f1"]:
        pair, expected = (case["hyp"]["entities"], case["ref"]["entities"]), case["expected"]
        assert rexrank(*pair) == pytest.approx(expected["rexrank_combined"], abs=1e-12), case["id"]
        for level, value in expected["radgraph_0_1_18"].items():
            assert LEVELS[level](*pair) == pytest.approx(value, abs=1e-12), (case["id"], level)


def test_recorded_words(oracles):
    assert len(oracles["radgraph_tokenise"]) == 3
    for case in oracles["radgraph_tokenise"]:
        assert tokenise(case["text"], "radgraph") == case["radgraph"]
        for model in ("radgraph-xl", "modern-radgraph-xl", "echograph"):
            assert tokenise(case["text"], model) == case["radgraph_xl"]


def test_recorded_graph_of_overlapping_spans(oracles):
    (case,) = oracles["radgraph_postprocess"]
    assert graph_of(case["sentence"], case["ner"], case["relations"]) == case["entities"]


def test_models_cut_words_at_different_marks():
    text = "Non-specific, 1.2 cm (5%)."
    # v1 knows neither hyphen nor percent sign; xl cuts them off, and parts a bracket from the full stop behind it
    assert tokenise(text, "radgraph") == ["Non-specific", ",", "1", ".", "2", "cm", "(", "5%", ")", "."]
    assert tokenise(text, "radgraph-xl") == [
        "Non",
        "-",
        "specific",
        ",",
        "1",
        ".",
        "2",
        "cm",
        "(",
        "5",
        "%",
        ")",
        ".",
    ]


@pytest.mark.parametrize("model", ["radgraph", "radgraph-xl"])
def test_white_space_has_no_words(model):
    assert tokenise("", model) == tokenise(" \n\t\u00a0", model) == []


def test_a_relation_of_a_span_that_is_no_entity_is_dropped():
    spans = [(0, 0, "OBS-DP"), (2, 2, "ANAT-DP")]
    relations = [(0, 0, 1, 1, "modify"), (0, 0, 2, 2, "located_at"), (1, 1, 0, 0, "modify")]
    made = graph_of(["a", "b", "c"], spans, relations)
    assert [entity["relations"] for entity in made.values()] == [[["located_at", "2"]], []]


def test_scores_by_hand():
    hypothesis = graph(("effusion", "OBS-DP", ("located_at", 2)), ("Left", "ANAT-DP"), ("clear", "OBS-DP"))
    reference = graph(("effusion", "OBS-DP"), ("Left", "ANAT-DP"), ("clear", "OBS-DA"))
    assert simple(hypothesis, reference) == pytest.approx(2 * 2 / 6)  # clear has another label
    assert partial(hypothesis, reference) == pytest.approx(2 * 1 / 6)  # effusion has a relation in one only
    # hypothesis: (effusion, OBS-DP, located_at, left), (Left, ANAT-DP), (clear, OBS-DP); one of three is shared
    assert complete(hypothesis, reference) == pytest.approx(2 * 1 / 6)
    assert rexrank(hypothesis, reference) == pytest.approx((2 * 2 / 6 + 0) / 2)


def test_the_case_rule_of_0_1_18():
    # complete ignores case for entities that have relations, and for their targets; nothing else ignores it
    upper = graph(("Effusion", "OBS-DP", ("located_at", 2)), ("LEFT", "ANAT-DP"))
    lower = graph(("effusion", "OBS-DP", ("located_at", 2)), ("left", "ANAT-DP"))
    assert simple(upper, lower) == partial(upper, lower) == rexrank(upper, lower) == 0
    assert complete(upper, lower) == pytest.approx(2 * 1 / 4)  # the relation, but not LEFT by itself


def test_graphs_without_relations_or_entities():
    without = graph(("effusion", "OBS-DP"))
    assert rexrank(without, without) == 0.5 and simple(without, without) == 1
    assert all(score({}, {}) == score({}, without) == score(without, {}) == 0 for score in LEVELS.values())


WORDS = st.sampled_from(["heart", "Heart", "clear", "effusion", "left"])
RELATED = st.tuples(WORDS, st.sampled_from(["OBS-DP", "OBS-DA"]), st.just(("modify", 1)))
ALONE = st.tuples(WORDS, st.just("ANAT-DP"))
ENTITIES = st.lists(RELATED | ALONE, max_size=6).map(lambda entities: graph(*entities))


@given(ENTITIES, ENTITIES, st.sampled_from(sorted(LEVELS)))
def test_scores_are_symmetric_and_lie_in_the_unit_interval(a, b, level):
    score = LEVELS[level]
    assert 0 <= score(a, b) == score(b, a) <= 1
    if a:
        assert score(a, a) == (1 if level != "rexrank" or any(e["relations"] for e in a.values()) else 0.5)


class Annotator:
    """Every word an entity; remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked.append(list(texts))
        return [graph(*((word, "OBS-DP") for word in text.split())) for text in texts]


def test_identical_texts_and_known_references_are_not_annotated_again():
    annotator = Annotator()
    reward = RadGraphF1(annotator, level="simple")
    assert reward(["heart clear", "heart clear", "heart"], ["heart", "heart", "heart"]) == pytest.approx(
        [2 / 3, 2 / 3, 1]
    )
    assert reward(["heart"], ["heart"]) == [1]
    assert annotator.asked == [["heart", "heart clear"]]
    # A policy hardly writes the same report twice: what it wrote would only fill the cache.
    assert reward.cache.read(["heart", "heart clear"]).keys() == {"heart"}


def test_texts_without_words_score_zero_and_are_not_annotated():
    annotator = Annotator()
    assert RadGraphF1(annotator, level="simple")(["", " \n", "heart", ""], ["heart", "heart", "", " "]) == [0] * 4
    assert annotator.asked == [["heart"]]


def test_a_cache_file_serves_the_next_run_of_the_same_model_only(tmp_path):
    path = tmp_path / "new" / "graphs.sqlite"
    for model, times in (("v1", 1), ("v1", 0), ("xl", 1)):
        annotator = Annotator()
        reward = RadGraphF1(annotator, level="simple", cache=GraphCache(path, model=model))
        assert reward(["heart"], ["heart clear"]) == pytest.approx([2 / 3])
        assert [("heart clear" in asked) for asked in annotator.asked] == ([True] if times else [False])


def test_the_cache_file_holds_no_report(tmp_path):
    path = tmp_path / "graphs.sqlite"
    RadGraphF1(lambda texts: [{}] * len(texts), level="simple", cache=GraphCache(path, model="v1"))(
        ["a"], ["secret text"]
    )
    assert b"secret" not in path.read_bytes()


def write_many(path, number):
    cache = GraphCache(path, model="v1")
    for k in range(20):
        cache.write({f"{number} {k}": graph((str(number), "OBS-DP")), "shared": graph(("both", "OBS-DP"))})


def test_a_cache_in_memory_is_emptied_at_its_bound(monkeypatch):
    monkeypatch.setattr("radflow.rewards.radgraph.cache.MOST_BYTES", 100_000)
    cache, found = GraphCache(None, model="v1"), []
    for number in range(300):
        cache.write({str(number): {"1": {"tokens": "x" * 1000}}})
        assert list(cache.read([str(number)])) == [str(number)] and cache._num_bytes() < 110_000
        found.append(len(cache.read(map(str, range(number + 1)))))
    assert 10 < max(found) < 100  # a row of 1 KB takes pages of its own


def test_two_processes_share_a_cache_file(tmp_path):
    path = tmp_path / "graphs.sqlite"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(path, number)) for number in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    texts = [f"{number} {k}" for number in range(2) for k in range(20)]
    found = GraphCache(path, model="v1").read([*texts, "shared", "never"])
    assert found.keys() == {*texts, "shared"} and found["1 7"] == graph(("1", "OBS-DP"))


def test_more_texts_than_one_statement_may_ask_for_are_found():
    cache, texts = GraphCache(None, model="v1"), [str(number) for number in range(1201)]
    cache.write({text: graph((text, "OBS-DP")) for text in texts})
    assert cache.read(texts) == {text: graph((text, "OBS-DP")) for text in texts}


def test_a_file_that_is_no_cache_is_named(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be read as one" * 20)
    with pytest.raises(ValueError, match=r"notes\.txt: expected a cache of graphs"):
        GraphCache(path, model="v1")
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE graphs (x)")
    with pytest.raises(ValueError, match=r"other\.sqlite: expected a cache of graphs.*no such column"):
        GraphCache(tmp_path / "other.sqlite", model="v1").read(["a"])


def test_contradictory_settings_are_refused():
    with pytest.raises(ValueError, match="expected a RadGraph level of"):
        RadGraphConfig(level="all")
    with pytest.raises(ValueError, match="max_tokens of at least 1"):
        RadGraphConfig(max_tokens=0)
