"""SRR-BERT: 54 findings of a report, each present, uncertain or absent, read sentence by sentence by a BERT.

As RadEval 2.2 computes it, with the model "Leaves with Statuses": a report has the labels that any of its sentences
has. Its weighted F1 is over a corpus (`radflow.evaluation.table_metrics`).

Source: doi:10.18653/v1/2025.acl-long.1301; radeval/metrics/SRRBert of jbdel/RadEval.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radflow.rewards.memory import MB, Kept, remember
from radflow.rewards.metrics.encoder import check_directories, cut_batches, load_pretrained, place_encoder, try_model

_FINDINGS = """
    Lung Lesion, Edema, Pneumonia, Atelectasis, Aspiration, Lung collapse, Perihilar airspace opacity,
    Air space opacity\u2013multifocal, Mass/Solitary lung mass, Nodule/Solitary lung nodule,
    Cavitating mass with content, Cavitating masses, Emphysema, Fibrosis, Pulmonary congestion, Hilar lymphadenopathy,
    Bronchiectasis, Simple pneumothorax, Loculated pneumothorax, Tension pneumothorax, Simple pleural effusion,
    Loculated pleural effusion, Pleural scarring, Hydropneumothorax, Pleural Other, Cardiomegaly,
    Pericardial effusion, Inferior mediastinal mass, Superior mediastinal mass, Tortuous Aorta,
    Calcification of the Aorta, Enlarged pulmonary artery, Hernia, Pneumomediastinum, Tracheal deviation,
    Acute humerus fracture, Acute rib fracture, Acute clavicle fracture, Acute scapula fracture, Compression fracture,
    Shoulder dislocation, Subcutaneous Emphysema, Suboptimal central line, Suboptimal endotracheal tube,
    Suboptimal nasogastric tube, Suboptimal pulmonary arterial catheter, Pleural tube, PICC line, Port catheter,
    Pacemaker, Implantable defibrillator, LVAD, Intraaortic balloon pump, Pneumoperitoneum
"""
# In the order of the model's outputs, whose config does not name them.
LABELS = (
    *(f"{name.strip()} ({status})" for status in ("Present", "Uncertain", "Absent") for name in _FINDINGS.split(",")),
    "No Finding",
)
MAX_TOKENS = 512
# Numbers of lists are taken out, and sentences set apart, as the package does before NLTK cuts sentences.
_REWRITES = (
    (r"^\s*\d+\.(?!\d)\s*", ""),
    (r"(\w)\.(\d+)\.(?!\d)\s*", r"\1. "),
    (r"(\w)(\d+)\.(?!\d)\s*", r"\1. "),
    (r"(\w)\s+\d+\.(?!\d)\s*", r"\1. "),
    (r"([.!?])\s*\d+\.(?!\d)\s*", r"\1 "),
    (r"\.([A-Z])", r". \1"),
)


@dataclass(frozen=True)
class SrrBertConfig:
    """Where SRR-BERT is, and how it is run."""

    path: Path | None = None
    """Directory of SRR-BERT-Leaves-with-Statuses."""
    tokenizer: Path | None = None
    """Directory with the tokenizer of BiomedVLP-CXR-BERT-general."""
    token_budget: int = 2048
    """Tokens per batch, padding included; a GPU wants more."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto` for a GPU if there is one."""

    def __post_init__(self) -> None:
        if self.token_budget < 1:
            raise ValueError(f"expected srrbert token_budget of at least 1, got {self.token_budget}")


class SrrBert:
    """The labels that the model finds in each text.

    Args:
        model: BERT with one output per label.
        cut: text -> its sentences.
    """

    labels = LABELS

    def __init__(
        self, model: Any, tokenizer: Any, cut: Callable[[str], list[str]], *, token_budget: int, device: str
    ) -> None:
        self.model = place_encoder(model, device)
        self.tokenizer, self.cut, self.token_budget = tokenizer, remember(cut), token_budget
        self._kept = Kept[frozenset[str]](16 * MB)

    @classmethod
    def load(cls, config: SrrBertConfig) -> "SrrBert":
        """ValueError if a file is absent or not the published model, or NLTK's sentence model is not installed."""
        from nltk.tokenize import PunktTokenizer
        from transformers import BertForSequenceClassification, BertTokenizer

        check_directories("SRR-BERT", config.path, config.tokenizer)
        try:
            punkt = PunktTokenizer("english")
        except LookupError as error:
            raise ValueError("SRR-BERT: needs NLTK's sentences: python -m nltk.downloader punkt_tab") from error
        options = {"dtype": "float32", "output_loading_info": True}
        model, read = load_pretrained(BertForSequenceClassification, str(config.path), **options)
        if read["missing_keys"] or model.config.num_labels != len(LABELS):
            got = f"{model.config.num_labels} outputs, without {sorted(read['missing_keys'])[:2]}"
            raise ValueError(f"{config.path}: expected SRR-BERT with weights for {len(LABELS)} outputs, got {got}")
        tokenizer = load_pretrained(BertTokenizer, str(config.tokenizer))
        return cls(
            try_model(model, str(config.path)),
            tokenizer,
            lambda text: punkt.tokenize(prepared(text)),
            token_budget=config.token_budget,
            device=config.device,
        )

    def __call__(self, texts: Sequence[str]) -> list[set[str]]:
        sentences = [self.cut(text) for text in texts]
        known = self._kept([sentence for found in sentences for sentence in found], self._labels)
        return [set[str]().union(*(known[sentence] for sentence in found)) for found in sentences]

    def _labels(self, sentences: list[str]) -> list[frozenset[str]]:
        import torch

        longest = min(MAX_TOKENS, self.model.config.max_position_embeddings)
        ids = self.tokenizer(sentences, truncation=True, max_length=longest)["input_ids"]
        found = [frozenset[str]()] * len(sentences)
        for indices in cut_batches([len(row) for row in ids], self.token_budget):
            batch = self.tokenizer.pad({"input_ids": [ids[i] for i in indices]}, return_tensors="pt")
            with torch.inference_mode():
                present = self.model(**batch.to(self.model.device)).logits.sigmoid() > 0.5
            for i, row in zip(indices, present.tolist(), strict=True):
                found[i] = frozenset(label for label, there in zip(LABELS, row, strict=True) if there)
        return found


def prepared(text: str) -> str:
    """A report without the numbers of its lists, every sentence followed by a space, with a mark at its end."""
    for pattern, replacement in _REWRITES:
        text = re.sub(pattern, replacement, text)
    return text if text.strip().endswith((".", "!", "?")) else f"{text.strip()}."
