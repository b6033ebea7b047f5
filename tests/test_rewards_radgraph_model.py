"""RadGraph's network on tiny random archives in the published format: loading, batching, an independent decoder."""

import json
import math
import os
import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from radgraph_archives import Sizes, write_archive

from radflow.rewards.metrics.encoder import cut_batches
from radflow.rewards.radgraph.archive import find_archive, read_archive
from radflow.rewards.radgraph.decoder import candidate_spans, pairs_within
from radflow.rewards.radgraph.f1 import RadGraphConfig, RadGraphF1
from radflow.rewards.radgraph.text import graph_of, tokenise

MODELS = ("radgraph", "radgraph-xl", "modern-radgraph-xl")
SENTENCES = [
    "The heart is mildly enlarged with a small left pleural effusion.",
    "No pneumothorax, focal consolidation (or edema) is seen.",
    "Lungs are clear; Cardiomediastinal silhouette within normal limits.",
    "Unchanged 1.2 cm nodule in the right upper lobe / apex.",
    "Degenerative changes of the thoracic spine?",
]
REPORTS = (
    [" ".join(SENTENCES[k:] + SENTENCES[:k]) * n for k, n in ((0, 1), (1, 3), (2, 1), (3, 9))] + SENTENCES + ["No"]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Archives of all models; segments of 40 pieces, so that the longer reports need several."""
    folder = tmp_path_factory.mktemp("archives")
    for model in MODELS:
        write_archive(folder, model, REPORTS * 3, Sizes(max_length=40))
    return folder


def load(folder, model="radgraph", **settings):
    return RadGraphF1.load(RadGraphConfig(path=folder, model=model, **settings)).annotate


@pytest.fixture(scope="module", params=MODELS)
def annotate(request, folder):
    return load(folder, request.param)


@pytest.fixture(scope="module")
def alone(annotate):
    """Text -> graph, annotated one by one."""
    return {text: annotate([text])[0] for text in REPORTS}


def plain_graph(annotate, archive, text):
    """One report, one span and one pair at a time, on features as the package concatenates them."""
    weights, a = archive.weights, archive.architecture
    words = tokenise(text, annotate.model)
    vectors = plain_vectors(annotate.encoder, words, room=a.max_length - 2)
    widths = weights["_endpoint_span_extractor._span_width_embedding.weight"]
    spans = [(s, e) for s in range(len(words)) for e in range(s, min(s + len(widths), len(words)))]
    features = [torch.cat([vectors[s], vectors[e], widths[e - s]]) for s, e in spans]

    def scores(prefix, scorer, feature):
        for number in range(len(a.hidden_sizes)):
            layer = f"{prefix}_linear_layers.{number}."
            feature = torch.relu(weights[layer + "weight"] @ feature + weights[layer + "bias"])
        return weights[scorer + "weight"] @ feature + weights[scorer + "bias"]

    ner, relation = f"_ner._ner_scorers.{a.dataset}__ner_labels.", f"{a.dataset}__relation_labels"
    pruner = f"_relation._mention_pruners.{relation}._scorer."
    entities = []
    for span, feature in zip(spans, features, strict=True):
        with_null = [0.0, *scores(f"{ner}0._module.", f"{ner}1._module.", feature).tolist()]
        best = max(range(len(with_null)), key=with_null.__getitem__)
        if best:
            entities.append((*span, a.ner_labels[best]))
    mentions = [scores(f"{pruner}0._module.", f"{pruner}1._module.", feature).item() for feature in features]
    count = max(1, math.ceil(a.spans_per_word * len(words)))
    kept = sorted(sorted(range(len(spans)), key=lambda number: -mentions[number])[:count])
    relations, scorer = [], f"_relation._relation_scorers.{relation}."
    for i in kept:
        for j in kept:
            pair = torch.cat([features[i], features[j], features[i] * features[j]])
            found = scores(f"_relation._relation_feedforwards.{relation}.", scorer, pair)
            best = found.argmax().item()
            if found[best] + mentions[i] + mentions[j] > 0:
                relations.append((*spans[i], *spans[j], a.relation_labels[best]))
    return graph_of(words, entities, relations)


def plain_vectors(encoder, words, *, room):
    """Mean of the pieces of each word; segments encoded one by one, without padding."""
    encoder, tokenizer = encoder.model, encoder.tokenizer
    bare = [{"/.": ".", "/?": "?"}.get(word, word) for word in words]
    pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in bare]
    ids, rows = [i for p in pieces for i in p], []
    for start in range(0, len(ids), room):
        segment = [tokenizer.cls_token_id, *ids[start : start + room], tokenizer.sep_token_id]
        rows.append(encoder(input_ids=torch.tensor([segment])).last_hidden_state[0, 1:-1])
    parts = torch.cat(rows).split([len(p) for p in pieces])
    return [part.mean(0) if len(part) else torch.zeros(encoder.config.hidden_size) for part in parts]


def test_graphs_are_those_of_a_plain_decoder_and_neither_empty_nor_full(folder, annotate, alone):
    texts = [REPORTS[0], REPORTS[1], *SENTENCES, "No", "a \u200b effusion", "x /. y /? z"]
    archive = read_archive(folder, annotate.model)
    assert annotate(texts) == [plain_graph(annotate, archive, text) for text in texts]
    entities = sum(map(len, alone.values()))
    relations = sum(len(entity["relations"]) for graph in alone.values() for entity in graph.values())
    words = sum(len(text.split()) for text in REPORTS)
    assert 0.1 * words < entities < 2 * words and relations > 0.05 * words


@settings(deadline=None, max_examples=8)
@given(st.lists(st.sampled_from([*REPORTS, "", " \n"]), min_size=1, max_size=8), st.sampled_from([1, 50, 512, 10**6]))
def test_a_graph_does_not_depend_on_company_order_or_batches(annotate, alone, texts, max_tokens):
    before, annotate.encoder.max_tokens = annotate.encoder.max_tokens, max_tokens
    graphs = annotate(texts)
    annotate.encoder.max_tokens = before
    assert graphs == [alone.get(text, {}) for text in texts]


def test_a_graph_does_not_depend_on_windows(annotate, alone, monkeypatch):
    monkeypatch.setattr("radflow.rewards.radgraph.annotate.WORDS_AT_ONCE", 60)
    monkeypatch.setattr("radflow.rewards.radgraph.decoder.PAIRS_AT_ONCE", 7)
    monkeypatch.setattr(annotate.encoder._pieces, "limit", 3)
    assert annotate(REPORTS) == list(alone.values())


def test_nothing_of_the_model_is_trained(annotate):
    # The encoder would otherwise carry a graph of autograd through every reward.
    assert not annotate.encoder.model.training
    assert not any(parameter.requires_grad for parameter in annotate.encoder.model.parameters())
    assert not annotate.encoder([["heart"]]).requires_grad


@given(st.lists(st.integers(1, 40), max_size=20), st.integers(1, 100))
def test_batches_hold_every_item_once_within_the_budget(lengths, budget):
    groups = cut_batches(lengths, budget)
    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[n] for n in group) <= budget for group in groups)


@given(st.lists(st.integers(0, 5), max_size=5))
def test_pairs_are_those_of_two_loops(counts):
    expected, offset = [], 0
    for count in counts:
        expected += [(offset + i, offset + j) for i in range(count) for j in range(i, count)]
        offset += count
    first, second = pairs_within(torch.tensor(counts, dtype=torch.long))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected


def test_spans_stay_within_their_report():
    spans = candidate_spans([2, 3], max_width=2, device="cpu")
    assert list(zip(spans.start.tolist(), spans.end.tolist(), spans.report.tolist(), strict=True)) == [
        (0, 0, 0),
        (0, 1, 0),
        (1, 1, 0),
        (2, 2, 1),
        (2, 3, 1),
        (3, 3, 1),
        (3, 4, 1),
        (4, 4, 1),
    ]


def test_an_archive_is_found_as_directory_parent_or_tar(folder, tmp_path):
    packed = tmp_path / "radgraph.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder / "radgraph", arcname=".")
    paths = (folder, folder / "radgraph", packed, tmp_path)
    assert [find_archive(path, "radgraph") for path in paths] == [folder / "radgraph"] * 2 + [packed] * 2
    expected = load(folder)
    for path in paths:
        loaded = load(path)
        assert loaded(REPORTS) == expected(REPORTS) and loaded.fingerprint == expected.fingerprint


def test_an_absent_archive_fails_when_the_reward_is_built_with_the_way_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for path in (None, tmp_path / "nowhere", tmp_path, Path("a/b/c"), Path("nobody/nothing")):
        with pytest.raises(ValueError, match="StanfordAIMI/RRG_scorers"):
            RadGraphF1.load(RadGraphConfig(path=path))


def test_a_name_of_the_hub_is_asked_for_the_archive_of_the_model(folder, tmp_path, monkeypatch):
    asked = []
    packed = tmp_path / "any.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder / "radgraph-xl", arcname=".")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **_: asked.append(args) or str(packed))
    loaded = load(Path("StanfordAIMI/RRG_scorers"), "radgraph-xl")
    assert asked == [("StanfordAIMI/RRG_scorers", "radgraph-xl.tar.gz")] and loaded(["No"]) is not None


def altered(folder, tmp_path, change, model="radgraph"):
    """A copy of an archive whose weights went through `change`."""
    copy = tmp_path / model
    copy.mkdir()
    for path in (folder / model).iterdir():
        if path.name != "weights.th":
            (copy / path.name).symlink_to(path)
    weights = torch.load(folder / model / "weights.th", weights_only=True)
    change(weights)
    torch.save(weights, copy / "weights.th")
    return copy


BERT = "_embedder.token_embedder_bert._matched_embedder.transformer_model."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(f"{BERT}encoder.layer.1.output.dense.bias"), r"lacks .*layer\.1\.output\.dense\.bias"),
        (lambda w: w.pop("_relation._relation_scorers.radgraph__relation_labels.bias"), r"lacks _relation\._rel"),
        (lambda w: w.update({"_context.weight": torch.zeros(2)}), r"has unknown _context\.weight"),
        (lambda w: w.update({"_ner._ner_scorers.more__ner_labels.bias": torch.zeros(2)}), "has unknown _ner"),
        (
            lambda w: w.update({"_endpoint_span_extractor._span_width_embedding.weight": torch.zeros(9, 5)}),
            r"_span_width_embedding\.weight of shape \(9, 5\) instead of \(8, 5\)",
        ),
    ],
)
def test_weights_that_the_config_does_not_describe_are_refused_by_name(folder, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load(altered(folder, tmp_path, change))


def test_position_ids_of_old_checkpoints_are_dropped(folder, tmp_path):
    copy = altered(folder, tmp_path, lambda w: w.update({f"{BERT}embeddings.position_ids": torch.arange(512)[None]}))
    assert load(copy)(REPORTS) == load(folder)(REPORTS)


def test_heads_of_a_second_label_set_are_left_alone(folder, tmp_path):
    def add(weights):
        for key in [key for key in weights if key.startswith(("_ner.", "_relation."))]:
            weights[key.replace("radgraph__", "thorax__")] = weights[key] + 1

    copy = altered(folder, tmp_path, add)
    vocabulary = (copy / "vocabulary").resolve()
    (copy / "vocabulary").unlink()
    (copy / "vocabulary").mkdir()
    for path in vocabulary.iterdir():
        for name in {path.name, path.name.replace("radgraph__", "thorax__")}:
            (copy / "vocabulary" / name).write_bytes(path.read_bytes())
    assert load(copy)(REPORTS) == load(folder)(REPORTS)


def test_weights_that_would_run_code_are_not_loaded(folder, tmp_path):
    with pytest.raises(ValueError, match=r"weights\.th: .* could run code"):
        load(altered(folder, tmp_path, lambda w: w.update({"code": print})))


def test_sizes_and_names_are_read_from_the_files(tmp_path):
    # A label set of another name, spans of 3 words, one segment a report, hidden layers of other widths.
    sizes = Sizes(hidden=48, feedforward=12, feature=7, span_width=3)
    write_archive(tmp_path, "radgraph", REPORTS, sizes, dataset="thorax")
    config = tmp_path / "radgraph" / "config.json"
    content = json.loads(config.read_text())
    content["dataset_reader"]["token_indexers"]["bert"]["max_length"] = None
    content["model"]["embedder"]["token_embedders"]["bert"]["max_length"] = None
    config.write_text(json.dumps(content))
    annotate = load(tmp_path)
    graphs = annotate(REPORTS)
    assert sum(map(len, graphs)) > 0
    assert max(e["end_ix"] - e["start_ix"] for graph in graphs for e in graph.values()) == 2


def change_config(folder, tmp_path, **changes):
    """A copy of an archive with dotted keys of its config changed; None removes one."""
    copy = altered(folder, tmp_path, lambda weights: None)
    content = json.loads((copy / "config.json").read_text())
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        place = content
        for key in parents:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    (copy / "config.json").unlink()
    (copy / "config.json").write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__feature_size": None}, r"expected the key model\.feature_size"),
        ({"dataset_reader__max_span_width": 9}, "expected one max_span_width"),
        ({"dataset_reader__token_indexers__bert__max_length": 100}, "expected one max_length"),
        ({"model__loss_weights__relation": 0.0}, "trained for relation"),
        ({"model__modules__coref__coref_prop": 2}, "no propagation of coreference"),
        ({"model__embedder__token_embedders__bert__model_name": "nobody/nothing"}, "no weights are needed"),
    ],
)
def test_configs_that_cannot_be_run_as_published_are_refused(folder, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=message):
        load(change_config(folder, tmp_path, **change))


def test_an_archive_of_another_model_is_refused(folder):
    # Its words would be cut by the wrong rule, and nothing would tell.
    with pytest.raises(
        ValueError, match=r"expected labels of 'radgraph' in vocabulary/, got those of \['radgraph-xl'\]"
    ):
        load(folder / "radgraph-xl")


def test_a_local_encoder_replaces_the_name_in_the_archive(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    names = ("model__embedder__token_embedders", "dataset_reader__token_indexers")
    copy = change_config(folder, tmp_path, **{f"{name}__bert__model_name": "nobody/nothing" for name in names})
    assert load(copy, encoder=folder / "encoder-radgraph")(REPORTS) == load(folder)(REPORTS)


def test_the_fingerprint_changes_with_whatever_graphs_depend_on(folder, tmp_path):
    def nudge(weights):
        weights["_relation._relation_scorers.radgraph__relation_labels.bias"][0] += 1e-3

    whole = {load(folder).fingerprint, load(folder, bf16=True).fingerprint, load(folder, "radgraph-xl").fingerprint}
    assert len(whole | {load(altered(folder, tmp_path, nudge)).fingerprint}) == 4
    assert load(folder, max_tokens=7).fingerprint in whole  # batches change nothing


def test_references_are_found_on_disk_by_the_next_run(folder, tmp_path):
    config = RadGraphConfig(path=folder, cache=tmp_path / "graphs.sqlite", level="complete")
    first = RadGraphF1.load(config)
    scores = first(REPORTS[1:], REPORTS[:-1])
    second = RadGraphF1.load(config)
    annotated, inner = [], second.annotate
    second.annotate = lambda texts: annotated.extend(texts) or inner(texts)
    assert second(REPORTS[1:], REPORTS[:-1]) == scores and annotated == [REPORTS[-1]]


@pytest.mark.skipif("RADFLOW_RADGRAPH" not in os.environ, reason="set RADFLOW_RADGRAPH to the archive of RadGraph v1")
def test_recorded_outputs_of_the_published_model(shared):
    cases = json.loads((shared / "data/metric_oracles.json").read_text())["weights_required"]
    smoke, upstream = cases
    for level in ("simple", "partial", "complete"):
        reward = RadGraphF1.load(RadGraphConfig(path=Path(os.environ["RADFLOW_RADGRAPH"]), level=level))
        assert reward(upstream["hyps"], upstream["refs"]) == pytest.approx(upstream["expected"][level], abs=1e-12)
    assert reward.annotate([smoke["text"]]) == [smoke["expected_entities"]]
