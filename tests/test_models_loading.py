"""Checkpoints in every published layout give transformers' own logits; whatever else lies in a directory is refused."""

import configparser
import json
import re
import shutil
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from radflow import evaluate, train
from radflow.models import loading
from radflow.models.loading import OLDEST_TRANSFORMERS, locate
from radflow.models.processing import ReportProcessor
from radflow.models.qwen_vl import FAMILIES, load
from radflow.models.start import ModelConfig, find_gpu, pick_device, start_path
from radflow.models.tiny import TinyConfig, architecture, build_tiny
from radflow.pipeline import run

SIZE = {"hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "vision_hidden": 64, "vocab_size": 400}
# The first two families were published with the old names; transformers 4.52 to 4.57 wrote the new, 5 the old again.
NEW_TO_OLD = (("model.visual.", "visual."), ("model.language_model.", "model."))


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def tied(request, tmp_path_factory) -> Path:
    """A checkpoint of each family, its head tied to its embedding."""
    folder = tmp_path_factory.mktemp("tied") / request.param
    build_tiny(folder, ["Findings: Clear. Impression: Normal."] * 5, TinyConfig(family=request.param, **SIZE), seed=0)
    return folder


def family(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["model_type"]


def written(tied: Path, folder: Path, *, untied: bool = False, shard: str = "1GB", dtype=torch.float32) -> Path:
    """The same sizes with other weights, written by transformers itself."""
    shutil.copytree(tied, folder, ignore=shutil.ignore_patterns("model*", "config.json"))
    config = architecture(TinyConfig(family=family(tied), **SIZE), ReportProcessor.load(tied).tokenizer)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = not untied
    torch.manual_seed(1)
    model = FAMILIES[family(tied)](config).to(dtype)
    for parameter in model.parameters():  # no bias stays 0, no norm 1
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def rename(folder: Path, pairs) -> list[str]:
    """Give each weight whose name starts like the first of a pair the start that is the second; the names now."""

    def renamed(name: str) -> str:
        start = next(((a, b) for a, b in pairs if name.startswith(a)), ("", ""))
        return start[1] + name.removeprefix(start[0])

    names = []
    for path in folder.glob("*.safetensors"):
        weights = {renamed(name): value for name, value in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
        names += weights
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = json.loads(index.read_text())
        listed["weight_map"] = {renamed(name): file for name, file in listed["weight_map"].items()}
        index.write_text(json.dumps(listed))
    return names


def flatten_config(folder: Path) -> None:
    """The layout of config.json with which the first two families were published."""
    config = json.loads((folder / "config.json").read_text())
    text, vision, dtype = config.pop("text_config"), config.pop("vision_config"), config.pop("dtype")
    rope = text.pop("rope_parameters")
    for key in ("model_type", "layer_types", "dtype"):
        text.pop(key, None)
    for key in ("model_type", "rope_parameters", "in_channels"):
        vision.pop(key)
    flat = {
        **text,
        **config,
        "torch_dtype": dtype,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "vision_config": {**vision, "in_chans": 3},
    }
    (folder / "config.json").write_text(json.dumps(flat))


def prompt(folder: Path):
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((96, 160), (128, 64))]
    return ReportProcessor.load(folder).prompt("s", images, indication="Cough.")


@torch.no_grad()
def our_logits(folder: Path, dtype: torch.dtype | None = torch.float32) -> torch.Tensor:
    policy, asked = load(folder, dtype=dtype), prompt(folder)
    embeds = policy.embed([asked], policy.features([asked]))[0][None]
    causal = torch.ones(asked.num_tokens, asked.num_tokens, dtype=torch.bool).tril()[None, None]
    return policy.decoder(embeds, asked.positions[:, None], causal) @ policy.output_weight().t()


@torch.no_grad()
def their_logits(folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    asked = prompt(folder)
    model, ids = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype), asked.input_ids[None]
    return model(
        input_ids=ids,
        pixel_values=asked.pixel_values.to(dtype),
        image_grid_thw=asked.image_grid_thw,
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
    ).logits


@pytest.mark.parametrize("untied", [False, True], ids=["tied", "untied"])
@pytest.mark.parametrize("shard", ["1GB", "100KB"], ids=["single", "shards"])
def test_logits_equal_transformers(tied, tmp_path, untied, shard):
    folder = written(tied, tmp_path / "c", untied=untied, shard=shard)
    assert (len(list(folder.glob("*.safetensors"))) > 2) == (shard == "100KB")
    expected = their_logits(folder)
    assert expected.std() > 0.1
    torch.testing.assert_close(our_logits(folder), expected, atol=1e-5, rtol=0)
    policy = load(folder)
    assert (policy.output_weight() is policy.model.get_input_embeddings().weight) == (not untied)


@pytest.mark.parametrize("untied", [False, True], ids=["tied", "untied"])
@pytest.mark.parametrize("shard", ["1GB", "100KB"], ids=["single", "shards"])
# Qwen3-VL has only ever had the names of today.
@pytest.mark.parametrize("tied", ["qwen2_5_vl", "qwen2_vl"], indirect=True)
def test_old_and_new_names_and_a_flat_config_are_the_same_model(tied, tmp_path, untied, shard):
    folder = written(tied, tmp_path / "c", untied=untied, shard=shard)
    expected = their_logits(folder)
    new = rename(folder, [("visual.", "model.visual."), ("model.", "model.language_model.")])
    assert {"model.visual.blocks.0.norm1.weight", "model.language_model.layers.0.mlp.up_proj.weight"} <= set(new)
    torch.testing.assert_close(our_logits(folder), expected, atol=1e-5, rtol=0)
    old = rename(folder, NEW_TO_OLD)
    assert {"visual.blocks.0.norm1.weight", "model.layers.0.mlp.up_proj.weight"} <= set(old)
    assert ("lm_head.weight" in old) == untied
    flatten_config(folder)
    assert "text_config" not in json.loads((folder / "config.json").read_text())
    torch.testing.assert_close(our_logits(folder), expected, atol=1e-5, rtol=0)


def test_bfloat16_stays_as_on_disk_or_is_widened(tied, tmp_path):
    folder = written(tied, tmp_path / "c", dtype=torch.bfloat16)
    assert {p.dtype for p in load(folder, dtype=None).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load(folder).parameters()} == {torch.float32}
    # the same rounded weights, computed in float32 on both sides
    torch.testing.assert_close(our_logits(folder), their_logits(folder), atol=1e-5, rtol=0)
    # in bfloat16 the two may order their sums differently: a few units of its 8 binary digits
    difference = our_logits(folder, None).float() - their_logits(folder, torch.bfloat16).float()
    assert difference.abs().max() < 0.02 * their_logits(folder).abs().max()


# --- a hub id


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached(hub: Path, source: Path, repo: str, commit: str, *, branch: str = "main") -> Path:
    folder = hub / f"models--{repo.replace('/', '--')}"
    shutil.copytree(source, folder / "snapshots" / commit)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / branch).write_text(commit)
    return folder / "snapshots" / commit


def test_a_hub_id_is_served_from_the_cache(hub, tiny_dir, monkeypatch):
    here = cached(hub, tiny_dir, "Some/Model-3B", "1" * 40)
    other = cached(hub, tiny_dir, "Some/Model-3B", "2" * 40, branch="v2")
    assert locate("Some/Model-3B") == here and locate("Some/Model-3B@v2") == other
    assert locate("Some/Model-3B@" + "1" * 40, weights=False) == here
    assert load("Some/Model-3B").vocab_size == load(tiny_dir).vocab_size
    assert ReportProcessor.load("Some/Model-3B").image_id == ReportProcessor.load(tiny_dir).image_id
    assert start_path(Path("unused"), ModelConfig(path="Some/Model-3B"), (), seed=0) == here


@pytest.mark.parametrize(
    ("cuda", "files", "visible", "said"),
    [
        (None, ["dev/nvidia0"], None, r"an NVIDIA GPU: torch \S+ computes on CPUs only; install a build"),
        ("12.8", ["proc/driver/nvidia/gpus/0000:01:00.0"], "0", r"an NVIDIA GPU: .* \(driver too old\); repair"),
        ("12.8", [], "3", r"CUDA_VISIBLE_DEVICES=3: .* \(driver too old\)"),
        (None, ["dev/kfd"], None, "an AMD GPU: "),
        (None, ["dev/nvidia0"], "", None),
        (None, ["dev/nvidiactl"], None, None),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_said(cuda, files, visible, said, tmp_path, monkeypatch, capsys):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr("radflow.models.start.find_gpu", partial(find_gpu, root=tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "init", Mock(side_effect=RuntimeError("driver too old\nat line 3")))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert pick_device() == torch.device("cpu")
    written = capsys.readouterr().err
    assert written == "" if said is None else re.match(f"warning: .* although there is {said}.*\n$", written)


def test_newest_files_are_said_once_with_their_commit(hub, tiny_dir, caplog):
    cached(hub, tiny_dir, "Some/Model-3B", "4" * 40)
    for name in ("Some/Model-3B", "Some/Model-3B", f"Some/Model-3B@{'4' * 40}"):
        locate(name)
    (said,) = caplog.messages
    assert said.endswith(f"name them Some/Model-3B@{'4' * 40}")


def test_an_unknown_id_without_network_says_what_to_do(hub):
    with pytest.raises(
        ValueError, match="Some/Model-7B: expected a checkpoint directory or the id of a model"
    ) as error:
        load("Some/Model-7B")
    assert "hf download Some/Model-7B" in str(error.value) and "\n" not in str(error.value)


def test_a_directory_goes_before_an_id_of_its_name(hub, tiny_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_dir, tmp_path / "Some" / "Model-3B")
    assert load("Some/Model-3B").hidden_size == 192


# --- what is refused


@pytest.fixture
def damaged(tiny_dir, tmp_path) -> Path:
    return shutil.copytree(tiny_dir, tmp_path / "damaged")


@pytest.fixture
def shards(tmp_path, tiny_dir) -> Path:
    folder = shutil.copytree(tiny_dir, tmp_path / "shards")
    (folder / "model.safetensors").unlink()
    AutoModelForImageTextToText.from_pretrained(tiny_dir).save_pretrained(folder, max_shard_size="3MB")
    return folder


def edit(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def reweigh(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder: Path, match: str) -> str:
    with pytest.raises(ValueError, match=match) as error:
        load(folder)
    assert str(folder) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llama"}, "expected a model of type qwen2_vl or qwen2_5_vl or qwen3_vl, got llama"),
        ({"model_type": "qwen3_vl_moe"}, "got qwen3_vl_moe, a mixture of experts; take a dense size"),
        ({"quantization_config": {"quant_method": "awq"}}, r"got a quantised checkpoint \(awq\)"),
        ({"vision_config": 3}, "config.json: expected the config of a qwen2_5_vl model, got"),
    ],
)
def test_other_models_are_refused(damaged, changes, said):
    edit(damaged, **changes)
    refused(damaged, said)
    with pytest.raises(ValueError, match=said):
        ReportProcessor.load(damaged)


def test_a_directory_without_a_config_is_refused(damaged, tmp_path):
    (damaged / "config.json").unlink()
    refused(damaged, "with a config.json, found none$")
    (damaged / "adapter_config.json").write_text("{}")
    refused(damaged, "holds an adapter alone")
    refused(tmp_path / "nowhere", "found none")
    (damaged / "config.json").write_text("{")
    refused(damaged, "config.json: expected a JSON object, got a file that cannot be read")
    (damaged / "config.json").write_text("[]")
    refused(damaged, "config.json: expected a JSON object, got list")
    (damaged / "config.json").write_text('{"attention_dropout": NaN}')  # would fail at the first step of training
    refused(damaged, "config.json: expected a JSON object, got a file that cannot be read .NaN is no number of JSON")


def test_missing_shards_and_a_missing_index_are_named(shards):
    names = sorted(path.name for path in shards.glob("*.safetensors"))
    assert len(names) > 3
    (shards / names[1]).unlink()
    refused(shards, f"1 of {len(names)} weight files are missing: {names[1]}; copy the whole checkpoint")
    (shards / "model.safetensors.index.json").write_text("{}")
    refused(shards, "expected a weight_map from weights to files, got none")
    (shards / "model.safetensors.index.json").unlink()
    refused(shards, f"found {len(names) - 1} shards without an index")


def test_pickles_are_refused_with_the_way_to_convert_them(damaged):
    (damaged / "model.safetensors").rename(damaged / "pytorch_model.bin")
    said = refused(damaged, "expected model.safetensors, or shards .*, found pytorch_model.bin only")
    assert "can run code" in said and "save_pretrained" in said
    (damaged / "pytorch_model.bin").unlink()
    refused(damaged, "found neither; copy the whole checkpoint")


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b[:4], lambda b: b"\xff" * 8 + b[8:], lambda b: b""])
def test_a_damaged_weight_file_is_named(damaged, damage):
    path = damaged / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    refused(damaged, "model.safetensors: expected a safetensors file, got one that is cut short or damaged")


def test_a_truncated_shard_is_named(shards):
    path = sorted(shards.glob("*.safetensors"))[2]
    path.write_bytes(path.read_bytes()[:-1])
    refused(shards, f"{path.name}: expected a safetensors file, got one that is cut short or damaged")


def test_weights_that_are_missing_left_over_or_of_another_shape_are_named(damaged):
    name, loaded = "model.layers.1.mlp.up_proj.weight", "model.language_model.layers.1.mlp.up_proj.weight"
    reweigh(damaged, lambda weights: weights.update(extra=weights.pop(name)))
    refused(damaged, f"1 weights are missing, for example {loaded}")
    reweigh(damaged, lambda weights: weights.update({name: weights["extra"].clone()}))
    refused(damaged, "1 weights do not belong to a model of this config, for example extra")
    reweigh(damaged, lambda weights: weights.update({name: weights.pop("extra")[:, :4].contiguous()}))
    refused(damaged, rf"1 weights have another shape than config.json says, for example {loaded} has \[576, 4\], not")


def test_a_head_that_differs_from_the_embedding_it_should_be_tied_to_is_refused(damaged):
    embedding = "model.embed_tokens.weight"
    reweigh(damaged, lambda weights: weights.update({"lm_head.weight": weights[embedding].clone()}))
    assert load(damaged)  # the same twice is harmless
    reweigh(damaged, lambda weights: weights.update({"lm_head.weight": weights[embedding] + 1}))
    refused(damaged, "the weights hold two that differ")


@pytest.fixture
def outdated(monkeypatch):
    monkeypatch.setattr(loading, "version", {"transformers": "5.17.0"}.__getitem__)


TOO_OLD = r"expected transformers 5.23 or newer, got 5.17.0: .* pip install 'transformers>=5.23'"


@pytest.mark.parametrize("loader", [load, ReportProcessor.load])
def test_an_older_transformers_is_refused_whatever_is_loaded(outdated, tiny_dir, loader):
    with pytest.raises(ValueError, match=TOO_OLD):
        loader(tiny_dir)


def test_both_programs_end_with_one_line_under_an_older_transformers(outdated, tiny_dir, tmp_path, monkeypatch):
    picture = tmp_path / "a.png"
    Image.new("L", (64, 64)).save(picture)
    monkeypatch.setattr(run, "load_corpus", None)  # the run is refused before it reads a study
    for program, words in (
        (train, ["--run-dir", str(tmp_path / "run")]),
        (evaluate, ["predict", "--model", str(tiny_dir), "--image", str(picture)]),
    ):
        with pytest.raises(SystemExit, match=f"^error: {TOO_OLD}$"):
            program.main(words)


def test_the_version_that_is_refused_is_the_one_setup_cfg_asks_for():
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
    oldest = ".".join(map(str, OLDEST_TRANSFORMERS))
    assert f"transformers>={oldest}" in config["options.extras_require"]["score"].split()
