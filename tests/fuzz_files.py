"""Damage small files of every kind that is read, and see that each is read or refused in one line that names it.

    python tests/fuzz_files.py --count 5000 --seed 0

A refusal is a ValueError, an OSError or the exit of a program, without a line break and with the name of the file or of
its folder. Anything else is a failure, as is a reader that takes more than 20 seconds: exit code 1.
"""

import argparse
import contextlib
import io
import json
import logging
import random
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from damage import damage
from made_run import make_run
from PIL import Image
from radgraph_archives import Sizes, write_archive
from report_forms import FORMS
from tiny_encoders import TEXTS, tiny_bert, tiny_chexbert
from tqdm import tqdm

from capo.checkpoint import Checkpoints
from capo.ranks import Ranks
from radflow.dashboard.build import build_dashboard
from radflow.data.header_table import load_headers
from radflow.data.readers.manifest import read_manifest
from radflow.data.readers.report_table import ColumnConfig, read_report_table
from radflow.data.report_files import read_report_file
from radflow.data.studies import load_image
from radflow.evaluation.precomputed import read_precomputed
from radflow.models.adapter_files import load_adapter, save_adapter
from radflow.models.lora import LoraConfig, add_lora
from radflow.models.processing import ReportProcessor
from radflow.models.qwen_vl import load
from radflow.models.tiny import TinyConfig, build_tiny
from radflow.pipeline.corrections import read_corrections
from radflow.pipeline.run_config import parse_config
from radflow.rewards.judge.answer_cache import AnswerCache
from radflow.rewards.metrics.chexbert import Chexbert, ChexbertConfig
from radflow.rewards.radgraph.annotate import RadGraphAnnotator
from radflow.rewards.radgraph.cache import GraphCache
from radflow.rewards.radgraph.text import RadGraphConfig
from radflow.rewards.rules.keywords import CAROTID, Lexicon

SECONDS = 20
SMALL = TinyConfig(hidden_size=32, layers=1, vision_hidden=64, vision_depth=1)
STUDY = {"id": "s1", "patient_id": "p1", "split": "train", "images": ["a.png"], "findings": "Clear.", "impression": ""}
# What JSON may hold where something else is expected.
OTHERS = (None, True, -1, 0, 10**30, 0.5, float("nan"), float("inf"), "", "x", "\x00\ud800", [], {}, [[]], {"a": [1]})
WHOLE = ("", "[]", "{}", "null", "NaN", "3", '"x"', "[" * 100_000, '{"a":' * 100_000, "\x00" * 50, "{}\n[]\n", "\n\n")


@dataclass(frozen=True)
class Kind:
    """Files that one reader reads."""

    make: Callable[[Path], None]  # writes them into a folder
    read: Callable[[Path], object]  # reads them from there
    share: int = 4  # of all inputs, relative to the other kinds: less for what takes long
    damaged: tuple[str, ...] = ("*",)  # patterns of the files that are damaged; * matches slashes


def text(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: void((folder / name).write_text(content, encoding="utf-8"))


def lines(name: str, *rows: object) -> Callable[[Path], None]:
    return text(name, "".join(json.dumps(row) + "\n" for row in rows))


def void(_: object) -> None:
    """For a lambda that returns nothing."""


def picture(folder: Path, name: str = "a.png") -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 56), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)


@cache
def files_of(make: Callable[[Path], None]) -> Mapping[Path, bytes]:
    """The files that `make` writes, by relative path."""
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return {path.relative_to(folder): path.read_bytes() for path in paths}


def put(files: Mapping[Path, bytes], folder: Path) -> None:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def make_model(folder: Path) -> None:
    build_tiny(folder / "model", TEXTS, SMALL, seed=0)


def make_adapter(folder: Path) -> None:
    put(files_of(make_model), folder)
    policy, config = load(folder / "model"), LoraConfig(rank=2)
    add_lora(policy, config, seed=0)
    save_adapter(policy, folder / "adapter", config, base="model")


def make_checkpoint(folder: Path) -> None:
    checkpoints = Checkpoints(folder, Ranks(0, 1), identity={"config": "c"})
    checkpoints.save(1, {"weight": torch.arange(8.0)}, {"step": 1})
    checkpoints.finish()


def read_checkpoint(folder: Path) -> None:
    Checkpoints(folder, Ranks(0, 1), identity={"config": "c"}).load({"weight": torch.zeros(8)})


def make_graphs(folder: Path) -> None:
    GraphCache(folder / "graphs.sqlite", model="m").write({f"text {number}": {} for number in range(200)})


def read_graphs(folder: Path) -> None:
    cache = GraphCache(folder / "graphs.sqlite", model="m")
    cache.read([f"text {number}" for number in range(200)])
    cache.write({"another": {}})


def make_answers(folder: Path) -> None:
    cache = AnswerCache(folder / "answers.sqlite", claim_s=99)
    for number in range(40):
        cache.store(f"key {number}", "yes " * 50, prompt="p", model="m")
    cache.close()


def read_answers(folder: Path) -> None:
    cache = AnswerCache(folder / "answers.sqlite", claim_s=99)
    try:
        cache.find([f"key {number}" for number in range(40)])
        if cache.claim("new") and cache.pay(0.0):
            cache.store("new", "no", prompt="p", model="m")
            cache.release("new")
    finally:
        cache.close()


def make_archive(folder: Path) -> None:
    write_archive(folder, "radgraph", TEXTS * 3, Sizes(layers=1))


def pack_archive(folder: Path) -> None:
    put(files_of(make_archive), folder)
    shutil.make_archive(str(folder / "radgraph"), "gztar", folder / "radgraph")
    shutil.rmtree(folder / "radgraph")


def read_archive(folder: Path) -> None:
    RadGraphAnnotator.load(RadGraphConfig(path=folder, encoder=folder / "encoder-radgraph", device="cpu"))(TEXTS[:1])


def make_chexbert(folder: Path) -> None:
    tiny_chexbert(folder / "chexbert.pth", tiny_bert(folder / "bert"))


def read_chexbert(folder: Path) -> None:
    config = ChexbertConfig(path=folder / "chexbert.pth", bert=str(folder / "bert"), device="cpu")
    Chexbert.load(config).classes(TEXTS[:1])


def kinds() -> dict[str, Kind]:
    table = "study,report,image\ns1,Findings: Clear.,a.png\ns2,Findings: Nodule.,b.png\n"
    graph = {"tokens": "lungs", "label": "ANAT-DP", "start_ix": 0, "end_ix": 0, "relations": []}
    sides = {"prediction": {"1": graph}, "reference": {"1": graph}}
    score = {"id": "s1", "bertscore": 0.5, "entities": sides}
    label = {"id": "s1", "critical": True, "reason": "Edema", "source": "rules"}
    config = "seed: 3\nmodel: {training: full}\nsft:\n  steps: 4\nexplore:\n  weights: {bleu2: 1.0}\n"
    known = {f"s{number}" for number in range(9)}
    reports = {
        f"reports {name}": Kind(text(name, content), lambda f, n=name: read_report_file(f / n, "predictions"), share=1)
        for name, content in FORMS.items()
    }
    return {
        "image": Kind(picture, lambda f: load_image(f / "a.png", study_id="s1")),
        "manifest": Kind(lines("m.jsonl", STUDY, STUDY | {"id": "s2"}), lambda f: read_manifest(f / "m.jsonl")),
        "table": Kind(text("t.csv", table), lambda f: read_report_table(f / "t.csv", f, ColumnConfig())),
        **reports,
        "headers": Kind(
            text("h.toml", '[[header]]\nsection = "findings"\nreach = "line"\nnames = ["Observations"]\n'),
            lambda f: load_headers(f / "h.toml"),
        ),
        "lexicon": Kind(lambda f: void(shutil.copy(CAROTID, f / "l.json")), lambda f: Lexicon.load(f / "l.json")),
        "config": Kind(
            text("c.yaml", config),
            lambda f: parse_config(["--config", str(f / "c.yaml")]),
            share=1,
        ),
        "corrections": Kind(lines("c.jsonl", label), lambda f: read_corrections(f / "c.jsonl", known)),
        "precomputed": Kind(lines("p.jsonl", score), lambda f: read_precomputed(f / "p.jsonl")),
        "run folder": Kind(
            lambda f: void(make_run(f / "run", steps=3)),
            lambda f: build_dashboard(f / "run"),
            share=8,
            damaged=("run/[!r]*", "run/rl/metrics.jsonl", "*.gz"),
        ),
        "checkpoint": Kind(make_checkpoint, read_checkpoint),
        "graph cache": Kind(make_graphs, read_graphs),
        "answer cache": Kind(make_answers, read_answers, damaged=("*.sqlite",)),
        "processor": Kind(
            make_model,
            lambda f: ReportProcessor.load(f / "model").prompt("s1", [Image.new("RGB", (56, 56))]),
            share=8,
            damaged=("model/*.json", "model/*.jinja"),
        ),
        "model": Kind(
            make_model,
            lambda f: load(f / "model"),
            damaged=("model/*config.json", "model/*.safetensors"),
        ),
        "adapter": Kind(
            make_adapter, lambda f: load_adapter(load(f / "model"), f / "adapter"), damaged=("adapter/*",), share=2
        ),
        "RadGraph folder": Kind(make_archive, read_archive, damaged=("radgraph/*",)),
        "RadGraph .tar.gz": Kind(pack_archive, read_archive, damaged=("*.tar.gz",)),
        "RadGraph encoder": Kind(make_archive, read_archive, damaged=("encoder*/*",), share=2),
        "CheXbert": Kind(make_chexbert, read_chexbert),
    }


def damage_file(content: bytes, name: str, draw: random.Random) -> bytes:
    """One way of going wrong: bytes changed, cut off or emptied; in JSON also another value or type."""
    ways: list[Callable[[], bytes]] = [
        lambda: damage(content, np.random.default_rng(draw.getrandbits(32))),
        lambda: content[: draw.randrange(len(content) + 1)],
        lambda: content[: len(content) // 2],
        lambda: b"\x00" * len(content),
        lambda: draw.choice(WHOLE).encode(),
    ]
    if name.endswith((".json", ".jsonl")):
        ways += [lambda: _other_value(content, draw)] * 6
    return draw.choice(ways)()


def _other_value(content: bytes, draw: random.Random) -> bytes:
    """A value somewhere in one of the lines is another one, or is gone."""
    rows = content.decode().split("\n") if b"\n{" in content else [content.decode()]
    at = draw.choice([number for number, row in enumerate(rows) if row.strip()])
    value = json.loads(rows[at])
    parents = list(_containers(value))
    if not parents or draw.random() < 0.05:
        value = draw.choice(OTHERS)
    else:
        parent, key = draw.choice(parents)
        if draw.random() < 0.2:
            del parent[key]
        else:
            parent[key] = draw.choice(OTHERS)
    rows[at] = json.dumps(value)
    return "\n".join(rows).encode()


def _containers(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (object or list, key or index) in a JSON value; of a long list only the first ones."""
    if isinstance(value, dict | list):
        for key in list(value)[:50] if isinstance(value, dict) else range(min(len(value), 5)):
            yield value, key
            yield from _containers(value[key])


def try_read(kind: Kind, folder: Path) -> str:
    """ "read", "refused", or what went wrong: the traceback."""

    def too_long(*_: object) -> None:
        raise TimeoutError("too slow")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            kind.read(folder)
    except (ValueError, OSError, SystemExit) as error:
        said = f"{error} {getattr(error, 'filename', '')}"
        from_parser = isinstance(error, SystemExit) and error.code == 2  # which has written its own box
        if from_parser or (str(folder) in said and "\n" not in said):
            return "refused"
        return f"not one line with the file: {traceback.format_exc()}"
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return "read"


def fuzz(count: int, seed: int, scratch: Path, *, only: str = "", shown: bool = False) -> dict[str, dict[str, int]]:
    """Kind -> how many of its files were tried, read, refused and failed; failures are printed."""
    chosen = {name: kind for name, kind in kinds().items() if only in name}
    draw, table, names = random.Random(seed), dict[str, dict[str, int]](), list(chosen)
    shares = [kind.share for kind in chosen.values()]
    for number in tqdm(range(count), "fuzzing", unit="file", disable=None if shown else True):
        name = draw.choices(names, shares)[0]
        kind, folder = chosen[name], scratch / str(names.index(name))
        files = files_of(kind.make)
        if name not in table:
            put(files, folder)
            kind.read(folder)  # undamaged, they are read
            shutil.rmtree(folder)
        path = draw.choice([p for p in files if any(fnmatch(str(p), one) for one in kind.damaged)])
        put({**files, path: damage_file(files[path], path.name, draw)}, folder)
        outcome = try_read(kind, folder)
        counts = table.setdefault(name, dict.fromkeys(("tried", "read", "refused", "failed"), 0))
        counts["tried"] += 1
        counts[outcome if outcome in counts else "failed"] += 1
        if outcome not in counts:
            print(f"input {number} of seed {seed}: {name}, {path}\n{outcome}", file=sys.stderr, flush=True)
        shutil.rmtree(folder)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=5000, help="damaged files (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: %(default)s)")
    parser.add_argument("--only", default="", help="kinds whose name holds this text")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    with tempfile.TemporaryDirectory() as scratch:
        table = fuzz(options.count, options.seed, Path(scratch), only=options.only, shown=True)
    print("| reader | tried | read | refused | failed |\n| --- | --- | --- | --- | --- |")
    total = {key: sum(counts[key] for counts in table.values()) for key in ("tried", "read", "refused", "failed")}
    for name, counts in {**dict(sorted(table.items())), "all": total}.items():
        print(f"| {name} | {' | '.join(map(str, counts.values()))} |")
    sys.exit(total["failed"] > 0)


if __name__ == "__main__":
    main()
