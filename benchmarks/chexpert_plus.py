"""Reports of CheXpert Plus's published models, for the first image of each study in ReXrank's form.

radflow inputs rexrank --manifest studies.jsonl --out rexrank.json
python benchmarks/chexpert_plus.py rexrank.json --trained-on chexpert-mimic-cxr --out chexpert-mimic-cxr.json

Stanford-AIMI/chexpert-plus has no program for this, but an example for one image and one section (tutorials/RRG). The
settings are those of the example: greedy, at most 128 tokens ("beam_width" there is no setting of transformers). One
model writes the Findings, another one the Impression. The output is the input with `model_prediction` added.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import BertTokenizer, GenerationConfig, VisionEncoderDecoderModel, ViTImageProcessor

from radflow.data.files import write_whole
from radflow.data.readers.tables import load_object
from radflow.data.sections import render_report
from radflow.data.studies import load_image
from radflow.rewards.hub import at_commit

SECTIONS = ("findings", "impression")
MAX_TOKENS = 128


def load_writer(name: str, device: str) -> Callable[[torch.Tensor], str]:
    """What writes one section of the report of an image [1, 3, H, W]; `name` is a model of the hub or a folder."""
    model = VisionEncoderDecoderModel.from_pretrained(**at_commit(name)).eval().to(device)
    tokenizer = BertTokenizer.from_pretrained(**at_commit(name))
    # The example takes the last two from the model's config, where transformers 5 has none by default.
    generation = GenerationConfig(
        decoder_start_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_length=MAX_TOKENS,
    )

    @torch.inference_mode()
    def write(pixels: torch.Tensor) -> str:
        tokens = model.generate(pixels.to(device), generation_config=generation)
        return tokenizer.decode(tokens[0], skip_special_tokens=True)

    return write


def write_reports(cases: Path, names: Sequence[str], out: Path) -> None:
    """Copy the file of studies with `model_prediction`; `names`: the models of SECTIONS. ValueError names the study."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    writers = [load_writer(name, device) for name in names]
    processors = [ViTImageProcessor.from_pretrained(**at_commit(name)) for name in names]
    studies = load_object(cases, dict)
    for study_id, case in tqdm(studies.items(), unit="study", disable=None):
        if "key_image_path" not in case:
            raise ValueError(f"study {study_id}: expected the key key_image_path, got {', '.join(case) or 'none'}")
        image = load_image(Path(case["key_image_path"]), study_id=study_id)
        pixels = [processor(image, return_tensors="pt").pixel_values for processor in processors]
        case["model_prediction"] = render_report(*(write(one) for write, one in zip(writers, pixels, strict=True)))
    write_whole(out, [json.dumps(studies, indent=1, ensure_ascii=False)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path, help="JSON of studies in ReXrank's form")
    parser.add_argument("--trained-on", required=True, choices=("mimic-cxr", "chexpert", "chexpert-mimic-cxr"))
    parser.add_argument("--models", default="IAMJB", help="account of the hub, or folder, that holds the models")
    parser.add_argument("--out", required=True, type=Path)
    asked = parser.parse_args(argv)
    try:
        names = [f"{asked.models}/{asked.trained_on}-{section}-baseline" for section in SECTIONS]
        write_reports(asked.cases, names, asked.out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
