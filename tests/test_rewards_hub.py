"""Which files of a model on the hub are meant."""

from pathlib import Path

from radflow.rewards.hub import COMMITS, at_commit, find_commit
from radflow.rewards.metrics.bertscore import BASELINES, BertScoreConfig
from radflow.rewards.metrics.encoder import load_pretrained
from radflow.rewards.radgraph.archive import find_archive
from radflow.rewards.radgraph.encoder import load_tokenizer


def test_defaults_stand_for_one_commit_and_other_names_warn_once(tmp_path, caplog):
    default = BertScoreConfig().path
    assert find_commit(default) == ("distilroberta-base", COMMITS["distilroberta-base"])
    assert find_commit("distilroberta-base@v2") == ("distilroberta-base", "v2") and caplog.messages == []
    assert find_commit("Some/Encoder") == find_commit("Some/Encoder") == ("Some/Encoder", "main")
    assert len(caplog.messages) == 1 and "Some/Encoder@COMMIT" in caplog.text
    assert "revision" not in at_commit(str(tmp_path)) and "revision" in at_commit("Some/Encoder")
    assert BertScoreConfig("distilroberta-base@v2").rescaling == BASELINES["distilroberta-base", 5]


def test_every_fetch_names_its_commit(monkeypatch, tmp_path):
    asked = []

    class Kind:
        @staticmethod
        def from_pretrained(**given):
            asked.append(given["revision"])
            return lambda text, **_: {"input_ids": [1]}

    load_pretrained(Kind, "bert-base-uncased")
    monkeypatch.setattr("transformers.AutoTokenizer", Kind)
    load_tokenizer("Some/Encoder@v1")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, revision: asked.append(revision) or str(tmp_path))
    find_archive(Path("StanfordAIMI/RRG_scorers"), "radgraph-xl")
    assert asked == [COMMITS["bert-base-uncased"], "v1", COMMITS["StanfordAIMI/RRG_scorers"]]
