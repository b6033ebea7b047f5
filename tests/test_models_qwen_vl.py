"""Loading, saving and driving a checkpoint, against transformers' own forward."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from radflow.models.processing import ProcessorConfig, ReportProcessor
from radflow.models.qwen_vl import load


def picture(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width), dtype=np.uint8)).convert("RGB")


@pytest.mark.parametrize("sizes", [[(112, 112)], [(84, 140), (112, 112)], [(56, 56), (168, 84), (112, 140)]])
def test_hidden_states_positions_and_pixels_equal_transformers(tiny_dir, policy, processor, sizes):
    images = [picture(*size, seed) for seed, size in enumerate(sizes)]
    prompt = processor.prompt("s", images[:1], prior_images=images[1:], indication="Cough.")
    ids = prompt.input_ids[None]
    is_image = (ids == processor.image_id).int()
    theirs = AutoModelForImageTextToText.from_pretrained(tiny_dir)
    positions, _ = theirs.model.get_rope_index(ids, is_image, prompt.image_grid_thw)
    assert torch.equal(positions[:, 0], prompt.positions) and prompt.next_position == int(positions.max()) + 1
    pixels = Qwen2VLImageProcessorPil.from_pretrained(tiny_dir)(images, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, prompt.pixel_values)
    # each image token stands for 2 x 2 patches of 14 x 14 pixels
    assert int(is_image.sum()) == sum(h * w for h, w in sizes) // (28 * 28)
    with torch.no_grad():
        expected = theirs(
            input_ids=ids,
            pixel_values=prompt.pixel_values,
            image_grid_thw=prompt.image_grid_thw,
            mm_token_type_ids=is_image,
        ).logits
        embeds = policy.embed([prompt], policy.features([prompt]))[0][None]
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None, None]
        hidden = policy.decoder(embeds, prompt.positions[:, None], causal)
    torch.testing.assert_close(hidden @ policy.output_weight().t(), expected, atol=1e-5, rtol=0)


def test_features_of_a_batch_are_those_of_each_prompt(policy, processor):
    prompts = [processor.prompt("a", [picture(112, 112)]), processor.prompt("b", [picture(84, 140), picture(56, 56)])]
    together = policy.features(prompts)
    for prompt, features in zip(prompts, together, strict=True):
        torch.testing.assert_close(policy.features([prompt])[0], features, atol=1e-5, rtol=0)


def test_saved_and_loaded_again_it_is_the_same_model(policy, processor, tmp_path):
    with torch.no_grad():
        policy.output_weight().add_(0.01)
    policy.save(tmp_path / "copy", processor)
    again = load(tmp_path / "copy")
    for (name, a), b in zip(policy.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    published = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
        "generation_config.json",
    }
    assert published <= {path.name for path in (tmp_path / "copy").iterdir()}
    assert not (tmp_path / "copy.tmp").exists()
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").chat_template


def test_frozen_vision_gets_no_gradient(policy, processor):
    policy.vision.requires_grad_(False)
    prompt = processor.prompt("a", [picture(112, 112)])
    policy.embed([prompt], policy.features([prompt]))[0].sum().backward()
    assert all(p.grad is None for p in policy.vision.parameters())
    assert policy.output_weight().grad is not None


def test_activations_are_recomputed_as_by_transformers_own_switch_which_versions_name_differently(
    tiny_dir, processor, monkeypatch
):
    prompt = processor.prompt("a", [picture(112, 112)])
    theirs, ours = load(tiny_dir), load(tiny_dir)
    theirs.model.activation_checkpointing_enable()
    theirs._recomputed = [module for module in theirs.modules() if isinstance(module, GradientCheckpointingLayer)]
    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
        monkeypatch.delattr(PreTrainedModel, name)
    ours.recompute_activations()
    saved = []
    for policy in (theirs, ours):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.shape) or t, lambda t: t):
            embeds = policy.embed([prompt], policy.features([prompt]))[0][None]
            mask = torch.ones(embeds.shape[1], embeds.shape[1], dtype=torch.bool).tril()[None, None]
            hidden = policy.decoder(embeds, prompt.positions[:, None], mask)
        hidden.sum().backward()
        saved.append(kept)
    assert saved[0] == saved[1]
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        assert a.grad is None or torch.equal(a.grad, b.grad), name


@pytest.fixture
def damaged(tiny_dir, tmp_path):
    return shutil.copytree(tiny_dir, tmp_path / "damaged")


def test_other_models_and_missing_files_are_refused(damaged, tmp_path):
    with pytest.raises(ValueError, match=r"config.json"):
        load(tmp_path / "nowhere")
    (damaged / "model.safetensors").rename(damaged / "elsewhere")
    with pytest.raises(ValueError, match=r"model.safetensors"):
        load(damaged)
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(ValueError, match="got llama"):
        load(damaged)


def test_tokenizer_larger_than_the_embedding_is_refused(damaged, policy):
    processor = ReportProcessor.load(damaged, ProcessorConfig())
    processor.tokenizer.add_tokens([f"extra{i}" for i in range(5)])
    with pytest.raises(ValueError, match="tokenizer"):
        processor.check_fits(policy.vocab_size)


def test_prompt_over_the_budget_is_refused_by_study(tiny_dir):
    small = ReportProcessor.load(tiny_dir, ProcessorConfig(max_prompt_tokens=20))
    with pytest.raises(ValueError, match="study s7: the prompt has"):
        small.prompt("s7", [picture(112, 112)])
    with pytest.raises(ValueError, match="study s8: expected at least one image"):
        small.prompt("s8", [])


def test_special_tokens_in_a_users_text_stay_text(processor):
    text = "<|im_end|> <|image_pad|>"
    prompt = processor.prompt("s", [picture(112, 112)], indication=text)
    plain = processor.prompt("s", [picture(112, 112)], indication="x")
    for special in (processor.eos_id, processor.image_id):
        assert (prompt.input_ids == special).sum() == (plain.input_ids == special).sum()
    assert processor.decode(processor.encode_report(text)) == text


@pytest.mark.parametrize("text", ["Findings: Clear. Impression: Normal.", "2.5 cm, é ü 超声", "a\nb  c"])
def test_reports_survive_tokenisation(processor, text):
    ids = processor.encode_report(text)
    assert ids[-1] == processor.eos_id and processor.decode(ids) == text


def test_every_special_token_but_eos_is_banned(processor):
    suppressed = {processor.tokenizer.convert_ids_to_tokens(i) for i in processor.suppressed_ids}
    assert suppressed == {
        "<|endoftext|>",
        "<|im_start|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        "<|image_pad|>",
        "<|video_pad|>",
    }


def test_larger_images_are_scaled_to_the_budget(tiny_dir):
    small = ReportProcessor.load(tiny_dir, ProcessorConfig(max_pixels=112 * 112))
    prompt = small.prompt("s", [picture(500, 400)])
    assert int(prompt.image_grid_thw.prod()) * 14 * 14 <= 112 * 112
