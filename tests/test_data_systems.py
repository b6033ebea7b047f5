"""Published systems: the input that their own code reads is written, and the output that it writes is read.

Each form is that of the public code (docs/baselines.md); the words are ours.
"""

import csv
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import (
    BertConfig,
    BertTokenizer,
    Swinv2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTImageProcessor,
)

from radflow.__main__ import main
from radflow.data.protocols import find_by_reference
from radflow.data.report_files import Report, ReportFile, read_report_file
from radflow.evaluation.compare import CompareConfig, compare
from radflow.evaluation.inputs import read_pairs
from radflow.evaluation.weights import Weights

IDS = ("0017", "s 2", "3", "s4")
FINDINGS = ("The heart is large.", "Small left effusion.", "Clear lungs.", "Right rib fracture.")
SEEN = dict(zip(IDS, FINDINGS, strict=True))
IMPRESSION = "See above."


@pytest.fixture(autouse=True)
def no_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def manifest(tmp_path):
    images = {"images": ["lateral.png", "frontal.png"], "views": ["LATERAL", "PA"]}
    row = {**images, "impression": IMPRESSION, "indication": "Cough."}
    studies = [{"id": i, "patient_id": i, "split": "test", **row, "findings": text} for i, text in SEEN.items()]
    unseen = {"id": "t", "patient_id": "t", "split": "train", **row, "findings": "Never asked."}
    path = tmp_path / "studies.jsonl"
    path.write_text("".join(json.dumps(study) + "\n" for study in [*studies, unseen]))
    return path


def given(form, manifest, *options):
    """What the system is given for the test split."""
    out = manifest.with_name(f"given_{form}")
    main(["inputs", form, "--manifest", str(manifest), "--out", str(out), *options])
    return out.read_text()


def report_of(study_id):
    """What every system here writes: right, and told apart from that of any other study."""
    return f"Findings: {SEEN[study_id]} Impression: {IMPRESSION}"


def rexrank_output(text):
    """ReXrank's script of MedVersa: the input with `model_prediction`, without blanks after the headers."""
    cases = json.loads(text)
    written = {i: {**case, "model_prediction": report_of(i).replace(": ", ":")} for i, case in cases.items()}
    return json.dumps(written, indent=4)


def r2gen_output(text):
    """R2GenGPT's test_result.json: a list of one text, lower case, a blank before each full stop."""
    return json.dumps(
        {case["id"]: [report_of(case["id"]).lower().replace(".", " .")] for case in json.loads(text)["test"]}
    )


def radfm_output(text, path, *, label=lambda text: text, lost=()):
    """RadFM's src/test.py: every cell a list, as Python writes it; shuffled; a study that fails has no row."""
    studies = [row["label"] for row in csv.DictReader(text.splitlines())]
    random.Random(20).shuffle(studies)
    with path.open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["Question", "Ground Truth", "Pred", "belong_to"])
        for study in studies:
            study_id = study.removeprefix("study ")
            if study_id not in lost:
                question = ["Report this scan<image><image0></image>."]
                writer.writerow([question, [label(study)], [report_of(study_id)], ["chestxray_caption_dataset"]])
    return path


def words(text):
    return re.findall(r"\w+", text.lower())


def test_all_six_systems_are_compared_from_what_they_write(tmp_path, manifest):
    rexrank = given("rexrank", manifest)
    files = {name: rexrank_output(rexrank) for name in ("medversa", "chex", "mimic", "chex_mimic")}
    files["r2gengpt"] = r2gen_output(given("r2gen", manifest))
    paths = [tmp_path / f"{name}.json" for name in files]
    for path, content in zip(paths, files.values(), strict=True):
        path.write_text(content)
    paths.append(radfm_output(given("radfm", manifest), tmp_path / "radfm.csv", lost={"3"}))
    config = CompareConfig(systems=tuple(paths), references=manifest, split="test", num_resamples=100)
    found = compare(config, Weights(root=tmp_path))
    assert found.ids == ["0017", "s 2", "s4"] and found.lists["radfm"] == {
        "references without a prediction, not scored": ["3"]
    }
    assert [system.name for system in found.systems] == [*files, "radfm"]
    for system in found.systems:
        assert [words(text) for text in system.reports] == [words(report_of(i)) for i in found.ids], system.name


def test_the_inputs_by_hand(manifest):
    folder = str(manifest.parent)
    case = json.loads(given("rexrank", manifest))["s 2"]
    assert case["image_path"] == [f"{folder}/frontal.png", f"{folder}/lateral.png"]
    assert case["key_image_path"] == f"{folder}/frontal.png" and case["frontal_lateral"] == ["PA", "LATERAL"]
    assert case["context"] == "Indication: Cough." and case["section_findings"] == "Small left effusion."
    annotation = json.loads(given("r2gen", manifest, "--images", "first"))
    assert annotation["train"] == annotation["val"] == [] and [case["id"] for case in annotation["test"]] == [*IDS]
    assert annotation["test"][0]["image_path"] == [f"{folder}/frontal.png"]
    assert given("radfm", manifest).splitlines()[:2] == ["image_path,label", f"{folder}/frontal.png,study 0017"]


def test_images_of_16_bits_are_copied_in_8_as_the_systems_need_them(manifest):
    """Opened as the systems' code does, all grey levels above 255 of a 16-bit PNG are white."""
    Image.fromarray(np.array([[0, 30_000, 60_000]], np.uint16)).save(manifest.with_name("frontal.png"))
    assert np.asarray(Image.open(manifest.with_name("frontal.png")).convert("RGB")).max(-1).tolist() == [[0, 255, 255]]
    copies = manifest.with_name("copies")
    (case, *_) = json.loads(given("rexrank", manifest, "--images", "first", "--png", str(copies))).values()
    assert case["image_path"] == [case["key_image_path"]] == [f"{copies}/000000/0.png"]
    assert np.asarray(Image.open(case["key_image_path"]).convert("RGB")).max(-1).tolist() == [[0, 128, 255]]


def test_what_a_system_cannot_be_given_is_an_error(tmp_path, manifest):
    lines = manifest.read_text().splitlines()
    for content, said in (
        ([*lines, lines[0]], "expected each study once, got 0017 several times"),
        (
            [lines[0].replace('"lateral.png", "frontal.png"', "").replace('"LATERAL", "PA"', "")],
            "study 0017: expected an image",
        ),
        (lines[-1:], "expected studies of split test, got none"),
    ):
        manifest.write_text("\n".join(content))
        with pytest.raises(SystemExit, match=said):
            given("rexrank", manifest)


def test_rows_of_radfm_are_found_by_their_reference_and_never_by_their_order(tmp_path, manifest):
    """Its own table of MIMIC-CXR holds reports, so no id is left: rows are shuffled, and some are missing."""
    references = read_report_file(manifest, "references")
    same = {**references, "twin": references["3"], "other": Report("Findings: Never asked. Impression: Nothing.")}

    def label(study):
        return report_of(study.removeprefix("study ")).replace(" Impression", "\n  Impression").replace("See", "SEE")

    path = radfm_output(given("radfm", manifest), tmp_path / "radfm.csv", label=label, lost={"s4"})
    pairs = read_pairs(path, ReportFile(same), "rexrank")
    assert dict(zip(pairs.ids, pairs.predictions, strict=True)) == {i: report_of(i) for i in ("0017", "s 2", "3")}
    (found, unsure) = pairs.taken.values()
    assert {*found} == {"0017", "s 2", "3"} and unsure == ("3",)
    assert pairs.without_prediction == ("s4", "t", "twin", "other") and pairs.without_reference == ()
    # references without ids, as many as rows
    bare = ReportFile({str(n): references[i] for n, i in enumerate(("0017", "s 2", "3"), 1)}, numbered=True)
    assert read_pairs(path, bare, "rexrank").predictions == tuple(report_of(i) for i in ("0017", "s 2", "3"))
    named = radfm_output(given("radfm", manifest), tmp_path / "named.csv", lost={"s4"})
    with pytest.raises(ValueError, match=r"named.csv: expected references with ids, as the rows of this file are shuf"):
        read_pairs(named, bare, "rexrank")
    # alone, the file is scored against its own references
    assert sorted(read_report_file(path, "references")) == ["row 1", "row 2", "row 3"]


def test_each_of_two_studies_with_one_reference_gets_one_prediction():
    references = {"a": Report("No effusion."), "b": Report(None, findings="no effusion"), "c": Report("Effusion.")}
    rows = {f"row {n}": Report(text, reference="No  effusion") for n, text in enumerate("xyz")}
    named, found = find_by_reference(rows, references)
    assert {name: report.text for name, report in named.items()} == {"a": "x", "b": "y", "row 2": "z"}
    assert [*found.values()] == [("a", "b"), ("a", "b")]


def test_a_batch_of_radfm_is_one_row(tmp_path):
    path = tmp_path / "radfm.csv"
    path.write_text('Question,Ground Truth,Pred,belong_to\nq,"[\'study a\', \'study b\']","[""A\'s."", \'B.\']",x\n')
    assert read_report_file(path, "predictions") == {"a": Report("A's."), "b": Report("B.")}
    for cell, said in (("[1]", "column 'pred': expected a list"), ("['one']", "expected a prediction per reference")):
        path.write_text(f"Question,Ground Truth,Pred\nq,\"['study a', 'study b']\",{cell}\n")
        with pytest.raises(ValueError, match=rf"radfm.csv:2: {said}"):
            read_report_file(path, "predictions")


def save_section_model(folder, word):
    """A model in the published layout (Swin v2, BERT, its vocabulary) that writes one word until the limit."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "heart", "effusion"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words))
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
    decoder = BertConfig(vocab_size=len(words), is_decoder=True, add_cross_attention=True, **sizes)
    encoder = Swinv2Config(image_size=32, patch_size=4, embed_dim=8, depths=[1], num_heads=[1], window_size=4)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = VisionEncoderDecoderModel(config)
    model.decoder.cls.predictions.decoder.bias.data[words.index(word)] = 1e4
    model.save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def test_models_of_chexpert_plus_write_one_section_each(tmp_path, manifest, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import chexpert_plus

    save_section_model(tmp_path / "chexpert-findings-baseline", "heart")
    save_section_model(tmp_path / "chexpert-impression-baseline", "effusion")
    monkeypatch.setattr(chexpert_plus, "MAX_TOKENS", 6)
    given("rexrank", manifest)
    Image.new("L", (50, 40), 7).save(tmp_path / "frontal.png")  # the lateral image is not there, and not needed
    out = tmp_path / "chex.json"
    chexpert_plus.main(
        [str(tmp_path / "given_rexrank"), "--trained-on", "chexpert", "--models", str(tmp_path), "--out", str(out)]
    )
    # 6 tokens, the first of which is [CLS]
    expected = f"Findings: {'heart ' * 5}Impression: {'effusion ' * 5}".strip()
    assert read_report_file(out, "predictions") == {i: Report(expected) for i in IDS}
    assert read_report_file(out, "references")["3"].findings == SEEN["3"]
