# ruff: noqa: RUF001
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer

from radflow.data import integrity
from radflow.rewards import unspaced
from radflow.rewards.guard import guard, length, repetition
from radflow.rewards.metrics.lexical import (
    Bleu,
    RougeL,
    longest_common_subsequence,
    ngram_counts,
    notes_on_tokens,
    tokens,
    unread_share,
)
from radflow.rewards.registry import label_of

words = st.lists(st.sampled_from(["the", "heart", "is", "normal", "effusion", "no"]), min_size=2, max_size=12).map(
    " ".join
)


def test_recorded_values_of_the_reference_scorers(shared):
    cases = json.loads((shared / "data/metric_oracles.json").read_text())["text_metrics"]
    assert len(cases) == 10
    for case in cases:
        assert tokens(case["hyp"]) == case["hyp_tokens"] and tokens(case["ref"]) == case["ref_tokens"]
        assert Bleu(2)([case["hyp"]], [case["ref"]])[0] == pytest.approx(case["bleu2"], abs=1e-12)
        assert RougeL()([case["hyp"]], [case["ref"]])[0] == pytest.approx(case["rougeL_f_stemmed"], abs=1e-12)


@given(words, words)
def test_bleu_is_that_of_nltk_to_the_last_digit(candidate, reference):
    smooth = SmoothingFunction().method1
    for order in (1, 2, 3, 4):
        weights, own = [1 / order] * order, Bleu(order)([candidate], [reference])
        assert own == [sentence_bleu([tokens(reference)], tokens(candidate), weights, smooth)]


def test_bleu_and_its_counts_by_hand():
    # 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, none of the one group of four: smoothed to 0.1
    pair = ["The heart is large"], ["the heart is normal"]
    values = [Bleu(order)(*pair)[0] for order in (1, 2, 3, 4)]
    assert values == pytest.approx([3 / 4, (1 / 2) ** (1 / 2), (1 / 4) ** (1 / 3), (1 / 40) ** (1 / 4)])
    assert ngram_counts(*pair) == [[3, 2, 1, 0, 4, 3, 2, 1, 4, 4]]
    # "no" counts twice, as often as the reference has it; two words hold no triple; an empty text holds nothing
    assert ngram_counts(["no no no", ""], ["no , no", "a"]) == [[2, 0, 0, 0, 3, 2, 1, 0, 3, 3], [0] * 9 + [1]]


@pytest.mark.parametrize(
    ("candidate", "reference", "value"),
    [
        ("no effusion", "no effusion", 1.0),
        ("normal", "normal", math.sqrt(0.1)),  # one token has no bigram: smoothed to 0.1
        ("effusion", "normal heart", 0.0),  # no word matches
        ("", "normal heart", 0.0),
        # 2 of 3 words, 1 of 2 bigrams, no brevity penalty: sqrt(2/3 * 1/2)
        ("the heart enlarged", "the heart", math.sqrt(1 / 3)),
        # precisions 1 and 1, candidate of 2 against 4 words: exp(1 - 4/2)
        ("the heart", "the heart is normal", math.exp(-1)),
    ],
)
def test_bleu2_by_hand(candidate, reference, value):
    assert Bleu(2)([candidate], [reference])[0] == pytest.approx(value)


def test_only_spaces_separate_and_full_stops_stand_apart():
    # from the definition: a newline glues, a comma stays, a decimal point is a full stop
    assert tokens("Normal.\nNo, 1.2 cm") == ["normal", ".\nno,", "1", ".2", "cm"]


@given(words, words)
def test_scores_lie_in_the_unit_interval_and_a_copy_gets_one(a, b):
    for metric in (Bleu(2), RougeL()):
        (value,) = metric([a], [b])
        assert 0 <= value <= 1
        assert metric([a], [a]) == [pytest.approx(1.0)]


def test_longest_common_subsequence_by_hand():
    # b c b a of both, in this order; and more tokens than a machine word has bits: all but y, after x and a
    assert longest_common_subsequence([*"abcbdab"], [*"bdcaba"]) == 4
    assert longest_common_subsequence(["x", *"ab" * 100], [*"ba" * 90, "y"]) == 180
    assert longest_common_subsequence([], ["a"]) == 0


@given(st.lists(words, min_size=1, max_size=9).map(" ".join), words)
def test_rouge_is_that_of_its_package_to_the_last_digit(a, b):
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for candidate, reference in ((a, b), (b, a)):
        assert RougeL()([candidate], [reference]) == [scorer.score(reference, candidate)["rougeL"].fmeasure]


@given(st.text(st.characters(max_codepoint=0x24F)), st.text("ab1 .-_'İΣéK\u0301", max_size=60))
def test_words_are_cut_and_stemmed_as_the_package_does(a, b):
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    assert RougeL()([a + b], [b]) == [scorer.score(b, a + b)["rougeL"].fmeasure]


def test_importing_the_reward_loads_nothing_but_itself_and_a_little_of_the_standard_library():
    # Modules are counted instead of seconds, which depend on the machine; each costs about half a millisecond.
    code = "import sys; before = set(sys.modules); import radflow.rewards.registry; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name.split(".")[0] for name in loaded} - sys.stdlib_module_names == {"radflow"}
    assert len(loaded) < 150


@pytest.mark.parametrize(
    "text", ["两肺纹理清晰，心影不大。", "両側胸水を認めない。", "폐에 이상 소견 없음.", "ปอดปกติ ไม่พบน้ำ"]
)
def test_a_report_in_a_script_without_blanks_agrees_with_itself_alone(text):
    for metric in (Bleu(2), RougeL()):
        same, unlike = metric([text, text], [text, "甲状腺右叶见结节，大小5x4mm。"])
        assert same == pytest.approx(1.0) and unlike < 0.3


def test_characters_are_tokens_and_latin_words_stay_words_by_hand():
    # ROUGE: 左 侧 斑 块 12x3mm of both, "plaques" and "plaque" share their stem; 6 of 6 and of 7 tokens: 2 * 6 / 13
    assert RougeL()(["左侧斑块12x3mm plaques"], ["左侧见斑块，12x3mm plaque。"])[0] == pytest.approx(12 / 13)
    # BLEU: 4 of 5 characters, 2 of 4 pairs (未见, 异常): sqrt(4/5 * 2/4)
    assert Bleu(2)(["未见小异常"], ["未见明异常"])[0] == pytest.approx(math.sqrt(0.8 * 0.5))
    # as sacrebleu's tokenizer zh: characters and their punctuation apart, Latin words and numbers whole
    assert tokens("右侧12mm，IMT增厚。") == ["右", "侧", "12mm", "，", "imt", "增", "厚", "。"]


@given(st.text(st.characters(max_codepoint=0xDFF)))
def test_other_texts_are_cut_as_published(text):
    assert tokens(text) == [token for token in text.lower().replace(".", " .").split(" ") if token]


def test_tables_say_what_the_tokens_are_and_whom_rouge_does_not_fit():
    assert notes_on_tokens(["Normal heart.", "Effusión no.", "Clear lungs. " * 20]) == []
    (chinese,) = notes_on_tokens(["Normal heart.", "未见异常。"])
    assert chinese.startswith("BLEU (BLEU-2 also in RadCliQ) and ROUGE-L by character, not as published: 1 of 2")
    # 2 of 4 words are not in a-z
    (russian,) = notes_on_tokens(["Лёгкие чистые.", "Clear lungs."])
    assert russian.startswith("50% of the words of the references") and unread_share(["Лёгкие чистые."]) == 1
    assert label_of("bleu2", by_character=True) == "BLEU-2 by character" and label_of("bleu2") == "BLEU-2"


def test_both_packages_count_the_same_characters():
    assert integrity.CHARACTER == unspaced.CHARACTER
    assert integrity.count_words("未见异常，右侧 12 x 3 mm - stable.") == 6 + 6
    assert integrity.count_words("Heart - normal, 1.2 cm.") == 5  # as blanks separate


def test_a_chinese_report_that_repeats_itself_is_caught():
    text = "右侧颈动脉窦部可见低回声斑块，大小约12x3mm。"
    assert guard(text, text) == 1 and repetition(text * 20) < 0.11
    # 18 words, so at most 66: 2 of 18 earn 4 * 2/18, and 90 earn 2 - 90/66
    assert length("斑块", text) == pytest.approx(8 / 18) and length(text * 5, text) == pytest.approx(2 - 90 / 66)
