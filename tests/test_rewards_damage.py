"""Damaged archives, caches and plug-ins of the rewards: what is refused, and what is begun anew."""

import gzip
import io
import json
import sqlite3
import tarfile
import tracemalloc
import warnings
import zipfile

import nltk
import pytest
import torch
from radgraph_archives import Sizes, write_archive
from tiny_encoders import TEXTS, empty_punkt, tiny_bert, tiny_chexbert, tiny_roberta, tiny_srr_bert

from radflow.rewards.judge.answer_cache import AnswerCache
from radflow.rewards.metrics.bertscore import BertScore, BertScoreConfig
from radflow.rewards.metrics.chexbert import Chexbert, ChexbertConfig
from radflow.rewards.metrics.encoder import load_weights
from radflow.rewards.metrics.srrbert import SrrBert, SrrBertConfig
from radflow.rewards.radgraph.annotate import RadGraphAnnotator
from radflow.rewards.radgraph.archive import read_archive
from radflow.rewards.radgraph.cache import GraphCache
from radflow.rewards.radgraph.text import RadGraphConfig
from radflow.rewards.registry import load_plugin

GRAPH = {"1": {"tokens": "lungs", "label": "ANAT-DP"}}


def test_a_small_archive_that_unfolds_to_much_is_refused_before_it_fills_the_memory(tmp_path):
    path, mb = tmp_path / "radgraph.tar.gz", 2**20
    with gzip.open(path, "wb", compresslevel=1) as packed:  # 100 MiB of zeros that claim to be the weights
        member = tarfile.TarInfo("weights.th")
        member.size = 100 * mb
        packed.write(member.tobuf())
        for _ in range(100):
            packed.write(bytes(mb))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"radgraph\.tar\.gz: .*unfolds to more than [\d,]+ bytes.*; fetch it again"):
        read_archive(path, "radgraph")
    assert path.stat().st_size < mb and tracemalloc.get_traced_memory()[1] < 60 * mb
    tracemalloc.stop()


def test_links_devices_and_folders_above_are_no_files_of_an_archive(tmp_path):
    path = tmp_path / "radgraph.tar.gz"
    with tarfile.open(path, "w:gz") as packed:
        for name, kind in (("config.json", tarfile.SYMTYPE), ("weights.th", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            packed.addfile(member)
        for name in ("vocabulary/../../a.txt", "../config.json", "/config.json"):
            packed.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match=r"radgraph\.tar\.gz: expected config\.json, got only \[\]"):
        read_archive(path, "radgraph")


def test_weights_that_are_compressed_cut_or_run_code_are_refused_without_advice_to_run_it(tmp_path):
    path, packed, cut = tmp_path / "a.pth", tmp_path / "packed.pth", tmp_path / "cut.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    assert load_weights(path, path)["a"].shape == load_weights(path.read_bytes(), "a")["a"].shape == (1000,)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    cut.write_bytes(path.read_bytes()[:2000])
    torch.save({"a": print}, path)
    for file, said in ((packed, "it is compressed"), (cut, "PytorchStreamReader|damaged"), (path, "could run code")):
        with pytest.raises(ValueError, match=rf"{file.name}: .*({said}).*; fetch it again$") as error:
            load_weights(file, file)
        assert "weights_only" not in str(error.value) and "\n" not in str(error.value)


def chexbert(folder):
    path = tiny_chexbert(folder / "chexbert.pth", tiny_bert(folder / "bert"))
    return Chexbert.load, ChexbertConfig(path=path, bert=str(folder / "bert")), folder / "bert"


def bertscore(folder):
    path = tiny_roberta(folder / "roberta")
    return BertScore.load, BertScoreConfig(path=str(path), num_layers=2), path


def srr_bert(folder):
    empty_punkt(folder)
    bert = tiny_bert(folder / "bert")
    path = tiny_srr_bert(folder / "srr", bert)
    return SrrBert.load, SrrBertConfig(path, bert), path


def radgraph(folder):
    write_archive(folder, "radgraph", TEXTS, Sizes(layers=1))
    encoder = folder / "encoder-radgraph"
    return RadGraphAnnotator.load, RadGraphConfig(path=folder, encoder=encoder), encoder


@pytest.mark.parametrize("make", [chexbert, bertscore, srr_bert, radgraph])
def test_an_encoder_whose_config_fails_only_when_it_computes_is_refused_when_it_is_loaded(tmp_path, monkeypatch, make):
    load, config, encoder = make(tmp_path)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    load(config)
    damaged = json.loads((encoder / "config.json").read_text()) | {"hidden_dropout_prob": float("nan")}
    (encoder / "config.json").write_text(json.dumps(damaged))
    with pytest.raises(ValueError, match=f"{encoder}: .*; copy it again .*dropout") as error:
        load(config)
    assert "\n" not in str(error.value)


def damage_pages(path):
    """Every page after the first is overwritten."""
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))


def test_a_damaged_cache_of_graphs_is_set_aside_and_begun_anew(tmp_path):
    path = tmp_path / "graphs.sqlite"
    GraphCache(path, model="m").write({f"text {number}": GRAPH for number in range(500)})
    damage_pages(path)
    with pytest.warns(UserWarning, match=r"graphs\.sqlite: .*; renamed to .*graphs\.sqlite\.damaged and begun anew"):
        cache = GraphCache(path, model="m")
        assert cache.read(["text 1"]) == {}
    cache.write({"text 1": GRAPH})
    assert GraphCache(path, model="m").read(["text 1"]) == {"text 1": GRAPH}
    assert (tmp_path / "graphs.sqlite.damaged").exists()


def test_a_graph_with_a_flipped_bit_is_made_anew(tmp_path):
    path = tmp_path / "graphs.sqlite"
    GraphCache(path, model="m").write({"text": GRAPH})
    path.write_bytes(path.read_bytes().replace(b"lungs", b"lungr"))
    cache = GraphCache(path, model="m")
    assert cache.read(["text"]) == {}
    cache.write({"text": GRAPH})
    assert cache.read(["text"]) == {"text": GRAPH}
    with sqlite3.connect(path) as connection:  # the type of a value is a few bits too
        connection.execute("UPDATE graphs SET graph = CAST(graph AS BLOB)")
    assert cache.read(["text"]) == {}


def test_a_cache_of_graphs_on_a_full_disk_is_only_read(tmp_path):
    cache = GraphCache(tmp_path / "graphs.sqlite", model="m")
    cache.write({"known": GRAPH})
    cache._connection.execute("PRAGMA max_page_count = 1")  # SQLite answers as on a full disk
    many = {f"text {number}": GRAPH for number in range(500)}
    with pytest.warns(UserWarning, match=r"graphs\.sqlite: database or disk is full; .* not kept"):
        cache.write(many)
    with warnings.catch_warnings(action="error"):
        cache.write(many)
    assert cache.read(["known", "text 1"]) == {"known": GRAPH}


def test_a_cache_whose_tables_have_names_that_are_no_text_is_damaged(tmp_path):
    graphs, answers = tmp_path / "graphs.sqlite", tmp_path / "answers.sqlite"
    GraphCache(graphs, model="m").write({"text": GRAPH})
    AnswerCache(answers, claim_s=9).close()
    for path in (graphs, answers):
        path.write_bytes(path.read_bytes().replace(b"CREATE TABLE", b"CRE\x8bTE TABLE"))
    with pytest.warns(UserWarning, match=r"graphs\.sqlite\.damaged and begun anew"):
        assert GraphCache(graphs, model="m").read(["text"]) == {}
    with pytest.raises(
        ValueError, match=r"answers\.sqlite: expected a cache of the judge: .*it is damaged: restore it"
    ):
        AnswerCache(answers, claim_s=9)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            "damage",
            r"malformed; it is damaged: restore it, save its answers \(sqlite3 .*c\.sqlite \.recover\), or choose",
        ),
        ("full", "database or disk is full; make room and rerun the same command; the answers so far are kept"),
        ("read only", "readonly database; make it and its folder writable, or choose another judge.cache"),
    ],
)
def test_paid_answers_are_never_begun_anew_in_silence(tmp_path, spoil, said):
    path = tmp_path / "c.sqlite"
    cache = AnswerCache(path, claim_s=9)
    for number in range(200):
        cache.store(f"key {number}", "yes " * 100, prompt="p", model="m")
    if spoil == "damage":
        cache.close()
        damage_pages(path)
    elif spoil == "full":
        cache._connection.execute("PRAGMA max_page_count = 1")
    else:
        cache._connection.execute("PRAGMA query_only = 1")
    with pytest.raises(ValueError, match=rf"c\.sqlite: expected a cache of the judge: .*{said}"):
        if spoil == "damage":
            cache = AnswerCache(path, claim_s=9)
            cache.find(["key 100"])
        cache.store("new", "no " * 5000, prompt="p", model="m")
    cache.close()
    assert path.exists() and not path.with_name("c.sqlite.damaged").exists()


def test_sqlite_that_is_locked_is_named(tmp_path):
    path = tmp_path / "graphs.sqlite"
    GraphCache(path, model="m")
    cache, other = GraphCache(path, model="m"), sqlite3.connect(path)
    cache._connection.execute("PRAGMA busy_timeout = 1")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.warns(UserWarning, match=r"graphs\.sqlite: database is locked; .* not kept"):
        cache.write({"text": GRAPH})
    other.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("x = 1\ndef f(:\n", r"p\.py:2: SyntaxError"),
        ("import os\nimport nothing_of_this_name\n", r"p\.py:2: ModuleNotFoundError: No module named 'nothing_of_this"),
        ("\n\n1 / 0\n", r"p\.py:3: ZeroDivisionError"),
        ("import sys\nsys.exit('no')\n", r"p\.py:2: SystemExit: no"),
        ("x = '\0'\n", r"p:1: SyntaxError"),
        ("from helper import f\n", r"helper\.py:1: NameError"),
    ],
)
def test_a_plug_in_that_cannot_be_imported_is_named_with_the_line_at_fault(tmp_path, monkeypatch, content, said):
    (tmp_path / "p.py").write_text(content)
    (tmp_path / "helper.py").write_text("f = unknown\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("p", "helper"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    with pytest.raises(
        ValueError, match=rf"^reward\.plugin p:f: .*{said}.*; correct it: `python -c 'import p'`"
    ) as error:
        load_plugin("p:f")
    assert "\n" not in str(error.value)
