"""The reward under the signatures of TRL and verl: the numbers of the reward itself, and None or NaN, never 0, for what
could not be computed."""

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from radflow.data.sections import parse_sections
from radflow.rewards import reward_function
from radflow.rewards.config import RewardConfig
from radflow.rewards.registry import build_reward

EFFUSION = "Findings: Small left pleural effusion. Impression: Left pleural effusion."
CLEAR = "Findings: The lungs are clear. Impression: No acute disease."
REPORTS = [EFFUSION, CLEAR, "no headers at all", ""] * 2
REFERENCES = [EFFUSION] * 4 + [CLEAR] * 4
PLAIN = RewardConfig(workers=0)


def silent_on_empty(candidates, references):
    """A plug-in that cannot answer for an empty report."""
    return [1.0 if c else None for c in candidates]


ADDED = RewardConfig(workers=0, plugin=f"{__name__}:silent_on_empty")  # to the parts of the reward
ALONE = RewardConfig(workers=0, plugin=f"{__name__}:silent_on_empty", preset="plugin")


def trl(config, reports, references, **options):
    reward = reward_function(config, parse_sections, **options)
    # what TRL 1.16 gives: every argument by name, next to the columns of the data set
    given = {"prompts": ["Report."] * len(reports), "completion_ids": [[0]] * len(reports), "trainer_state": object()}
    return reward(completions=reports, **{options.get("reference", "reference"): references}, **given)


def verl(config, reports, references):
    reward = reward_function(config, parse_sections, trainer="verl")
    pairs = zip(reports, references, strict=True)
    return [reward(data_source="x", solution_str=c, ground_truth=r, extra_info={}) for c, r in pairs]


def verl_batch(config, reports, references):
    reward = reward_function(config, parse_sections, trainer="verl_batch")
    names = {"data_sources": ["x"] * len(reports), "extra_infos": [{}] * len(reports)}
    return reward(solution_strs=reports, ground_truths=references, **names)


@pytest.mark.parametrize(("call", "workers"), [(trl, 0), (verl, 0), (verl_batch, 0), (verl_batch, 2)])
def test_every_trainer_is_given_the_totals_of_the_reward(call, workers):
    expected = [score.total for score in build_reward(PLAIN, parse_sections)(REPORTS, REFERENCES)]
    assert call(RewardConfig(workers=workers), REPORTS, REFERENCES) == expected
    assert expected[0] == 4 and len(set(expected)) == 4


def test_rewards_are_in_the_order_of_the_batch_when_studies_are_mixed():
    order = [5, 0, 7, 2, 1, 4, 3, 6]
    whole = trl(PLAIN, REPORTS, REFERENCES)
    assert trl(PLAIN, [REPORTS[i] for i in order], [REFERENCES[i] for i in order]) == [whole[i] for i in order]


def test_messages_of_a_chat_are_read_as_what_the_model_wrote_last():
    chats = [
        [{"role": "assistant", "content": EFFUSION}],
        [{"role": "assistant", "content": [{"type": "text", "text": EFFUSION[:20]}, {"text": EFFUSION[20:]}]}],
        [{"role": "assistant", "content": CLEAR}, {"role": "assistant", "content": EFFUSION}, {"role": "tool"}],
    ]
    assert trl(PLAIN, chats, [EFFUSION] * 3) == [4, 4, 4]
    nothing = [[{"role": "assistant", "content": None, "tool_calls": []}], []]
    assert trl(PLAIN, nothing, [EFFUSION] * 2) == trl(PLAIN, ["", ""], [EFFUSION] * 2)


def test_a_part_that_one_report_lacks_counts_for_nobody_in_its_group():
    # the empty report has no value of the plug-in; the study next to it has them all, and is paid 1 more for each
    reports, references = [EFFUSION, "", CLEAR, CLEAR], [EFFUSION, EFFUSION, CLEAR, CLEAR]
    plain = trl(PLAIN, reports, references)
    assert trl(ADDED, reports, references) == [plain[0], plain[1], plain[2] + 1, plain[3] + 1]
    assert verl_batch(ADDED, reports, references) == [plain[0], plain[1], plain[2] + 1, plain[3] + 1]


def test_a_reward_that_could_not_be_computed_is_none_or_nan_and_never_0():
    assert trl(ALONE, [EFFUSION, ""], [EFFUSION] * 2) == [1, None]
    for config, call, first in [(ALONE, verl_batch, 1), (ALONE, verl, 1), (ADDED, verl, 5)]:
        values = call(config, [EFFUSION, ""], [EFFUSION] * 2)
        assert values[0] == first and math.isnan(values[1])


def test_threads_of_verls_reward_loop_share_one_reward():
    reward = reward_function(PLAIN, parse_sections, trainer="verl")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pair: reward("x", *pair), [*zip(REPORTS, REFERENCES, strict=True)] * 4))
    assert found == trl(PLAIN, REPORTS, REFERENCES) * 4


def test_the_column_of_references_can_have_another_name():
    assert trl(PLAIN, [EFFUSION], [EFFUSION], reference="report") == [4]
    reward = reward_function(PLAIN, parse_sections)
    with pytest.raises(ValueError, match=r"expected the dataset column 'reference' .* got report; name yours"):
        reward(prompts=["Report."], completions=[EFFUSION], report=[EFFUSION], trainer_state=object())


@pytest.mark.parametrize(
    ("call", "references", "message"),
    [
        (trl, [CLEAR], "column 'reference': expected one reference per report, 2, got 1"),
        (trl, [CLEAR, None], "column 'reference': expected the text of a reference report in row 1, got NoneType"),
        (verl_batch, [CLEAR, "  "], "ground_truths: expected the text of a reference report in row 1, got blank text"),
        (verl, [{"report": 1}, CLEAR], "ground_truth: expected the text of a reference report in row 0, got dict"),
    ],
)
def test_references_that_are_no_reports_are_refused(call, references, message):
    with pytest.raises(ValueError, match=message):
        call(PLAIN, [CLEAR, CLEAR], references)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_reward_lacks_is_told_when_it_is_built(workers):
    with pytest.raises(ValueError, match=r"expected chexbert\.path"):
        reward_function(RewardConfig(workers=workers, expert="chexbert"), parse_sections)
    with pytest.raises(ValueError, match="expected a trainer among trl, verl, verl_batch, got 'ppo'"):
        reward_function(RewardConfig(workers=workers), parse_sections, trainer="ppo")


def test_a_program_that_scored_in_workers_ends():
    code = (
        "from radflow.data.sections import parse_sections\n"
        "from radflow.rewards import reward_function\n"
        "import sys\nassert 'nltk' not in sys.modules, 'the import is not cheap'\n"
        "from radflow.rewards.config import RewardConfig\n"
        "compute_score = reward_function(RewardConfig(workers=1), parse_sections, trainer='verl')\n"
        f"print(compute_score('x', {CLEAR!r}, {CLEAR!r}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (run.returncode, run.stdout) == (0, "4.0\n"), run.stderr
