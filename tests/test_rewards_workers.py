"""Rewards in worker processes: the same numbers as in this process; a worker's death and a reward's error."""

import os
import signal
import subprocess
import sys

import pytest
from tiny_encoders import tiny_bert, tiny_chexbert, tiny_roberta

from radflow.data.sections import parse_sections, render_report
from radflow.rewards.config import RewardConfig
from radflow.rewards.editing import Editing, GroupScorer
from radflow.rewards.faults import RewardError
from radflow.rewards.metrics.bertscore import BertScoreConfig
from radflow.rewards.metrics.chexbert import ChexbertConfig
from radflow.rewards.registry import build_reward
from radflow.rewards.workers import RewardWorkers, scores_of

REFERENCE = "Findings: Small left pleural effusion. Impression: Left pleural effusion."
CANDIDATES = ["Findings: Lungs are clear. Impression: No acute disease.", REFERENCE, "no headers at all", ""]


def kill_this_process(_: str):
    os.kill(os.getpid(), signal.SIGKILL)


def fail(_: str):
    raise ZeroDivisionError("made to fail")


@pytest.mark.parametrize("workers", [0, 2])
def test_scores_are_those_of_the_reward_itself(workers):
    config = RewardConfig(workers=workers)
    expected = build_reward(config, parse_sections)(CANDIDATES, [REFERENCE] * 4)
    with RewardWorkers(config, parse_sections) as pool:
        pending = [pool.submit([text], [REFERENCE]) for text in CANDIDATES]
        assert [scores_of(future, study_id="s").scores[0] for future in pending] == expected


def silent_on_empty(candidates, references):
    """A plug-in that cannot answer for an empty report."""
    return [1.0 if c else None for c in candidates]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_submitted_together_is_one_group(workers):
    config = RewardConfig(workers=workers, plugin=f"{__name__}:silent_on_empty")
    with RewardWorkers(config, parse_sections) as pool:
        scored = scores_of(pool.submit(CANDIDATES, [REFERENCE] * 4), study_id="s")
    assert [score.left_out for score in scored.scores] == [("silent_on_empty",)] * 4
    assert [score.missing for score in scored.scores] == [(), (), (), ("silent_on_empty",)]
    assert scored.seconds["bleu2"] > 0 and "silent_on_empty" in scored.seconds


@pytest.mark.parametrize("workers", [0, 1])
def test_copies_are_made_where_the_reports_are_scored(workers):
    candidates = ["Findings: No pneumothorax. Impression: Normal chest.", REFERENCE, "no headers"]
    config, edits = RewardConfig(workers=workers), Editing(1.0, False, render_report)
    wanted = GroupScorer(build_reward(config, parse_sections), edits)(candidates, [REFERENCE] * 3)
    with RewardWorkers(config, parse_sections, editing=edits) as pool:
        found = scores_of(pool.submit(candidates, [REFERENCE] * 3), study_id="s")
    assert found.scores == wanted.scores
    assert found.copies == wanted.copies and found.seconds["edits"] > 0


@pytest.fixture(scope="module")
def with_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    bert = tiny_bert(folder / "bert")
    encoder = BertScoreConfig(path=str(tiny_roberta(folder / "roberta")), num_layers=2, device="cpu")
    labels = ChexbertConfig(path=tiny_chexbert(folder / "c.pth", bert), bert=str(bert), device="cpu")
    return lambda **options: RewardConfig(bertscore=encoder, chexbert=labels, **options)


GROUPS = [(CANDIDATES[i:] + CANDIDATES[:i], [CANDIDATES[i % 2]] * 4) for i in range(4)]


@pytest.mark.parametrize("options", [{"preset": "bertscore"}, {"expert": "chexbert"}])
def test_scores_of_models_do_not_depend_on_what_a_worker_scored_before(with_models, options):
    """With more workers each meets other groups, in another order. That must not tell, not in the last digit."""
    config = with_models(**options)
    first, second = (build_reward(config, parse_sections) for _ in range(2))
    in_order = [first(*group) for group in GROUPS]
    assert [second(*group) for group in reversed(GROUPS)] == in_order[::-1]
    assert [first(*group) for group in GROUPS] == in_order


def test_a_worker_loads_the_models_itself(with_models):
    config = with_models(preset="bertscore", workers=1)
    expected = build_reward(config, parse_sections)(*GROUPS[1])
    with RewardWorkers(config, parse_sections) as pool:
        scores = scores_of(pool.submit(*GROUPS[1]), study_id="s").scores
    assert [s.total for s in scores] == pytest.approx([s.total for s in expected], abs=1e-5)


def test_the_death_of_a_worker_names_the_study():
    with RewardWorkers(RewardConfig(workers=1), kill_this_process) as pool:
        future = pool.submit(CANDIDATES, [REFERENCE] * 4)
        with pytest.raises(
            RewardError, match=r"study s7: .*its worker died twice: it was killed, perhaps for want of memory"
        ):
            scores_of(future, study_id="s7")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_reward_names_the_study(workers):
    with RewardWorkers(RewardConfig(workers=workers), fail) as pool:
        future = pool.submit(CANDIDATES, [REFERENCE] * 4)
        with pytest.raises(RewardError, match=r"study s7: .*made to fail"):
            scores_of(future, study_id="s7")


def test_a_worker_does_not_import_the_program_that_started_it(tmp_path):
    # A program such as train.py loads transformers: half a gigabyte and seconds for each worker.
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "print('imported', os.getpid(), flush=True)\n"
        "from data.sections import parse_sections\n"
        "from rewards.config import RewardConfig\n"
        "from rewards.workers import RewardWorkers, scores_of\n"
        "if __name__ == '__main__':\n"
        "    with RewardWorkers(RewardConfig(workers=1), parse_sections) as pool:\n"
        "        print(scores_of(pool.submit(['a'], ['Findings: A.']), study_id='s').scores[0].parts['bleu2'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.count("imported") == 1
