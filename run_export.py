"""`train.py export`: an adapter and a merged model of a run, each with a model card, for others to load.

python train.py export runs/mine                                     what CAPO made, to runs/mine/export/rl
python train.py export runs/mine --stage sft --what adapter          the adapter of the SFT policy
python train.py export runs/mine --dtype bfloat16 --out for-serving
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import yaml
from PIL import Image

from capo.journal import read_lines, write_whole
from models.adapter_files import read_config as adapter_config
from models.export import export_adapter, export_merged, generation_config
from models.folders import written_whole
from models.model_card import Card, is_hub_id, license_of, render
from models.processing import ReportProcessor
from models.processor_files import END, VISION_END
from run_folder import plain, read_config
from stages import Config

Kind = Literal["adapter", "merged"]


def export_command(argv: Sequence[str]) -> None:
    """`train.py export RUN ...`"""
    parser = argparse.ArgumentParser("train.py export", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--stage", choices=["rl", "sft"], default="rl", help="whose policy (default: rl)")
    parser.add_argument("--out", type=Path, help="folder to write, new or empty (default: RUN/export/STAGE)")
    parser.add_argument("--what", choices=["adapter", "merged", "both"],
                        help="default: both, or merged where the run trained all weights")  # fmt: skip
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="of the weights (default: as trained)")
    args = parser.parse_args(argv)
    try:
        kinds = kinds_of(args.run, args.stage, args.what)
        out = args.out or args.run / "export" / args.stage
        export_run(args.run, args.stage, out, kinds=kinds, dtype=args.dtype and getattr(torch, args.dtype))
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"{' and '.join(kinds)} of stage {args.stage} in {out}")


def kinds_of(run: Path, stage: str, what: str | None) -> tuple[Kind, ...]:
    """What can be exported of what is asked for.

    Raises:
        ValueError: no run there, a stage without a model, or an adapter of a run that has none.
    """
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run}: expected the folder of a run with its config.yaml, found none")
    if not (run / stage / "model" / "config.json").is_file():
        raise ValueError(f"{run}: stage {stage} has no model yet; finish it: start the run's command again")
    adapters = (run / stage / "adapter").is_dir()
    if what in ("adapter", "both") and not adapters:
        raise ValueError(f"{run}: stage {stage} trained all weights, there is no adapter; export with --what merged")
    if what is None:
        return ("adapter", "merged") if adapters else ("merged",)
    return ("adapter", "merged") if what == "both" else (what,)


def export_run(run: Path, stage: str, out: Path, *, kinds: Sequence[Kind], dtype: torch.dtype | None) -> None:
    """Write `out`/adapter, `out`/merged or both, whole.

    Raises:
        ValueError: the folder holds something, or lies where the run keeps its own files.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: expected a new or an empty folder, it holds something; choose another --out")
    config = read_config(Config, ["--config", str(run / "config.yaml")], default=run / "config.yaml", description="")
    model, tokens = run / stage / "model", config.evaluate.max_new_tokens
    with written_whole(out) as folder:
        for kind in kinds:
            rank = None
            if kind == "merged":
                export_merged(model, folder / kind, dtype=dtype, max_new_tokens=tokens)
            else:
                chain = [run / each / "adapter" for each in ("sft", "rl")[: 1 + (stage == "rl")]]
                export_adapter(chain, folder / kind, dtype=dtype)
                generation_config(model, max_new_tokens=tokens).save_pretrained(folder / kind)
                rank = adapter_config(folder / kind)[0].rank
            write_whole(folder / kind / "README.md", render(card_of(run, config, kind=kind, stage=stage, rank=rank)))


def card_of(run: Path, config: Config, *, kind: Kind, stage: str, rank: int | None) -> Card:
    """What the folder of a run says of it."""
    start, table = config.model.path, run / "eval" / "table.md"
    processor = ReportProcessor.load(run / stage / "model", config.model.processor)
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    return Card(
        kind=kind,
        stage=stage,
        base="" if start is None else public(str(start)),
        terms={"license": "apache-2.0"} if start is None else license_of(Path(start)),
        rank=rank,
        request=request_of(processor),
        pixels=(config.model.processor.min_pixels, config.model.processor.max_pixels),
        data=data_of(run, config),
        metrics=table.read_text(encoding="utf-8") if table.exists() else "",
        config=yaml.safe_dump(_public_values(plain(config)), sort_keys=False, allow_unicode=True),
        versions={"RadFlow commit": environment["commit"] or "unknown", **environment["packages"]},
    )


def request_of(processor: ReportProcessor) -> str:
    """What a study without clinical text asks, as the prompts of the run have it."""
    tokenizer = processor.tokenizer
    ids = processor.prompt("card", [Image.new("L", (56, 56))]).input_ids.tolist()
    special = tokenizer.convert_tokens_to_ids
    after = len(ids) - ids[::-1].index(special(VISION_END))
    return tokenizer.decode(ids[after : ids.index(special(END), after)]).strip()


def data_of(run: Path, config: Config) -> dict[str, object]:
    """Source and counts."""
    source = f"synthetic {config.data.modality} phantoms, drawn from seed {config.seed}"
    if config.data.source == "manifest":
        source = f"studies of the manifest {config.data.manifest.name}, which is not part of this model"
    facts: dict[str, object] = {"source": source}
    if scored := read_lines(run / "explore" / "scores.jsonl"):
        selected = json.loads((run / "explore" / "selection.json").read_text(encoding="utf-8"))["selected"]
        facts |= {"studies trained on, supervised": len(scored), "of these hard, reinforced": len(selected)}
    if judged := read_lines(run / "criticality.jsonl"):
        facts["of the training studies critical"] = sum(bool(row["critical"]) for row in judged)
    if (table := run / "eval" / "table.json").exists():
        held_out = json.loads(table.read_text(encoding="utf-8"))["studies"]
        split = config.data.eval_split if config.data.source == "manifest" else "test"
        facts[f"held out, split {split}"] = f"{held_out} studies, no patient of which was trained on"
    return facts


def public(name: str) -> str:
    """A hub id as it is, of a path its last part: the folders of a machine are nobody's business."""
    return name if is_hub_id(name) or "/" not in name else Path(name).name


def _public_values(value: object) -> object:
    if isinstance(value, dict):
        return {key: _public_values(each) for key, each in value.items() if key != "run_dir"}
    if isinstance(value, list):
        return [_public_values(each) for each in value]
    return public(value) if isinstance(value, str) else value
