"""Random RadGraph archives in the published format, of any size, for tests and benchmarks.

Random scorers would call everything an entity or nothing. The last layers are therefore scaled and shifted on some of
the texts, so that entities and relations occur about as often as in real reports; and the pruner likes what the scorers
of entities like, so that kept spans tend to be entities.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModel, BertConfig, ModernBertConfig, PretrainedConfig, PreTrainedTokenizerFast

from radflow.rewards.radgraph.annotate import RadGraphAnnotator
from radflow.rewards.radgraph.decoder import candidate_spans
from radflow.rewards.radgraph.f1 import RadGraphConfig
from radflow.rewards.radgraph.text import tokenise

ENCODER = "_embedder.token_embedder_bert._matched_embedder.transformer_model."
V1_NER = ["", "ANAT-DP", "OBS-DP", "OBS-DA", "OBS-U"]
XL_NER = [
    "",
    "Anatomy::definitely present",
    "Observation::definitely present",
    "Observation::definitely absent",
    "Observation::uncertain",
    "Anatomy::definitely absent",
]
RELATIONS = ["modify", "located_at", "suggestive_of"]


@dataclass(frozen=True)
class Sizes:
    """The defaults are tiny; `published` has those of a real archive."""

    hidden: int = 32
    layers: int = 2
    heads: int = 2
    intermediate: int = 64
    feedforward: int = 16
    feature: int = 5
    span_width: int = 8
    max_length: int = 512
    vocabulary: int = 400


PUBLISHED = Sizes(768, 12, 12, 3072, 150, 20, 8, 512, 8000)


def write_archive(
    folder: Path, model: str, texts: Sequence[str], sizes: Sizes = Sizes(), *, seed: int = 0, dataset: str | None = None
) -> Path:
    """Write folder/MODEL/{config.json, weights.th, vocabulary/} and folder/encoder-MODEL/ with config and tokenizer."""
    encoder = folder / f"encoder-{model}"
    tokenizer(texts, sizes.vocabulary, modern="modern" in model).save_pretrained(encoder)
    config = encoder_config(sizes, modern="modern" in model)
    config.save_pretrained(encoder)
    ner = V1_NER if model == "radgraph" else XL_NER
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = random_weights(AutoModel.from_config(config), dataset or model, ner, sizes)
    archive = folder / model
    (archive / "vocabulary").mkdir(parents=True)
    torch.save(weights, archive / "weights.th")
    (archive / "config.json").write_text(json.dumps(archive_config(str(encoder), sizes)))
    files = {
        "non_padded_namespaces": ["*tags", "*labels"],
        f"{dataset or model}__ner_labels": ner,
        f"{dataset or model}__relation_labels": RELATIONS,
    }
    for name, lines in files.items():
        (archive / "vocabulary" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    calibrate(archive, model, texts[:20])
    return archive


def calibrate(archive: Path, model: str, texts: Sequence[str]) -> None:
    """Scale and shift the last layers by what they give on these texts."""
    annotator = RadGraphAnnotator.load(RadGraphConfig(path=archive, model=model, device="cpu"))
    weights = torch.load(archive / "weights.th", weights_only=True)

    def adjust(key: str, scores: torch.Tensor, quantile: float, bonus: torch.Tensor | float = 0.0) -> None:
        """Spread 1, and this quantile, with what is added to it, just below 0: at 0 the quantile itself would tie."""
        std, (weight, bias) = scores.std(0), (weights[f"{key}.{kind}"] for kind in ("weight", "bias"))
        bias.copy_(bias / std - (scores / std + bonus).quantile(quantile, dim=0) - 0.01)
        weight.div_(std[:, None])

    ner, pruner, relation = (
        next(key for key in weights if key.startswith(start) and key.endswith(end)).removesuffix(".weight")
        for start, end in (
            ("_ner.", "1._module.weight"),
            ("_relation._mention_pruners", "1._module.weight"),
            ("_relation._relation_scorers", "weight"),
        )
    )
    with torch.inference_mode():
        reports = [tokenise(text, model) for text in texts]
        words, decoder = annotator.encoder(reports), annotator.decoder
        spans = candidate_spans([len(r) for r in reports], max_width=decoder._max_width, device="cpu")
        scores = decoder._ner(words, spans)
        adjust(ner, scores[:50000], 0.985)
        weights[f"{pruner}.weight"] = 0.2 * weights[f"{ner}.weight"].sum(0, keepdim=True)
        mentions = 0.2 * (scores / scores[:50000].std(0)).sum(1)
        some = (scores > scores[:50000].quantile(0.985, dim=0)).any(1).nonzero()[:500, 0]
        chosen, mentions = spans[some], mentions[some]
        ends = [words[chosen.start], words[chosen.end], decoder._widths[chosen.end - chosen.start]]
        place = torch.arange(len(some))
        forth, back = decoder._pairs(torch.cat(ends, 1), place, place.flip(0))
        adjust(relation, torch.cat([forth, back]), 0.99, (mentions + mentions.flip(0)).repeat(2)[:, None])
    torch.save(weights, archive / "weights.th")


def tokenizer(texts: Sequence[str], vocabulary: int, *, modern: bool) -> PreTrainedTokenizerFast:
    """WordPieces in lower case as BERT's, or byte-level pairs as ModernBERT's."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if modern:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet)
    else:
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special)
    made.train_from_iterator(texts, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def encoder_config(sizes: Sizes, *, modern: bool) -> PretrainedConfig:
    common = {
        "vocab_size": max(sizes.vocabulary, 300),
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.intermediate,
        "max_position_embeddings": max(sizes.max_length, 512),
    }
    if not modern:
        return BertConfig(**common)
    ids = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}
    return ModernBertConfig(**common, **ids, local_attention=16)


def archive_config(encoder: str, sizes: Sizes) -> dict:
    """With the keys that the package reads or deletes, and the values of DyGIE's template."""
    bert = {"type": "pretrained_transformer_mismatched", "model_name": encoder, "max_length": sizes.max_length}
    return {
        "dataset_reader": {"type": "dygie", "max_span_width": sizes.span_width, "token_indexers": {"bert": bert}},
        "model": {
            "type": "dygie",
            "embedder": {"token_embedders": {"bert": bert}},
            "initializer": {},
            "module_initializer": {},
            "feature_size": sizes.feature,
            "max_span_width": sizes.span_width,
            "target_task": "relation",
            "feedforward_params": {"num_layers": 2, "hidden_dims": sizes.feedforward, "dropout": 0.4},
            "loss_weights": {"ner": 0.2, "relation": 1.0, "coref": 0.0, "events": 0.0},
            "modules": {
                "coref": {"spans_per_word": 0.3, "max_antecedents": 100, "coref_prop": 0},
                "ner": {},
                "relation": {"spans_per_word": 0.5},
                "events": {"trigger_spans_per_word": 0.3, "argument_spans_per_word": 0.8, "loss_weights": {}},
            },
        },
    }


def random_weights(encoder: torch.nn.Module, dataset: str, ner: Sequence[str], sizes: Sizes) -> dict:
    """All tensors of the published state dict, those of unused heads included."""
    span, hidden = 2 * sizes.hidden + sizes.feature, sizes.feedforward
    weights = {ENCODER + key: value.clone() for key, value in encoder.state_dict().items()}
    for key, value in weights.items():
        # Words should differ more than their places, and layers should mix, as in a trained encoder.
        if key.endswith(("word_embeddings.weight", "tok_embeddings.weight")):
            value.normal_(0, 0.5)

    def layer(prefix: str, inputs: int, outputs: int, *, scale: float = 1.0) -> None:
        weights[f"{prefix}weight"] = torch.randn(outputs, inputs) * scale / inputs**0.5
        weights[f"{prefix}bias"] = torch.zeros(outputs)

    def network(prefix: str, inputs: int) -> None:
        layer(f"{prefix}_linear_layers.0.", inputs, hidden, scale=1.5)
        layer(f"{prefix}_linear_layers.1.", hidden, hidden, scale=1.5)

    weights["_endpoint_span_extractor._span_width_embedding.weight"] = torch.randn(sizes.span_width, sizes.feature)
    scorer = f"_ner._ner_scorers.{dataset}__ner_labels."
    pruner = f"_relation._mention_pruners.{dataset}__relation_labels."
    network(f"{scorer}0._module.", span)
    layer(f"{scorer}1._module.", hidden, len(ner) - 1)
    for number in range(2):
        for kind in ("weight", "bias"):
            same = weights[f"{scorer}0._module._linear_layers.{number}.{kind}"].clone()
            weights[f"{pruner}_scorer.0._module._linear_layers.{number}.{kind}"] = same
    weights[f"{pruner}_scorer.1._module.weight"] = weights[f"{scorer}1._module.weight"].mean(0, keepdim=True)
    weights[f"{pruner}_scorer.1._module.bias"] = torch.zeros(1)
    network(f"_relation._relation_feedforwards.{dataset}__relation_labels.", 3 * span)
    layer(f"_relation._relation_scorers.{dataset}__relation_labels.", hidden, len(RELATIONS))
    # Heads of tasks that no published archive uses.
    weights["_coref._distance_embedding.weight"] = torch.zeros(10, sizes.feature)
    weights["_events._distance_embedding.weight"] = torch.zeros(10, sizes.feature)
    network("_coref._antecedent_feedforward._module.", 3 * span + sizes.feature)
    network("_coref._mention_pruner._scorer.0._module.", span)
    layer("_coref._mention_pruner._scorer.1._module.", hidden, 1)
    layer("_coref._antecedent_scorer._module.", hidden, 1)
    layer("_coref._f_network._linear_layers.0.", 2 * span, span)
    return weights
