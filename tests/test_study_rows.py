"""A row of the study in miniature, from the shared checkpoint to its result and back after a kill."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from tiny_encoders import tiny_roberta

from radflow.dashboard.archive import Archive

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

from study import arms, pages, purpose, runs, values  # noqa: E402

SMALL = {
    "data": {"source": "phantoms", "modality": "carotid", "num_train": 20, "num_test": 6, "image_size": 56},
    "model": {
        "training": "full",
        "tiny": {"hidden_size": 64, "layers": 2, "vision_hidden": 64, "vision_depth": 1},
        "processor": {"task": "carotid_us"},
    },
    "warmup": {"steps": 2},
    "sft": {"steps": 20, "batch_size": 8, "optimizer": {"lr": 2e-3}},
    "explore": {"fraction": 0.5},
    "reward": {"expert": "carotid_rules", "workers": 0, "bertscore": {"num_layers": 2}},
    "rl": {"steps": 2, "studies_per_step": 4, "optimizer": {"lr": 1e-3}},
    "rollout": {"max_new_tokens": 16},
    "evaluate": {
        "metrics": ["bertscore", "keyword_f1_rules"],
        "max_new_tokens": 16,
        "validate_every": 1,
        "validate_studies": 4,
    },
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Dataset, seed, folder and encoder of a study whose base is trained, as `runs` takes them."""
    here = tmp_path_factory.mktemp("study")
    (here / "small.yaml").write_text(yaml.safe_dump(SMALL))
    patched = pytest.MonkeyPatch()
    patched.setitem(runs.DATASETS, "small", (here / "small.yaml", {}))
    patched.setattr(runs, "KL_STUDIES", 3)  # of 6
    given = ("small", 1, here / "seed1", tiny_roberta(here / "encoder"))
    runs.train_base(*given)
    runs.run_arm(*given, arms.SFT)
    yield given
    patched.undo()
    runs.base_of.cache_clear()


def test_rows_start_from_one_checkpoint_and_train_on_the_studies_their_ranking_chose(study):
    folder = study[2]
    for arm in (arms.OURS, arms.RANK_BLEU, arms.SFT_HARD, arms.GSPO_CASE):
        runs.run_arm(*study, arm)
    assert {(folder / arm / "sft").resolve() for arm in ("sft", "ours", "sft_hard")} == {folder / "base" / "sft"}
    chosen = {}
    for arm in ("ours", "rank_bleu", "sft_hard", "gspo_case"):
        chosen[arm] = json.loads((folder / arm / "explore" / "selection.json").read_text())["selected"]
    assert chosen["ours"] == chosen["sft_hard"] == chosen["gspo_case"]
    # by hand: the lowest BLEU-2 of the predictions that every arm shares
    scores = [json.loads(line) for line in (folder / "base" / "explore" / "scores.jsonl").read_text().splitlines()]
    assert chosen["rank_bleu"] == [row["id"] for row in sorted(scores, key=lambda row: row["bleu2"])[:10]]
    moved = {arm: (folder / arm / "rl" / "model" / "model.safetensors") for arm in ("ours", "gspo_case")}
    assert moved["ours"].read_bytes() != moved["gspo_case"].read_bytes()
    again = json.loads((folder / "sft_hard" / "cost.json").read_text())
    assert again["train"] > 0 and len((folder / "sft_hard/again/sft/metrics.jsonl").read_text().splitlines()) == 4


def test_a_row_that_was_killed_before_its_result_gives_the_same_result(study):
    runs.run_arm(*study, arms.OURS)
    path = study[2] / "ours" / "result.jsonl"
    before, model = path.read_text(), (study[2] / "ours/rl/model/model.safetensors").stat().st_mtime_ns
    path.unlink()
    runs.run_arm(*study, arms.OURS)
    assert path.read_text() == before
    assert (study[2] / "ours/rl/model/model.safetensors").stat().st_mtime_ns == model


def test_a_result_has_every_metric_and_the_distance_from_sft(study):
    runs.run_arm(*study, arms.OURS)
    rows, sft = (runs.read_result(study[2], arm) for arm in ("ours", "sft"))
    assert [row["id"] for row in rows] == [row["id"] for row in sft] and len(rows) == 6
    measured = [row["kl"] is not None for row in rows]
    assert measured == [True, False] * 3 and all(row["kl"] > 0 for row in rows[::2])
    (seed,) = values.per_seed([study[2]], [arms.OURS])["ours"]
    for name in ("total", "bertscore", "keyword_f1_rules", "label_f1_true_state", "gap critical", "distinct"):
        assert seed[name] is not None, name


def test_the_page_of_settings_has_what_each_cost_and_chose(study):
    for arm in (arms.OURS, arms.SFT_HARD):
        runs.run_arm(*study, arm)
    rows, folders = [arms.SFT, arms.OURS, arms.SFT_HARD], [study[2]]
    page = pages.sensitivity_page(values.per_seed(folders, rows), rows, folders, "small")
    cells = {row[0]: dict(zip(page["columns"], row, strict=True)) for row in page["rows"]}
    assert {row["seeds"] for row in cells.values()} == {"1"}
    assert cells[arms.OURS.title]["cost"] == "1.00" and cells[arms.SFT.title]["cost"] == "-"
    critical = {row["id"]: row["critical"] for row in runs.read_lines(study[2] / "base" / "criticality.jsonl")}
    chosen = json.loads((study[2] / "ours" / "explore" / "selection.json").read_text())["selected"]
    share = sum(critical[study_id] for study_id in chosen) / len(chosen)
    assert cells[arms.OURS.title]["abnormal among the selected"] == f"{100 * share:.0f} %"


def test_a_course_begins_with_the_sft_policy_and_ends_with_the_result(study):
    runs.run_arm(*study, arms.OURS)
    points = purpose.course(study[2], "ours")
    assert [point["step"] for point in points] == [0, 1, 2]
    assert (points[0]["kl"], points[0]["worse"]) == (0.0, 0.0)
    followed = {row["id"] for row in Archive(study[2] / "ours/rl/held_out").members()[0].read()}
    result = [row["total"] for row in runs.read_result(study[2], "ours") if row["id"] in followed]
    assert points[-1]["total"] == pytest.approx(sum(result) / len(result))


def test_baselines_and_other_images_are_rows_next_to_the_policies(study):
    for arm in (*arms.BLIND[:3], arms.SAMPLED[0]):
        runs.run_arm(*study, arm)
    constant, nearest, other, sft = (
        [row["report"] for row in runs.read_result(study[2], arm)]
        for arm in ("constant", "nearest", "sft_other", "sft")
    )
    corpus = runs.base_of(*study).corpus
    assert len(set(constant)) == 1 and {*constant, *nearest} <= {study.report for study in corpus.train}
    # With other images the policy is judged by each study's own reference, and its second half gets the first's images.
    own, shown = corpus.test, runs.with_other_images(corpus.test)
    assert [study.report for study in shown] == [study.report for study in own]
    assert shown[3].images is own[0].images and len(other) == len(sft) == 6
    sampled = [row["report"] for row in runs.read_result(study[2], "sft_sampled")]
    assert sampled != sft and len(set(sampled)) == 6


def test_a_missing_result_is_named(study):
    with pytest.raises(ValueError, match="expected the result of arm dapo"):
        runs.read_result(study[2], "dapo")
