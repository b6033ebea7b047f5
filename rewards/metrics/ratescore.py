"""RaTEScore by its package: the entities of two reports, found by one model and matched by the embeddings of another.

The package (0.6.0) is called and not copied: it cuts sentences by the rules of medspacy. RadEval 2.2 holds the same
code.

Source: arXiv:2406.16845; MAGIC-AI4Med/RaTEScore.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radflow.rewards.memory import MB, remember
from radflow.rewards.metrics.encoder import check_directories, in_one_line, pick_device

KEPT_BYTES = 64 * MB  # of entities, each with an embedding of 3 KB
# Of the published model of entities; with another one the package finds no entity at all and says nothing.
TYPES = {"ABNORMALITY", "NON-ABNORMALITY", "DISEASE", "NON-DISEASE", "ANATOMY"}


@dataclass(frozen=True)
class RateScoreConfig:
    """Where the two models of RaTEScore are."""

    entities: Path | None = None
    """Directory of RaTE-NER-Deberta, which finds and types entities."""
    embeddings: Path | None = None
    """Directory of BioLORD-2023-C, whose embeddings say which entities are synonyms."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto` for a GPU if there is one."""


class RateScore:
    """F of matched entities, per report, in [0, 1]; 0.5 if either report has none, as in the package.

    An empty report has none. The package drops a text without a sentence and so gives every later report the score of
    another one; here each text is read on its own, and once.

    Args:
        scorer: the package's RaTEScore, which holds the models.
    """

    def __init__(self, scorer: Any) -> None:
        self.scorer = scorer
        self._kept = remember(self._read, most_bytes=KEPT_BYTES)

    @classmethod
    def load(cls, config: RateScoreConfig) -> "RateScore":
        """ValueError if package or models are absent, are others, or do not work together."""
        check_directories("RaTEScore", config.entities, config.embeddings)
        try:
            from loguru import logger
            from RaTEScore import RaTEScore

            logger.disable("PyRuSH")  # it reports every token
            paths = str(config.entities), str(config.embeddings)
            metric = cls(RaTEScore(*paths, use_gpu=pick_device(config.device) != "cpu"))
            metric(["No effusion."], ["Clear lungs."])
        except Exception as error:  # of any of the dozen libraries that the package imports
            raise ValueError(
                f"RaTEScore: cannot load {config.entities} and {config.embeddings}: {in_one_line(error)}; install the "
                "package, and copy the models again if they are damaged"
            ) from error
        found = {label.partition("-")[2] for label in metric.scorer.idx2label.values()} - {""}
        if found != TYPES:
            raise ValueError(f"{config.entities}: expected a model of {sorted(TYPES)}, got one of {sorted(found)}")
        return metric

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float]:
        return [self._one(*pair) for pair in zip(candidates, references, strict=True)]

    def _one(self, candidate: str, reference: str) -> float:
        from RaTEScore.utils import compute

        (found, found_types), (expected, expected_types) = self._kept(candidate), self._kept(reference)
        if not found_types or not expected_types:
            return 0.5
        matrix = self.scorer.affinity_matrix
        precision = compute(expected, found, expected_types, found_types, matrix)
        recall = compute(found, expected, found_types, expected_types, matrix)
        return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0

    def _read(self, text: str) -> tuple[Any, list[str]]:
        """Embeddings [E, H] and types of the entities of a text."""
        from RaTEScore.score import process_embedding, run_ner
        from RaTEScore.utils import sentence_split

        if not sentence_split([text])[0]:
            return None, []
        scorer = self.scorer
        (entities,) = run_ner([text], scorer.idx2label, scorer.tokenizer, scorer.model, scorer.device, 1)
        return process_embedding(entities, scorer.eval_tokenizer, scorer.eval_model, scorer.device)
