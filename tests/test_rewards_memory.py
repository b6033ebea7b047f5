"""Memories of texts: bounded by bytes whatever is asked, and right whatever they forgot."""

import functools
import gc
import sys
from collections import Counter
from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radflow.data.sections import parse_sections
from radflow.rewards.config import RewardConfig
from radflow.rewards.memory import Kept, num_bytes, remember
from radflow.rewards.registry import build_reward

TEXTS = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3000)), max_size=60)


@dataclass(frozen=True)
class Pair:
    name: str
    numbers: frozenset[int]


def test_bytes_of_a_value_by_hand():
    size = sys.getsizeof
    pair = Pair("heart", frozenset({1, 2}))
    held = size(pair) + size("heart") + size(pair.numbers) + size(1) + size(2)
    assert num_bytes([pair, {"a": pair}]) == size([pair, 0]) + held + size({"a": 0}) + size("a") + held
    assert num_bytes(torch.zeros(10, 100)) == size(torch.zeros(0)) + 4000


@settings(max_examples=40)
@given(TEXTS)
def test_answers_are_right_and_their_bytes_bounded(asked):
    limit, made = 8000, []

    def shout(text: str) -> tuple[str]:
        made.append(text)
        return (text.upper(),)

    remembered = remember(shout, most_bytes=limit)
    entries: dict[str, int] = {}
    for letter, length in asked:
        text = letter * length
        before = remembered.cache_info().currsize
        assert remembered(text) == (text.upper(),)
        if remembered.cache_info().currsize <= before and text in made[-1:]:  # asked anew, or emptied
            entries = entries if text in entries else {}
        entries[text] = num_bytes(((text,), (text.upper(),)))
        assert len(entries) == remembered.cache_info().currsize
        assert sum(entries.values()) <= limit or len(entries) == 1


@settings(max_examples=40)
@given(TEXTS)
def test_kept_is_what_was_used_last_within_the_limit(asked):
    kept = Kept[str](4000)
    for letter, length in asked:
        text = letter * length
        assert kept([text, "other", text], lambda texts: [text.upper() for text in texts]) == {
            text: text.upper(),
            "other": "OTHER",
        }
        assert kept.size == num_bytes([*kept.values.items()]) - sys.getsizeof([*kept.values.items()]) <= 4000


def is_remembered(memory) -> bool:
    return getattr(memory.__wrapped__, "__code__", None) is remember(len).__wrapped__.__code__


def test_no_memory_of_the_rewards_grows_with_the_texts_unless_its_bytes_are_bounded():
    """Others hold lexicons, or the sentences that are read now."""
    reward = build_reward(RewardConfig(), parse_sections)

    def sizes(first: int) -> dict[str, int]:
        for number in range(first, first + 8):
            text = f"Findings: A nodule of {number} mm. Xq{number}. No effusion. Impression: Nodule of {number} mm."
            reward([text], ["Findings: Small left effusion. Impression: Effusion."])
        memories = [one for one in gc.get_objects() if type(one) is functools._lru_cache_wrapper]
        ours = [one for one in memories if (one.__module__ or "").startswith("radflow.rewards")]
        grows = [one for one in ours if (one.cache_parameters()["maxsize"] or 1000) > 256 and not is_remembered(one)]
        assert sum(map(is_remembered, ours)) > 10
        return {f"{one.__module__}.{one.__qualname__}": one.cache_info().currsize for one in grows}

    assert sizes(0) == sizes(100)


def test_the_sections_of_a_text_are_found_once_for_all_metrics():
    asked: Counter[str] = Counter()

    def parse(text):
        asked[text] += 1
        return parse_sections(text)

    reward = build_reward(RewardConfig(), parse, explore=["bleu2"])
    reports = [f"Findings: A nodule of {size} mm. No effusion. Impression: Nodule." for size in (3, 5)]
    reward.table(reports, [reports[0]] * 2)
    assert asked.keys() >= set(reports) and set(asked.values()) == {1}
