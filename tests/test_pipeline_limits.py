"""Reports and prompts that are too long are named before any stage, each study by its id."""

import dataclasses

import pytest
from PIL import Image
from small_run import SMALL

from radflow import train
from radflow.data.studies import Study
from radflow.models.processing import ProcessorConfig, ReportProcessor
from radflow.pipeline.generation import build_prompt
from radflow.pipeline.limits import check_lengths


def study(tmp_path, name, *sizes, **changes):
    paths = []
    for number, size in enumerate(sizes):
        paths.append(tmp_path / f"{name}_{number}.png")
        Image.new("L", size).save(paths[-1])
    return dataclasses.replace(Study(name, name, "train", tuple(paths), "Clear.", "Normal."), **changes)


def test_each_study_beyond_a_limit_is_named(tiny_dir, tmp_path):
    limits = {"max_pixels": 112 * 112, "min_pixels": 28 * 28, "max_prompt_tokens": 120, "max_report_tokens": 60}
    processor = ReportProcessor.load(tiny_dir, ProcessorConfig(**limits))
    fits = [study(tmp_path, "a", (300, 200)), study(tmp_path, "few", *[(40, 30)] * 4), study(tmp_path, "long", (9, 9))]
    check_lengths(fits, processor, reports=True)
    wrong = [
        study(tmp_path, "images", *[(300, 200)] * 12),
        study(tmp_path, "context", (300, 200), indication="Cough and fever. " * 40),
        study(tmp_path, "words", (300, 200), findings="The heart is enlarged. " * 2500),
        study(tmp_path, "thin", *[(2000, 4)] * 8),
    ]
    with pytest.raises(ValueError, match="4 problems in 7 studies") as caught:
        check_lengths([*fits, *wrong], processor, reports=True)
    for said in ("images: the prompt has", "context: the prompt has", "words: the report has", "thin: expected images"):
        assert f"study {said}" in str(caught.value)
    assert "the limit is 60. Drop the study or raise max_report_tokens" in str(caught.value)
    check_lengths([*fits, wrong[2]], processor, reports=False)


@pytest.mark.parametrize("sizes", [[(300, 200)], [(31, 1000), (1, 1)], [(640, 480)] * 3])
def test_the_count_without_pixels_is_the_count_of_the_prompt(tiny_dir, tmp_path, sizes):
    one = study(tmp_path, "a", *sizes, indication="Cough.", views=tuple("PA" for _ in sizes))
    count = build_prompt(ReportProcessor.load(tiny_dir, ProcessorConfig(max_pixels=200 * 200)), one).num_tokens
    for limit in (count, count - 1):
        processor = ReportProcessor.load(tiny_dir, ProcessorConfig(max_pixels=200 * 200, max_prompt_tokens=limit))
        assert count <= processor.most_prompt_tokens(len(sizes), one.indication, ", ".join(one.views))
        if limit == count:
            check_lengths([one], processor, reports=True)
        else:
            with pytest.raises(ValueError, match=f"study a: the prompt has {count} tokens"):
                check_lengths([one], processor, reports=True)


def test_a_run_ends_before_its_first_stage(tmp_path, monkeypatch):
    # 90,000 repeated words once asked for 32 GB in the first step of SFT
    from radflow.data import corpus

    made = corpus.make_studies

    def with_a_long_one(*args, **options):
        first, *others = made(*args, **options)
        return [dataclasses.replace(first, findings="effusion " * 90_000), *others]

    monkeypatch.setattr(corpus, "make_studies", with_a_long_one)
    with pytest.raises(SystemExit, match=r"study \S+: the report has \d+ tokens, the limit is 2048"):
        train.main(["--run-dir", str(tmp_path / "run"), *SMALL])
    assert not (tmp_path / "run/warmup").exists() and not (tmp_path / "run/sft").exists()
