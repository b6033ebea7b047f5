"""What is kept of a study's prompt from one step and stage to the next."""

from dataclasses import replace

import pytest
import torch

from radflow.models.qwen_vl import load
from radflow.pipeline.generation import PromptStore, build_prompt, with_features


@pytest.fixture
def counted(tiny_dir, monkeypatch):
    """A policy, and for each pass of its tower the number of images."""
    policy, passes = load(tiny_dir), []
    forward = policy.vision.forward
    monkeypatch.setattr(
        policy.vision, "forward", lambda *args, **kw: passes.append(len(kw["grid_thw"])) or forward(*args, **kw)
    )
    return policy, passes


@pytest.fixture
def built(monkeypatch):
    """Ids of the studies whose prompts were built."""
    ids = []
    monkeypatch.setattr(
        "radflow.pipeline.generation.build_prompt", lambda *args: ids.append(args[1].id) or build_prompt(*args)
    )
    return ids


def read(store, studies):
    return store.attach(studies, [store.build(study) for study in studies])


def test_features_of_a_tower_that_is_not_trained_are_computed_once_per_study(counted, built, processor, studies):
    policy, passes = counted
    chosen, store = studies[:3], PromptStore(processor, studies[:3], limit_mb=100)
    store.follow(policy)
    built.clear()
    passes.clear()
    first, again = read(store, chosen), read(store, [chosen[2], chosen[0]])
    assert len(passes) == 1 and sorted(built) == sorted(study.id for study in chosen)
    assert again[0] is first[2] and again[1] is first[0]
    fresh = [build_prompt(processor, study) for study in chosen]
    for prompt, new, features in zip(first, fresh, policy.features(fresh), strict=True):
        assert torch.equal(prompt.features, features) and len(prompt.pixel_values) == 0
        assert torch.equal(prompt.input_ids, new.input_ids)
    passes.clear()
    assert torch.equal(policy.features(first)[1], first[1].features) and passes == []  # what every pass reads


def test_features_do_not_depend_on_which_study_was_read_first(counted, processor, studies):
    policy, _ = counted
    corpus, found = studies[:11], []  # one pass of 8 studies and one of 3
    for order in (corpus, corpus[::-1], [corpus[9]]):
        store = PromptStore(processor, corpus, limit_mb=100)
        store.follow(policy)
        found.append({prompt.study_id: prompt.features for prompt in read(store, order)})
    assert all(torch.equal(features, found[0][name]) for each in found for name, features in each.items())


def test_they_last_from_stage_to_stage_as_long_as_the_tower_is_the_same(counted, tiny_dir, processor, studies):
    policy, passes = counted
    store = PromptStore(processor, studies[:2], limit_mb=100)
    store.follow(policy)
    before = read(store, studies[:2])
    store.release()  # the stage is over
    store.follow(load(tiny_dir))  # the next one loads the same weights
    assert read(store, studies[:2])[1] is before[1]
    with torch.no_grad():
        policy.vision.patch_embed.proj.weight.mul_(2)
    store.follow(policy)
    passes.clear()
    after = read(store, studies[:2])
    assert len(passes) == 1 and not torch.equal(after[1].features, before[1].features)


def test_a_tower_that_is_trained_finds_the_pixels_again_and_no_features(counted, built, processor, studies):
    policy, _ = counted
    store = PromptStore(processor, studies[:2], limit_mb=100)
    store.follow(policy)
    read(store, studies[:2])
    store.follow(None)
    built.clear()
    prompts = read(store, studies[:2]) + read(store, studies[:2])
    assert built == [studies[0].id, studies[1].id]
    assert all(prompt.features is None and len(prompt.pixel_values) for prompt in prompts)


@pytest.mark.parametrize("trained", [False, True])
def test_nothing_is_kept_unless_everything_fits(counted, built, processor, studies, trained):
    policy, _ = counted
    prompt = build_prompt(processor, studies[0])
    held = prompt.pixel_values if trained else policy.features([prompt])[0]
    fits = 2**20 // (held.numel() * held.element_size())
    for count, kept in ((fits, True), (fits + 1, False)):
        corpus = [replace(studies[0], id=f"s{i}") for i in range(count)]
        store = PromptStore(processor, corpus, limit_mb=1)
        store.follow(None if trained else policy)
        read(store, corpus[-1:])
        built.clear()
        (prompt,) = read(store, corpus[-1:])
        assert len(built) == (0 if kept else 1)
        assert (prompt.features is not None) == (kept and not trained)


def test_studies_of_one_id_with_other_images_are_not_mistaken_for_each_other(counted, processor, studies):
    policy, _ = counted
    own, other = studies[0], replace(studies[0], images=studies[1].images)
    store = PromptStore(processor, [own], limit_mb=100)
    store.follow(policy)
    first, second = read(store, [own, other])
    assert first.features is not None and second.features is None
    assert store.build(other) is not second  # not kept: another object may get its identity once it is gone
    assert torch.equal(second.pixel_values, build_prompt(processor, other).pixel_values)


def test_a_step_reads_its_images_once_for_rollout_and_update(counted, processor, studies):
    policy, passes = counted
    prompts = with_features(policy, [build_prompt(processor, study) for study in studies[:3]])
    policy.features(prompts)
    assert len(passes) == 1 and not any(prompt.features.requires_grad for prompt in prompts)


def test_a_prompt_that_a_thread_builds_late_does_not_displace_the_features(counted, processor, studies, monkeypatch):
    # Its neighbours kept theirs, so that the next pass read it alone and rounded differently from an undisturbed run's.
    policy, _ = counted
    store = PromptStore(processor, studies[:3], limit_mb=100)
    store.follow(policy)

    def build_late(*args):
        prompt = build_prompt(*args)
        monkeypatch.setattr("radflow.pipeline.generation.build_prompt", build_prompt)
        read(store, studies[:3])  # another thread, which is done first
        return prompt

    monkeypatch.setattr("radflow.pipeline.generation.build_prompt", build_late)
    assert store.build(studies[0]).features is not None
    assert store.build(studies[0]) is store.attach(studies[:1], [store.build(studies[0])])[0]
