"""One metric has one value: `score`, `compare` and the reward agree on every metric of the registry, chest and carotid;
and the labeler that reads the labels is that of the reports."""

import json
from functools import partial

import pytest
import yaml
from radgraph_archives import write_archive
from tiny_encoders import tiny_bert, tiny_chexbert, tiny_roberta

from radflow.data.phantoms import make_studies
from radflow.data.sections import parse_sections
from radflow.evaluation.compare import CompareConfig, compare, tables
from radflow.evaluation.measuring import MeasureConfig, Measures, annotate_once, measure
from radflow.evaluation.rules import Rules, choose_rules
from radflow.evaluation.score import ScoreConfig, score
from radflow.evaluation.scored import _labels, per_study
from radflow.evaluation.table_metrics import PER_REPORT, table_metrics
from radflow.evaluation.weights import Weights
from radflow.rewards.config import RewardConfig
from radflow.rewards.registry import LABELERS, METRICS, build_reward
from radflow.rewards.rules.criticality import CriticalityRules
from radflow.rewards.rules.keywords import CAROTID

LABELER = {"chest": "chexpert_rules", "carotid": "carotid_rules"}
# needs a server or a package: other tests
ELSEWHERE = {"consistency_llm", "meteor", "cider", "ratescore", "temporal_f1"}


@pytest.fixture(scope="module")
def reports():
    """modality -> 60 references, and the same exchanged with one another: each study gets the report of another."""
    found = {}
    for modality in LABELER:
        studies = make_studies(modality, num_train=60, num_val=0, num_test=0, seed=0, size=56)
        texts = [study.report for study in studies]
        swapped = [*texts[1:], texts[0]]
        swapped[3], swapped[5] = "no headers here", swapped[5].replace(". ", ".\n")  # what readers of texts differ in
        found[modality] = texts, swapped
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory, reports):
    """Tiny random models in the published formats."""
    root = tmp_path_factory.mktemp("weights")
    tiny_chexbert(root / "chexbert.pth", tiny_bert(root / "bert-base-uncased"))
    tiny_roberta(root / "distilroberta-base", layers=5)
    write_archive(root, "radgraph", reports["chest"][0][:20])
    return Weights(root, radgraph_encoder=root / "encoder-radgraph", device="cpu")


@pytest.fixture
def files(tmp_path, reports):
    def write(modality, folder=tmp_path):
        folder.mkdir(parents=True, exist_ok=True)
        for name, texts in zip(("references", "swapped"), reports[modality], strict=True):
            content = {f"s{i}": {"report": text} for i, text in enumerate(texts)}
            (folder / f"{name}.json").write_text(json.dumps(content))
        return folder / "swapped.json", folder / "references.json"

    return write


def run_of(tmp_path, **reward):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"seed": 0, "reward": reward}))
    return tmp_path / "run" / "eval"


@pytest.mark.parametrize("modality", LABELER)
def test_score_compare_and_reward_agree_on_every_metric_to_the_last_digit(modality, reports, weights, files):
    swapped, references = files(modality)
    choice = {"references": references, "labeler": LABELER[modality], "num_resamples": 100}
    scored = score(ScoreConfig(predictions=swapped, **choice), weights)
    compared = compare(CompareConfig(systems=(references, swapped), **choice), weights)
    config = RewardConfig(
        expert=LABELER[modality],
        bertscore=weights.bertscore_config(),
        chexbert=weights.chexbert_config(),
        radgraph=weights.radgraph_config(),
    )
    names = [name for name in METRICS if name not in ELSEWHERE]
    reward = build_reward(config, parse_sections, also=names)
    targets, written = reports[modality]
    columns = reward.metrics.table(written, targets).columns
    rows = per_study(scored)
    seen = set()
    for name in (name for name in PER_REPORT if name not in ELSEWHERE):
        if name == "keyword_f1_rules" and modality == "chest":
            continue  # carotid keywords: left out of both tables
        assert [row[name] for row in rows] == columns[name] == compared.systems[1].cells[name].tolist(), name
        seen.add(name)
    # What no table of evaluate.py shows is measured by the same objects, and where it means the same it is the same.
    backends = Measures(MeasureConfig(), weights, Rules(LABELER[modality])).backends
    others = [name for name in names if name not in seen]
    cells, _ = measure(list(zip(written, targets, strict=True)), names=others, protocol="rexrank", backends=backends)
    for name in others:
        assert [None if v != v else v for v in cells[name].tolist()] == columns[name], name
    assert columns["radgraph_f1_report"] == columns["radgraph_f1_partial"]
    assert seen | {*others} == METRICS.keys() - ELSEWHERE


@pytest.mark.parametrize("modality", LABELER)
def test_total_of_the_reward_is_made_of_the_values_that_score_shows(modality, reports, files, tmp_path):
    swapped, references = files(modality)
    scored = score(
        ScoreConfig(predictions=swapped, references=references, labeler=LABELER[modality]), Weights(tmp_path)
    )
    rows = per_study(scored)
    reward = build_reward(RewardConfig(expert=LABELER[modality], printed=True), parse_sections)
    targets, written = reports[modality]
    for row, result, text in zip(rows, reward(written, targets), written, strict=True):
        if parse_sections(text).status == "ok" and "\n" not in text:
            parts = (row["bleu2"] + row["rouge_l"]) / 2, row["entity_f1_rules"], row["consistency_rules"]
            assert result.total == pytest.approx(sum(parts) + row["label_f1_rules"], abs=1e-12)


def test_two_carotid_reports_exchanged_agree_on_no_label(tmp_path):
    left = "Findings: Soft plaque in the left carotid artery with mild stenosis. Impression: Left mild stenosis."
    right = "Findings: Hard plaque in the right carotid artery with severe stenosis. Impression: Right hard plaque."
    for name, texts in (("a", (left, right)), ("b", (right, left))):
        (tmp_path / f"{name}.json").write_text(json.dumps(dict(zip("xy", texts, strict=True))))
    options = {"predictions": tmp_path / "a.json", "references": tmp_path / "b.json", "num_resamples": 100}
    scored = score(ScoreConfig(labeler="carotid_rules", **options), Weights(tmp_path))
    assert scored.cells["label_f1_rules"].tolist() == [0.0, 0.0]
    reward = build_reward(RewardConfig(expert="carotid_rules"), parse_sections)
    assert [s.parts["label_f1_rules"] for s in reward([left, right], [right, left])] == [0.0, 0.0]
    # by the rules of the chest both are normal: refused instead of a label F1 of 1
    with pytest.raises(ValueError, match="abnormal in 0 of 2, carotid_rules in 2; choose the labeler carotid_rules"):
        score(ScoreConfig(**options), Weights(tmp_path))


def test_a_run_brings_its_own_labeler(tmp_path, files, reports):
    swapped, references = files("carotid", run_of(tmp_path, expert="carotid_rules"))
    config = CompareConfig(systems=(references, swapped), references=references, num_resamples=100)
    compared = compare(config, Weights(tmp_path))
    judged = CriticalityRules(LABELERS["carotid_rules"](parse_sections))(reports["carotid"][0])
    assert compared.critical.tolist() == [one.critical for one in judged] and 30 < compared.critical.sum() < 60
    made, notes = tables(compared)
    assert [row[0] for row in made[2].rows] == [*LABELERS["carotid_rules"].labels] and "carotid_rules" in notes[0]
    scored = score(ScoreConfig(predictions=swapped, num_resamples=100, references=references), Weights(tmp_path))
    assert {row.metric.name for row in scored.rows if row.interval} >= {"rules_micro_f1_11", "rules_macro_f1_11"}
    labels = _labels(scored)[0]["labels_rules"]["reference"]
    assert {*labels} == LABELERS["carotid_rules"](parse_sections)([reports["carotid"][0][0]])[0]


def test_a_run_brings_its_own_lexicon_and_runs_that_differ_need_a_choice(tmp_path, files):
    lexicon = tmp_path / "own.json"
    run = run_of(tmp_path, expert="chexbert", lexicon=str(lexicon))
    words = {"effusion": {"terms": ["effusion"]}, "heart": {"terms": ["heart"]}}
    denied = {key: ["x"] for key in ("before", "after", "ends")}
    sides = {key: [key] for key in ("left", "right", "both")}
    content = {"name": "own", "keywords": words, "normal": {"name": "normal", "terms": ["clear"]}}
    lexicon.write_text(json.dumps(content | {"denied": denied, "sides": sides}))
    swapped, references = files("chest", run)
    texts = [entry["report"] for entry in json.loads(references.read_text()).values()]
    rules = choose_rules(None, None, [swapped, references, None], texts)
    assert rules == Rules("chexpert_rules", lexicon, {})
    other = tmp_path / "other" / "eval"
    other.mkdir(parents=True)
    (tmp_path / "other" / "config.yaml").write_text(yaml.safe_dump({"reward": {"expert": "carotid_rules"}}))
    with pytest.raises(ValueError, match="one labeler and one lexicon"):
        choose_rules(None, None, [swapped, other / "x.json"], texts)


@pytest.mark.parametrize("modality", LABELER)
def test_the_labeler_of_another_organ_is_refused_and_a_default_that_finds_nothing_is_left_out(modality, reports):
    texts, wrong = reports[modality][0], LABELER["carotid" if modality == "chest" else "chest"]
    with pytest.raises(
        ValueError, match=f"made for: .*{LABELER[modality]} in .*choose the labeler {LABELER[modality]}"
    ):
        choose_rules(wrong, None, [], texts)
    assert choose_rules(LABELER[modality], None, [], texts).labels_fit
    other = ["Findings: The liver measures 14 cm. Impression: See text."] * 12
    rules = choose_rules(None, None, [], other)
    assert not rules.labels_fit and "finds none in any of 12" in rules.missing["label_f1_rules"]
    with pytest.raises(ValueError, match="finds none in any of 12; choose the one made for these reports"):
        choose_rules(LABELER[modality], None, [], other)


def test_references_that_are_all_normal_suit_the_labeler():
    rules = choose_rules("chexpert_rules", None, [], ["Findings: Clear lungs. Impression: Normal chest."] * 20)
    assert rules.labels_fit


def test_a_named_lexicon_without_keywords_is_refused_and_the_default_is_left_out(reports, tmp_path):
    texts = reports["chest"][0]
    assert "0 of 60 references name a keyword" in choose_rules(None, None, [], texts).missing["keyword_f1_rules"]
    with pytest.raises(ValueError, match="0 of 60 references name a keyword of the lexicon carotid ultrasound; choose"):
        choose_rules(None, CAROTID, [], texts)


def test_label_sets_are_those_of_the_labeler():
    def names(labels):
        return [row.name for row in table_metrics(labels) if row.name.startswith("rules")]

    assert names(LABELERS["chexpert_rules"].labels) == [
        f"rules_{kind}_f1_{number}" for number in (14, 5) for kind in ("micro", "macro")
    ]
    assert names(LABELERS["carotid_rules"].labels) == ["rules_micro_f1_11", "rules_macro_f1_11"]


def test_rows_of_a_single_section_do_not_name_another_one():
    labels = {row.name: row.label for row in table_metrics((), one_section=True)}
    shown = [labels[name] for name in ("label_f1_rules", "entity_f1_rules", "keyword_f1_rules", "bleu2")]
    assert shown == ["label F1 (rules)", "entity F1 (rules)", "keyword F1 (rules)", "BLEU-2"]


def test_a_graph_file_is_asked_before_the_model(weights, tmp_path, reports):
    texts, written = reports["chest"]
    measures = Measures(MeasureConfig(cache=tmp_path / "graphs.sqlite"), weights, Rules())
    names = ["radgraph_f1_rexrank", "radgraph_f1_partial"]
    first = measures.cells(written[:6], texts[:6], title="t", names=names)
    again = Measures(MeasureConfig(cache=tmp_path / "graphs.sqlite"), weights, Rules())

    def refuse(texts):
        raise AssertionError(f"annotated again: {texts}")

    radgraph = again.backends.radgraph
    radgraph.annotate = partial(annotate_once, refuse, radgraph.cache)
    second = again.cells(written[:6], texts[:6], title="t", names=names)
    assert all((first[name] == second[name]).all() for name in names)
