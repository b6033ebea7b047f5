"""Settings of RadGraph, and what it does around its network: text to words, spans and relations to a graph."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

RadGraphModel = Literal["radgraph", "radgraph-xl", "modern-radgraph-xl", "echograph"]
Level = Literal["simple", "partial", "complete", "rexrank"]
Graph = dict[str, dict[str, Any]]  # "1", "2", ... -> tokens, label, start_ix, end_ix, relations [[type, id], ...]
Span = tuple[int, int, str]  # first word, last word, label
Relation = tuple[int, int, int, int, str]  # first and last word of the source, of the target, type

# What the xl models were trained on, before and after the words are cut; the backslashes are written-out escapes.
_BEFORE_WORDS = (("\\n", "  "), ("\\f", "  "), ("\\u2122", "      "), ("\n", " "), ('\\"', "``"))
_AFTER_WORDS = ((").", ") ."), ("%.", "% ."), (".'", ". '"), ("%,", "% ,"), ("%)", "% )"))
_V1_MARKS = re.compile(r"([/,:.!?()])")


@dataclass(frozen=True)
class RadGraphConfig:
    """Where the model is, how it is run, and which F1 is computed."""

    path: Path | None = None
    """Directory with config.json, weights.th and vocabulary/, or of such directories named after their models; a
    published .tar.gz; or, if no such directory exists, owner/repository of the hub: StanfordAIMI/RRG_scorers."""
    model: RadGraphModel = "radgraph"
    """Which published model it is; it decides how reports are cut into words. Papers mostly mean `radgraph` (v1)."""
    encoder: Path | None = None
    """Directory with config and tokenizer of the encoder, if the one that config.json names cannot be fetched."""
    level: Level = "partial"
    """Which F1: `simple`, `partial` (what papers call RadGraph F1 or RG_ER), `complete`, or `rexrank` (the mean of
    entity and relation F1)."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto` for a GPU if there is one."""
    max_tokens: int = 512
    """Word pieces per batch of the encoder; 512 was fastest on a CPU, some 16,000 are on a GPU."""
    cache: Path | None = None
    """SQLite file that keeps the graphs of references across runs and processes; none keeps them in memory."""
    bf16: bool = False
    """Encoder in bfloat16: faster on hardware made for it, but labels near a tie change."""

    def __post_init__(self) -> None:
        if self.level not in get_args(Level):
            raise ValueError(f"expected a RadGraph level of {sorted(get_args(Level))}, got {self.level!r}")
        if self.max_tokens < 1:
            raise ValueError(f"expected radgraph max_tokens of at least 1, got {self.max_tokens}")


def tokenise(text: str, model: RadGraphModel) -> list[str]:
    """Words of a report, as the package cuts them for this model; none for a text of white space only.

    v1 splits off / , : . ! ? ( ) and nothing else: the hyphen in the package's pattern is a range of one character.
    The others cut at every change between letters and marks. The package has a rule for echograph but never reaches
    it, so that echograph gets the xl words.
    """
    if model == "radgraph":
        return _V1_MARKS.sub(r" \1 ", text).split()
    from nltk.tokenize import wordpunct_tokenize

    for old, new in _BEFORE_WORDS:
        text = text.replace(old, new)
    text = " ".join(wordpunct_tokenize(text))
    for old, new in _AFTER_WORDS:
        text = text.replace(old, new)
    return text.split()


def graph_of(words: Sequence[str], spans: Sequence[Span], relations: Sequence[Relation]) -> Graph:
    """The package's `entities`: numbered in the order of the spans, relations listed with their source.

    A relation from or to a span that is no entity is dropped.
    """
    graph: Graph = {}
    numbers: dict[tuple[int, int], str] = {}
    for number, (start, end, label) in enumerate(spans, start=1):
        numbers[start, end], tokens = str(number), " ".join(words[start : end + 1])
        graph[str(number)] = {"tokens": tokens, "label": label, "start_ix": start, "end_ix": end, "relations": []}
    for first, last, target_first, target_last, kind in relations:
        source, target = numbers.get((first, last)), numbers.get((target_first, target_last))
        if source and target:
            graph[source]["relations"].append([kind, target])
    return graph
