"""Products of stages have digests: what is damaged, or was built on something else, is not read in silence."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capo import journal
from capo.checkpoint import check_product
from capo.journal import Digests, digests_path, seal, write_json, write_lines, write_sealed
from capo.ranks import Ranks
from radflow.data.studies import Study
from radflow.pipeline.generation import open_model
from radflow.pipeline.resumable import resumable_map
from radflow.pipeline.run import PRODUCTS, check_products, refuse_stale, seal_product

STUDIES = [Study(f"s{number}", "p", "train", (), "", "") for number in range(4)]


def make(folder, name, text="weights"):
    """A product of a stage in miniature, sealed."""
    path = folder / PRODUCTS[name]
    if name == "explore":
        write_sealed(path / "predictions" / "part_00000.jsonl", [{"id": "s1", "report": text}])
        write_lines(path / "scores.jsonl", [{"id": "s1", "s": 0.5}])
        write_json(path / "selection.json", {"selected": [text]})
    elif name == "criticality":
        write_lines(path, [{"id": "s1", "critical": True, "reason": text, "source": "rules"}])
    elif name == "evaluate":
        write_json(path / "table.json", {"rows": []})
        (path / "table.md").write_text(text)
    else:
        path.mkdir(parents=True, exist_ok=True)
        (path / "model.safetensors").write_text(text)
    seal_product(folder, name)


@pytest.fixture
def run(tmp_path):
    for name in PRODUCTS:
        make(tmp_path, name)
    return tmp_path


def check(folder):
    check_products(folder, Ranks())


def flip(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def test_digests_are_those_of_sha256sum(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")
    seal(tmp_path / "a.bin", {"model": "x"})
    # the example of FIPS 180-4
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    written = json.loads((tmp_path / "a.digests.json").read_text())
    assert written["files"] == {"a.bin": [3, digest]} and written["built_on"] == {"model": "x"}


@pytest.mark.parametrize("damage", [flip, lambda content: content[:-3], lambda _: b""], ids=["flip", "cut", "empty"])
def test_each_damaged_file_of_each_product_is_named_with_what_to_do(run, damage):
    check(run)
    files = [p for p in sorted(run.rglob("*")) if p.is_file() and not p.name.endswith("digests.json")]
    assert len(files) == 11
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        with pytest.raises(ValueError) as caught:
            check(run)
        message = str(caught.value)
        assert message.startswith(f"{path} ") and "remove" in message and "\n" not in message
        path.write_bytes(whole)
    check(run)


def test_a_missing_file_and_damaged_digests_are_named(run):
    lost = run / "sft/model/model.safetensors"
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read \(No such file"):
        check(run)
    lost.write_bytes(content)
    path = digests_path(run / "eval")
    good = path.read_text()
    digest = Digests.read(run / "eval").files["table.md"][1]
    # One letter of a digest that changed must not accuse the file, whose removal would be the advice then.
    for damaged in ("", "[]", good[:99], good.replace(digest, digest[::-1]), good.replace('"files"', '"file"')):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"eval/digests.json: expected the digests.*restore it, or remove it"):
            check(run)


def test_what_was_built_on_a_model_that_was_made_again_is_refused_unless_the_model_is_the_same(run):
    make(run, "sft")
    check(run)
    make(run, "sft", "other weights")
    with pytest.raises(ValueError, match=r"explore was built on another sft/model than .*restore.*or move .*explore"):
        check(run)


def test_a_reason_that_changed_does_not_make_the_policy_stale_but_a_label_does(run):
    make(run, "criticality", "corrected by a person")
    check(run)
    write_lines(run / "criticality.jsonl", [{"id": "s1", "critical": False, "reason": "", "source": "rules"}])
    seal_product(run, "criticality")
    with pytest.raises(ValueError, match=r"rl/model was built on another criticality.jsonl"):
        refuse_stale(run)


def test_a_run_of_an_older_version_gets_digests_with_one_warning(run, capsys):
    for path in run.rglob("*digests.json"):
        path.unlink()
    check(run)
    assert capsys.readouterr().out.count("warning: no digests of") == 1
    assert Digests.read(run / "rl/model").built_on.keys() == {"sft/model", "explore", "criticality.jsonl"}
    check(run)
    assert capsys.readouterr().out == ""


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text("ab", min_size=1, max_size=3), st.binary(max_size=4), min_size=1), st.data())
def test_the_identity_changes_with_any_byte_and_only_then(tmp_path_factory, files, data):
    folder, other = (tmp_path_factory.mktemp("product") for _ in range(2))
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (other / name).write_bytes(content)
    seal(folder, {}), seal(other, {"a": "b"})
    before = Digests.read(folder).identity
    assert before == Digests.read(other).identity
    (folder / data.draw(st.sampled_from(sorted(files)))).write_bytes(b"other")
    seal(folder, {})
    assert Digests.read(folder).identity != before


def rows_of(part, name):
    return [{"id": study.id, "report": name} for study in part]


def reports(folder, built_on=None):
    rows = resumable_map(folder, STUDIES, 2, rows_of, Ranks(), title="x", built_on=built_on)
    return [row["report"] for row in rows]


def test_a_damaged_part_is_named_and_made_again_once_removed(tmp_path):
    written, path = reports(tmp_path), tmp_path / "part_00001.jsonl"
    path.write_bytes(path.read_bytes().replace(b"part_00001", b"part_00002"))
    with pytest.raises(ValueError, match=r"part_00001.jsonl is damaged.*remove the file and rerun the command"):
        reports(tmp_path)
    path.unlink()
    assert reports(tmp_path) == written


def test_parts_of_another_model_are_no_parts_and_old_ones_are_read_with_a_warning(tmp_path, capsys):
    reports(tmp_path, {"sft/model": "a"})
    with pytest.raises(ValueError, match=r"part_00000.jsonl: made with another sft/model"):
        reports(tmp_path, {"sft/model": "b"})
    for path in tmp_path.glob("*.digests.json"):
        path.unlink()
    assert reports(tmp_path, {"sft/model": "b"}) == ["part_00000"] * 2 + ["part_00001"] * 2
    assert "2 parts of an older version have no digests" in capsys.readouterr().out


def test_a_kill_between_digests_and_part_leaves_no_part(tmp_path, monkeypatch):
    written, write = [], journal.write_whole

    def killed(path, text):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, text)

    monkeypatch.setattr(journal, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        reports(tmp_path)
    assert not list(tmp_path.glob("part_*.jsonl"))  # it would pass for one of an older version


def test_a_model_given_by_its_path_is_checked_before_it_is_loaded(run):
    path = run / "rl/model/model.safetensors"
    path.write_bytes(flip(path.read_bytes()))
    with pytest.raises(ValueError, match=r"rl/model/model.safetensors is damaged.*copy the model again"):
        open_model(str(path.parent))


def test_a_published_folder_without_digests_is_read(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    check_product(tmp_path, Ranks(), advice="")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
