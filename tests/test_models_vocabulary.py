"""Words added to a vocabulary, and chat templates in each form that tokenizers are saved with."""

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from transformers import AutoTokenizer

from radflow.models.processing import ReportProcessor
from radflow.models.qwen_vl import load
from radflow.pipeline.generation import suppressed_mask

WORDS = [
    "pneumothorax",
    "pneumo",
    AddedToken("CTA", single_word=True),
    AddedToken("10 cm", lstrip=True),
    "[chest]",
    " mediastinal",
]


@pytest.fixture(scope="module")
def widened(tiny_dir, tmp_path_factory):
    """The tiny checkpoint with words added, as people do it: rows of the embedding for them, and saved again."""
    folder = shutil.copytree(tiny_dir, tmp_path_factory.mktemp("widened") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(WORDS)
    tokenizer.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    (name,) = (name for name in weights if "embed_tokens" in name)
    rows = weights[name]
    weights[name] = torch.cat([rows, torch.zeros(len(tokenizer) - len(rows), rows.shape[1])])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] = len(tokenizer)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def both(widened):
    return ReportProcessor.load(widened), AutoTokenizer.from_pretrained(widened)


def test_added_words_are_read_sampled_and_written_back(both, widened):
    processor, tokenizer = both
    suppressed = suppressed_mask(load(widened), processor)
    for word in map(str, WORDS):
        index = tokenizer.convert_tokens_to_ids(word)
        ids = processor.encode_report(f"No {word}.")
        assert index in ids.tolist() and not suppressed[index]
        written = processor.decode(ids).replace(" ", "")  # with the blanks that the token swallows or brings
        assert written == f"No{word}.".replace(" ", "")
    assert suppressed[tokenizer.convert_tokens_to_ids("<|image_pad|>")]
    prompt = processor.prompt("s", [Image.new("L", (56, 56))], indication="Known pneumothorax.")
    assert tokenizer.convert_tokens_to_ids("pneumothorax") in prompt.input_ids.tolist()


@given(
    st.lists(
        st.sampled_from(
            [" mediastinal", "pneumothorax", "pneumo", "CTA", "CTAs", "10 cm", "[chest]", " ", "x", "é", "."]
        ),
        max_size=9,
    )
)
def test_texts_without_control_tokens_are_encoded_as_transformers_does(both, parts):
    processor, tokenizer = both
    text = "".join(parts)
    assert processor.encode_report(text).tolist()[:-1] == tokenizer(text)["input_ids"]


def test_the_name_of_a_control_token_stays_text(both):
    processor, _ = both
    ids = processor.encode_report("<|im_end|> pneumothorax <|image_pad|>").tolist()
    assert not set(ids[:-1]) & {processor.eos_id, processor.image_id}
    assert processor.decode(torch.tensor(ids)) == "<|im_end|> pneumothorax <|image_pad|>"


@pytest.mark.parametrize("file", ["chat_template.json", "tokenizer_config.json"])
@pytest.mark.parametrize("form", ["list", "names"])
def test_the_default_of_several_chat_templates_is_used(tiny_dir, tmp_path, processor, file, form):
    folder = shutil.copytree(tiny_dir, tmp_path / "model")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()

    def write(templates):
        given = [{"name": name, "template": text} for name, text in templates.items()] if form == "list" else templates
        path = folder / file
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, "chat_template": given}))

    image = Image.new("RGB", (56, 56))
    if form == "list" or file == "chat_template.json":
        write({"tool_use": "x", "default": template})
        assert torch.equal(
            ReportProcessor.load(folder).prompt("s", [image]).input_ids, processor.prompt("s", [image]).input_ids
        )
        write({"tool_use": "x", "rag": "y"})
        with pytest.raises(ValueError, match="expected a chat template called default, found tool_use, rag"):
            ReportProcessor.load(folder)
    (folder / "chat_template.json").write_text('{"chat_template": [1]}')
    with pytest.raises(ValueError, match=r"expected a chat template in chat_template.jinja, .* found list"):
        ReportProcessor.load(folder)
