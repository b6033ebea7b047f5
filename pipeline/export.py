"""`train.py export`: an adapter and a merged model of a run, each with a model card, for others to load."""

from pathlib import Path
from typing import Literal

import torch
import yaml
from PIL import Image

from capo.checkpoint import check_product
from capo.journal import seal, write_whole
from capo.ranks import Ranks
from radflow.dashboard.run_files import read_object, read_rows, read_selected
from radflow.models.adapter_files import read_config as adapter_config
from radflow.models.export import export_adapter, export_merged, generation_config
from radflow.models.loading import END, VISION_END, write_folder
from radflow.models.model_card import Card, hide_folders, license_of, render
from radflow.models.processing import ReportProcessor
from radflow.pipeline.run import identify
from radflow.pipeline.run_config import Config, plain, read_config

Kind = Literal["adapter", "merged"]
What = Literal["adapter", "merged", "both"]
Stage = Literal["rl", "sft"]


def export_policy(
    run: Path, stage: Stage, out: Path, *, what: What | None = None, dtype: Literal["bfloat16", "float32"] | None = None
) -> tuple[Kind, ...]:
    """Write `out`/adapter, `out`/merged or both, whole; returns which. `what` is by default both, or merged if the run
    trained all weights; `dtype` of the weights as trained.

    Raises:
        ValueError: no such run or policy, or the folder holds something.
    """
    kinds, model = _choose_kinds(run, stage, what), run / stage / "model"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: expected a new or an empty folder, it holds something; choose another one")
    config, as_type = read_config(Config, run / "config.yaml"), dtype and getattr(torch, dtype)
    tokens = config.evaluate.max_new_tokens
    chain = [run / each / "adapter" for each in ("sft", "rl")[: 1 + (stage == "rl")]] if "adapter" in kinds else []
    for source in (model, *chain):
        check_product(source, Ranks(), advice=f"restore it, or remove {source.parent / 'model'} and rerun the run")
    with write_folder(out) as folder:
        for kind in kinds:
            rank = None
            if kind == "merged":
                export_merged(model, folder / kind, dtype=as_type, max_new_tokens=tokens)
            else:
                export_adapter(chain, folder / kind, dtype=as_type)
                generation_config(model, max_new_tokens=tokens).save_pretrained(folder / kind)
                rank = adapter_config(folder / kind)[0].rank
            write_whole(folder / kind / "README.md", render(_describe(run, config, kind=kind, stage=stage, rank=rank)))
            seal(folder / kind, identify(run, stage))
    return kinds


def _choose_kinds(run: Path, stage: Stage, what: What | None) -> tuple[Kind, ...]:
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run}: expected the folder of a run with its config.yaml, found none")
    if not (run / stage / "model" / "config.json").is_file():
        raise ValueError(f"{run}: stage {stage} has no model yet; finish it: rerun the command of the run")
    adapters = (run / stage / "adapter").is_dir()
    if what in ("adapter", "both") and not adapters:
        raise ValueError(f"{run}: stage {stage} trained all weights, there is no adapter; export the merged model")
    if what in ("adapter", "merged"):
        return (what,)
    return ("adapter", "merged") if adapters else ("merged",)


def _describe(run: Path, config: Config, *, kind: Kind, stage: str, rank: int | None) -> Card:
    """What the folder of a run says of it."""
    start, table, pixels = config.model.path, run / "eval" / "table.md", config.model.processor
    environment = read_object(run / "environment.json") or {"commit": None, "packages": {}}
    return Card(
        kind=kind,
        stage=stage,
        base="" if start is None else environment.get("checkpoint", hide_folders(start)),
        terms={"license": "apache-2.0"} if start is None else license_of(Path(start)),
        rank=rank,
        request=read_request(ReportProcessor.load(run / stage / "model", pixels)),
        pixels=(pixels.min_pixels, pixels.max_pixels),
        data=_describe_data(run, config),
        metrics=table.read_text(encoding="utf-8") if table.exists() else "",
        config=yaml.safe_dump(_hide_in(plain(config)), sort_keys=False, allow_unicode=True),
        versions={"RadFlow commit": environment["commit"] or "unknown", **environment["packages"]},
    )


def read_request(processor: ReportProcessor) -> str:
    """What a study without clinical text asks, as the prompts of the run have it."""
    tokenizer = processor.tokenizer
    ids = processor.prompt("card", [Image.new("L", (56, 56))]).input_ids.tolist()
    special = tokenizer.convert_tokens_to_ids
    after = len(ids) - ids[::-1].index(special(VISION_END))
    return tokenizer.decode(ids[after : ids.index(special(END), after)]).strip()


def _describe_data(run: Path, config: Config) -> dict[str, object]:
    """Source and counts."""
    data, split = config.data, "test"
    source = f"synthetic {data.modality} phantoms, drawn from seed {config.seed}"
    if data.source == "manifest" and data.manifest is not None:
        source = f"studies of the manifest {data.manifest.name}, which is not part of this model"
        split = data.eval_split
    facts: dict[str, object] = {"source": source}
    if scored := read_rows(run / "explore" / "scores.jsonl"):
        selected = read_selected(run)
        facts |= {"studies trained on, supervised": len(scored), "of these hard, reinforced": len(selected)}
    if judged := read_rows(run / "criticality.jsonl"):
        facts["of the training studies critical"] = sum(bool(row["critical"]) for row in judged)
    if table := read_object(run / "eval" / "table.json"):
        facts[f"held out, split {split}"] = f"{table['studies']} studies, no patient of which was trained on"
    return facts


def _hide_in(value: object) -> object:
    if isinstance(value, dict):
        return {key: _hide_in(each) for key, each in value.items() if key != "run_dir"}
    if isinstance(value, list):
        return [_hide_in(each) for each in value]
    return hide_folders(value) if isinstance(value, str) else value
