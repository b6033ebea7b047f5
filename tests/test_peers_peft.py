"""Our exports in the hands of others: PEFT, transformers' generation, its server; and PEFT's adapters in ours."""

import base64
import dataclasses
import io
import json
import socket
import time
import urllib.request

import peft
import pytest
import torch
from qwen_processor import processor_without_videos
from transformers import AutoModelForImageTextToText, GenerationConfig
from transformers.utils.import_utils import is_torchvision_available

from capo.sampling import SamplingConfig
from radflow.data.studies import load_image
from radflow.models.adapter_files import load_adapter, save_adapter
from radflow.models.export import export_merged, generation_config
from radflow.models.lora import LoraConfig, adapters, add_lora, merge_lora
from radflow.models.qwen_vl import load
from radflow.pipeline.export import read_request
from radflow.pipeline.generation import ReportWriter, build_prompt

ATTENTION, EVERYWHERE = LoraConfig(rank=4), LoraConfig(rank=8, alpha=4.0, vision=True, merger=True)
TOKENS = 24


def trained(directory, config, std=0.05):
    """A policy with adapters as after some training."""
    policy = load(directory)
    add_lora(policy, config, seed=1)
    for adapter in adapters(policy).values():
        torch.nn.init.normal_(adapter.lora_b, std=std, generator=torch.Generator().manual_seed(2))
    return policy


@torch.no_grad()
def our_logits(policy, prompt, states):
    policy.double()  # in float32 what a processor rounds may differ by 2e-5
    return states(policy, prompt) @ policy.output_weight().t()


@torch.no_grad()
def their_logits(model, prompt, image_id):
    return model.double()(**inputs_of(prompt, image_id)).logits


def inputs_of(prompt, image_id):
    ids = prompt.input_ids[None]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": prompt.pixel_values,
        "image_grid_thw": prompt.image_grid_thw,
        "mm_token_type_ids": (ids == image_id).int(),
    }


@pytest.mark.parametrize("config", [ATTENTION, EVERYWHERE], ids=["language", "everywhere"])
def test_our_adapter_in_peft_gives_our_logits(tiny_dir, processor, studies, states, tmp_path, config):
    policy = trained(tiny_dir, config)
    save_adapter(policy, tmp_path / "adapter", config, base=str(tiny_dir))
    named = peft.PeftConfig.from_pretrained(tmp_path / "adapter").base_model_name_or_path
    base = AutoModelForImageTextToText.from_pretrained(named)
    prompt = build_prompt(processor, studies[0])
    before = their_logits(base, prompt, processor.image_id)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    found = their_logits(theirs, prompt, processor.image_id)
    assert (found - before).abs().max() > 1e-2
    torch.testing.assert_close(found, our_logits(policy, prompt, states), atol=1e-9, rtol=0)
    assert sum(isinstance(m, peft.tuners.lora.LoraLayer) for m in theirs.modules()) == len(adapters(policy))


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "v_proj", "down_proj"]},
        {"target_modules": ATTENTION.targets, "use_rslora": True},
        {"target_modules": "all-linear"},
    ],
    ids=["list", "rslora", "all-linear"],
)
def test_pefts_adapter_in_ours_gives_its_logits(tiny_dir, processor, studies, states, tmp_path, options):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, **options)
    theirs = peft.get_peft_model(AutoModelForImageTextToText.from_pretrained(tiny_dir), config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    policy, prompt = load(tiny_dir), build_prompt(processor, studies[0])
    before = our_logits(policy, prompt, states)
    load_adapter(policy, tmp_path / "adapter")
    found = our_logits(policy, prompt, states)
    assert (found - before).abs().max() > 1e-2
    torch.testing.assert_close(found, their_logits(theirs, prompt, processor.image_id), atol=1e-9, rtol=0)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"rank_pattern": {"q_proj": 2}}, {"bias": "all"}], ids=str)
def test_pefts_other_kinds_are_refused(tiny_dir, tmp_path, options):
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **options)
    peft.get_peft_model(AutoModelForImageTextToText.from_pretrained(tiny_dir), config).save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match=f"{next(iter(options))} .* is not supported"):
        load_adapter(load(tiny_dir), tmp_path / "a")


@pytest.fixture(scope="module")
def exported(tiny_dir, processor, tmp_path_factory):
    """The adapter, and the export of the model with it merged in."""
    folder = tmp_path_factory.mktemp("export")
    policy = trained(tiny_dir, ATTENTION)
    save_adapter(policy, folder / "adapter", ATTENTION, base=str(tiny_dir))
    merge_lora(policy)
    policy.save(folder / "model", processor)
    export_merged(folder / "model", folder / "merged", dtype=None, max_new_tokens=TOKENS)
    generation_config(folder / "model", max_new_tokens=TOKENS).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def asked(studies):
    """Studies of one image and nothing else to say, as a chat request puts them."""
    bare = {"prior_images": (), "indication": "", "comparison": ""}
    return [dataclasses.replace(study, images=study.images[:1], **bare) for study in studies[:4]]


@pytest.fixture(scope="module")
def reports(exported, processor, asked):
    """What our rollout writes with the merged model, greedily."""
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=TOKENS)
    writer = ReportWriter(load(exported / "merged"), processor, sampling, slots=4, shown=False)
    return [report for report, _ in writer.write(asked, title="x")]


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_generate_writes_the_reports_of_our_rollout(exported, tiny_dir, processor, asked, reports, kind):
    if kind == "merged":
        model = AutoModelForImageTextToText.from_pretrained(exported / "merged")
    else:
        base = AutoModelForImageTextToText.from_pretrained(tiny_dir)
        model = peft.PeftModel.from_pretrained(base, exported / "adapter")
    greedy = GenerationConfig.from_pretrained(exported / kind)
    for study, report in zip(asked, reports, strict=True):
        prompt = build_prompt(processor, study)
        written = model.generate(**inputs_of(prompt, processor.image_id), generation_config=greedy)
        assert processor.decode(written[0, prompt.num_tokens :]) == report
    assert len(set(reports)) > 1


def without_videos(_, model, gguf_file=None):
    """transformers' own processor of the exported folder."""
    return processor_without_videos(model.split("@")[0])


@pytest.fixture
def server(exported, monkeypatch):
    """`transformers serve` on the merged export, in this process; its address."""
    pytest.importorskip("fastapi")
    from transformers.cli.serve import Serve
    from transformers.cli.serving.model_manager import ModelManager

    if not is_torchvision_available():
        with pytest.raises(ImportError, match="Torchvision"):  # as far as the bare server comes
            Serve(force_model=str(exported / "merged"), device="cpu", port=free_port(), non_blocking=True)
        monkeypatch.setattr(ModelManager, "_load_processor", without_videos)
    port = free_port()
    serving = Serve(force_model=str(exported / "merged"), device="cpu", port=port, non_blocking=True)
    wait_for(port)
    yield f"http://localhost:{port}/v1/chat/completions"
    serving.kill_server()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(port, seconds=60):
    until = time.monotonic() + seconds
    while True:
        with socket.socket() as caller:
            if caller.connect_ex(("localhost", port)) == 0:
                return
        assert time.monotonic() < until, "the server does not listen"
        time.sleep(0.1)


def data_url(image):
    buffer = io.BytesIO()
    image.save(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def test_a_server_answers_a_chat_request_with_our_report(server, processor, asked, reports):
    for study, report in zip(asked, reports, strict=True):
        content = [
            {"type": "image_url", "image_url": {"url": data_url(load_image(study.images[0], study_id=study.id))}},
            {"type": "text", "text": read_request(processor)},
        ]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": TOKENS, "temperature": 0}
        request = urllib.request.Request(server, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            said = json.load(answer)["choices"][0]
        assert said["message"]["content"].strip() == report
