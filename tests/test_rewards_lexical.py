import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radflow.rewards.metrics.lexical import Bleu2, RougeL, tokens

words = st.lists(st.sampled_from(["the", "heart", "is", "normal", "effusion", "no"]), min_size=2, max_size=12).map(
    " ".join
)


def test_recorded_values_of_the_reference_scorers(shared):
    cases = json.loads((shared / "data/metric_oracles.json").read_text())["text_metrics"]
    assert len(cases) == 10
    for case in cases:
        assert tokens(case["hyp"]) == case["hyp_tokens"] and tokens(case["ref"]) == case["ref_tokens"]
        assert Bleu2()([case["hyp"]], [case["ref"]])[0] == pytest.approx(case["bleu2"], abs=1e-12)
        assert RougeL()([case["hyp"]], [case["ref"]])[0] == pytest.approx(case["rougeL_f_stemmed"], abs=1e-12)


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
    assert Bleu2()([candidate], [reference])[0] == pytest.approx(value)


def test_only_spaces_separate_and_full_stops_stand_apart():
    # from the definition: a newline glues, a comma stays, a decimal point is a full stop
    assert tokens("Normal.\nNo, 1.2 cm") == ["normal", ".\nno,", "1", ".2", "cm"]


@given(words, words)
def test_scores_lie_in_the_unit_interval_and_a_copy_gets_one(a, b):
    for metric in (Bleu2(), RougeL()):
        (value,) = metric([a], [b])
        assert 0 <= value <= 1
        assert metric([a], [a]) == [pytest.approx(1.0)]


def test_importing_the_reward_loads_nothing_but_itself_and_a_little_of_the_standard_library():
    # Modules are counted instead of seconds, which depend on the machine; each costs about half a millisecond.
    code = "import sys; before = set(sys.modules); import radflow.rewards.registry; print(*set(sys.modules) - before)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {name.split(".")[0] for name in loaded} - sys.stdlib_module_names == {"radflow"}
    assert len(loaded) < 150
