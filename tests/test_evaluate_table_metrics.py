"""The statistics of tables: BLEU and METEOR over a corpus, macro F1 without the labels that nobody has."""

import gc
import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import corpus_bleu as published_corpus_bleu

from radflow import evaluate
from radflow.evaluation.measuring import MeasureConfig, Measures
from radflow.evaluation.rules import Rules
from radflow.evaluation.table_metrics import available, label_cells, notes_on_labels, table_metrics
from radflow.evaluation.weights import Weights
from radflow.rewards.config import RewardConfig
from radflow.rewards.metrics.captions import MOST_WORDS, Cider, Meteor, meteor
from radflow.rewards.metrics.lexical import ngram_counts, tokens
from radflow.rewards.registry import build_reward
from radflow.rewards.rules.chexpert_rules import LABELS

ROWS = {row.name: row for row in table_metrics(LABELS)}
CORPUS_BLEU = [ROWS[f"corpus_bleu{n}"] for n in (1, 2, 3, 4)]
words = st.lists(st.sampled_from(["the", "heart", "is", "normal", "no"]), min_size=4, max_size=12).map(" ".join)


def bleu_cells(candidates, references):
    return {"bleu_counts": np.array(ngram_counts(candidates, references), dtype=np.float64)}


def test_corpus_bleu_by_hand():
    # 5 of 6 words, 2 of 4 pairs; 6 words against 8: exp(1 - 8/6). The mean over reports would be another number.
    cells = bleu_cells(["the heart is large", "no effusion"], ["the heart is normal today .", "effusion no"])
    assert CORPUS_BLEU[0].value(cells) == pytest.approx(5 / 6 * np.exp(-1 / 3))
    assert CORPUS_BLEU[1].value(cells) == pytest.approx(np.sqrt(5 / 6 * 2 / 4) * np.exp(-1 / 3))
    assert CORPUS_BLEU[3].value(cells) == 0  # no smoothing
    assert [row.value(bleu_cells([""], ["a"])) for row in CORPUS_BLEU] == [0] * 4
    assert [row.label for row in CORPUS_BLEU] == [f"corpus BLEU-{n}" for n in (1, 2, 3, 4)]


@pytest.mark.filterwarnings("ignore::UserWarning")  # on matches of 0
@given(st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_corpus_bleu_is_that_of_nltk(pairs):
    candidates, references = zip(*pairs, strict=True)
    cells = bleu_cells(candidates, references)
    for order, row in enumerate(CORPUS_BLEU, 1):
        cut = [[tokens(text)] for text in references], [tokens(text) for text in candidates]
        expected = published_corpus_bleu(*cut, weights=[1 / order] * order)
        assert row.value(cells) == pytest.approx(expected, abs=1e-12)


def test_score_and_compare_have_every_bleu_with_its_interval(tmp_path):
    texts = ["The heart is normal in size .", "No effusion is seen .", "The lungs are clear , no effusion ."]
    for name, reports in (("a", texts), ("b", [texts[0], texts[2], texts[1]])):
        (tmp_path / f"{name}.json").write_text(json.dumps(dict(zip("xyz", reports, strict=True))))
    files = [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    rest = ["--references", files[0], "--num-resamples", "200", "--out", str(tmp_path)]
    evaluate.main(["score", "--predictions", files[1], *rest])
    found = {entry["metric"]: entry for entry in json.loads((tmp_path / "summary.json").read_text())["metrics"]}
    names = [f"{scope}bleu{n}" for scope in ("", "corpus_") for n in (1, 2, 3, 4)]
    assert [*found][:8] == names and all(found[n]["low"] < found[n]["value"] < found[n]["high"] for n in names)
    header = (tmp_path / "per_study.csv").read_text().splitlines()[0]
    assert header.startswith("study_id,bleu1,bleu2,bleu3,bleu4,rouge_l,") and "counts" not in header
    evaluate.main(["compare", *files, *rest, "--changed-by", "bleu4"])
    compared = json.loads((tmp_path / "comparison.json").read_text())
    tests = {test["metric"]: test for test in compared["tests"]}
    for name in names:
        assert tests[name]["difference"] == pytest.approx(found[name]["value"] - 1)
    assert compared["tables"][-1]["title"] == "Studies that changed most, by BLEU-4"


def label_table(*studies):
    """Label cells of (labels of the prediction, labels of the reference) of each study."""
    sides = zip(*studies, strict=True)
    cells = label_cells(*([[label in found for label in LABELS] for found in side] for side in sides))
    return {"labels_rules": cells, "labels_chexbert": cells}


def test_perfect_reports_have_macro_f1_1_however_few_labels_there_are():
    # A resample without the edema leaves it out too; counted 0 the interval would begin at 1/2, and at 1/14 for all.
    cells = label_table(*[({"No Finding"}, {"No Finding"})] * 9, ({"Edema"}, {"Edema"}))
    for kind in ("micro", "macro"):
        interval = ROWS[f"rules_{kind}_f1_14"].interval(cells, num_resamples=200, seed=0)
        assert (interval.mean, interval.low, interval.high) == (1, 1, 1)
    # of the five, one resample in three has none at all, and no F1
    interval = ROWS["chexbert_macro_f1_5"].interval(cells, num_resamples=200, seed=0)
    assert (interval.mean, interval.low, interval.high) == (1, 1, 1)


def test_a_false_alarm_counts_and_the_note_gives_the_value_as_published():
    cells = label_table(({"No Finding", "Fracture"}, {"No Finding"}), ({"No Finding"}, {"No Finding"}))
    assert ROWS["rules_macro_f1_14"].value(cells) == pytest.approx((1 + 0) / 2)
    notes = notes_on_labels(list(ROWS.values()), cells)
    said = "12 labels that neither side has are left out; if they count 0, as in scikit-learn, it is 0.071"
    assert notes == [f"{title} macro F1 (14): {said}" for title in ("CheXbert", "rule labels")]
    # nothing of the five on either side: no F1, and no 0
    assert not available([ROWS[f"rules_{kind}_f1_5"] for kind in ("micro", "macro")], cells)


def meteor_counts(*, words, functions, exact, chunks):
    content = [(c - f) for c, f in zip(exact[0], exact[1], strict=True)]
    return np.array([*words, *functions, *content, *exact[1], *[0] * 12, chunks, *exact[0]], dtype=np.float64)


def test_meteor_by_hand():
    # "lungs clear" for "lungs are clear": P = 1, R = 1.5 / 1.75 = 6/7 (function words count a third of others),
    # F = 1 / (0.15 + 0.85 * 7/6), two chunks of two words: penalty 0.6
    one = meteor_counts(words=(2, 3), functions=(0, 1), exact=((2, 2), (0, 0)), chunks=2)
    assert meteor(one) == pytest.approx(0.4 / (0.15 + 0.85 * 7 / 6))
    assert meteor(np.zeros(23)) == 0 and np.isnan(meteor(np.full(23, np.nan)))
    # With "the" for "the", no chunk, P and R over both are (1.5 + 0.25) / 1.75 and / 2; 2/3 of a chunk per word
    both = one + meteor_counts(words=(1, 1), functions=(1, 1), exact=((1, 1), (1, 1)), chunks=0)
    penalty = 0.6 * (2 / 3) ** 0.2
    assert ROWS["corpus_meteor"].value({"meteor_counts": np.stack([one, both - one])}) == pytest.approx(
        (1 - penalty) / (0.15 + 0.85 * 8 / 7)
    )


ECHO = """
import sys
for line in sys.stdin:
    command, reference, candidate = line.rstrip("\\n").split("|||")
    n, m = len(candidate.split()), len(reference.split())
    print(n, m, 0, 0, n, n, *[0] * 14, 1, n, n, flush=True)
"""


def test_the_program_gets_a_line_per_pair_and_a_text_cannot_break_it():
    java = Meteor([sys.executable, "-c", ECHO])
    counts = java.counts(("clear\nlungs\r\u2028|||", "", "a " * (MOST_WORDS + 1)), ("a ||| b |||| c", "x", "a"))
    assert counts[0, [0, 1, 20]].tolist() == [2, 4, 1] and counts[1, :2].tolist() == [0, 1]
    assert java(["no  a", "a " * (MOST_WORDS + 1)], ["no a", "a"]) == [1.0, None]  # a report as its reference: no chunk
    values = {"meteor_counts": counts}
    assert ROWS["corpus_meteor"].defined(values).tolist() == [True, True, False]
    process = java.java
    del java
    gc.collect()
    assert process.returncode is not None  # it ends with its metric


@pytest.mark.parametrize("code", ["pass", "print('no heap'); input()"])
def test_a_program_that_does_not_run_is_an_error_and_no_hang(code):
    with pytest.raises(ValueError, match=r"expected 23 counts of METEOR, got [02]; run: .*python"):
        Meteor([sys.executable, "-c", code])


def test_without_the_package_meteor_and_cider_say_how_to_get_it(tmp_path, monkeypatch):
    for name in ("pycocoevalcap", "pycocoevalcap.meteor", "pycocoevalcap.cider.cider"):
        monkeypatch.setitem(sys.modules, name, None)
    missing = Measures(MeasureConfig(), Weights(tmp_path), Rules()).missing
    said = "does not load: the package pycocoevalcap is not there: pip install --no-deps pycocoevalcap==1.2"
    assert {missing[name] for name in ("meteor", "meteor_counts", "cider")} == {said}
    chinese = Measures(MeasureConfig(), Weights(tmp_path), Rules(by_character=True)).missing
    assert chinese["meteor"] == "reads English only"


def test_cider_gets_all_pairs_at_once_and_ranks_no_studies(tmp_path, monkeypatch):
    # Its weights depend on the references: in parts, or with equal pairs once, it would be another number.
    class Scorer:
        def compute_score(self, expected, written):
            return 0, [len(expected)] * len(written)

    monkeypatch.setattr(Cider, "load", lambda: Cider(Scorer()))
    measures = Measures(MeasureConfig(), Weights(tmp_path), Rules())
    cells = measures.cells(["a"] * 700, ["b"] * 700, title="t", names=["cider"])
    assert cells["cider"].tolist() == [700] * 700
    with pytest.raises(ValueError, match="of which more is better, got cider"):
        build_reward(RewardConfig(), measures.parse, explore=["cider"])
