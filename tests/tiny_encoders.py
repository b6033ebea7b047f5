"""Tiny random encoders in the published layouts: RoBERTa with a byte-level tokenizer, BERT, chexbert.pth, SRR-BERT."""

import json
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import BertConfig, BertForSequenceClassification, BertModel, RobertaConfig, RobertaModel

from radflow.rewards.metrics.chexbert import NUM_CLASSES
from radflow.rewards.metrics.srrbert import LABELS as SRR_LABELS

TEXTS = (
    "The heart is normal in size. The lungs are clear. No pleural effusion or pneumothorax.",
    "Small left pleural effusion with adjacent atelectasis. Cardiomegaly is unchanged.",
    "Findings: There is right lower lobe consolidation. Impression: Pneumonia, no acute cardiopulmonary abnormality.",
)


def tiny_roberta(folder: Path, *, layers: int = 3) -> Path:
    """vocab.json, merges.txt, config.json, weights; no model_max_length in tokenizer_config.json, as in old ones."""
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(TEXTS * 3, vocab_size=400, min_frequency=1, special_tokens=special)
    folder.mkdir(parents=True)
    tokenizer.save_model(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "RobertaTokenizer"}))
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=66,
        type_vocab_size=1,
        initializer_range=0.5,
    )
    RobertaModel(config).save_pretrained(folder)
    return folder


def tiny_bert(folder: Path) -> Path:
    """config.json and vocab.txt of an uncased BERT; the weights are those of chexbert.pth."""
    words = sorted({word.strip(".,:").lower() for text in TEXTS for word in text.split()})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, ".", ",", ":", *"abcdefghijklmnopqrstuvwxyz"]
    pieces += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(pieces)) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": True, "tokenizer_class": "BertTokenizer"})
    )
    bert_config(folder).save_pretrained(folder)
    return folder


def bert_config(folder: Path) -> BertConfig:
    size = len((folder / "vocab.txt").read_text().splitlines())
    return BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
    )


def chexbert_state(bert: Path) -> dict[str, torch.Tensor]:
    """The published keys: module.bert.* with pooler and position ids, module.linear_heads.0 to 13."""
    torch.manual_seed(1)
    state = {f"module.bert.{name}": tensor for name, tensor in BertModel(bert_config(bert)).state_dict().items()}
    state["module.bert.embeddings.position_ids"] = torch.arange(64)[None]
    for number, classes in enumerate(NUM_CLASSES):
        state[f"module.linear_heads.{number}.weight"] = torch.randn(classes, 32)
        state[f"module.linear_heads.{number}.bias"] = torch.randn(classes)
    return state


def tiny_chexbert(path: Path, bert: Path, *, legacy: bool = False) -> Path:
    loaded = {"epoch": 7, "model_state_dict": chexbert_state(bert), "optimizer_state_dict": {"state": {}, "step": 3}}
    torch.save(loaded, path, _use_new_zipfile_serialization=not legacy)
    return path


def tiny_srr_bert(folder: Path, bert: Path, *, outputs: int = len(SRR_LABELS)) -> Path:
    """config.json, which names no label, and model.safetensors; some labels of each sentence are positive."""
    torch.manual_seed(2)
    config = bert_config(bert)
    config.num_labels = outputs
    model = BertForSequenceClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=0.5)
    model.classifier.bias.data.fill_(-1.0)
    model.save_pretrained(folder)
    return folder


def empty_punkt(folder: Path) -> Path:
    """A folder of NLTK's data whose English sentence model knows no abbreviation."""
    model = folder / "tokenizers" / "punkt_tab" / "english"
    model.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (model / name).write_text("")
    return folder
