"""The two ends of RadGraph that need no network: text to words, and spans with relations to a graph."""

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

RadGraphModel = Literal["radgraph", "radgraph-xl", "modern-radgraph-xl", "echograph"]
Graph = dict[str, dict[str, Any]]  # "1", "2", ... -> tokens, label, start_ix, end_ix, relations [[type, id], ...]
Span = tuple[int, int, str]  # first word, last word, label
Relation = tuple[int, int, int, int, str]  # first and last word of the source, of the target, type

# What the xl models were trained on, before and after the words are cut; the backslashes are written-out escapes.
_BEFORE_WORDS = (("\\n", "  "), ("\\f", "  "), ("\\u2122", "      "), ("\n", " "), ('\\"', "``"))
_AFTER_WORDS = ((").", ") ."), ("%.", "% ."), (".'", ". '"), ("%,", "% ,"), ("%)", "% )"))
_V1_MARKS = re.compile(r"([/,:.!?()])")


def tokenise(text: str, model: RadGraphModel) -> list[str]:
    """Words of a report, as the package cuts them for this model; none for a text of white space only.

    v1 splits off / , : . ! ? ( ) and nothing else: the hyphen in the package's pattern is a range of one character.
    The others cut at every change between letters and marks. echograph has a rule of its own in the package that can
    never be reached, so that it, too, is run with the xl words.
    """
    if model == "radgraph":
        return _V1_MARKS.sub(r" \1 ", text).split()
    for old, new in _BEFORE_WORDS:
        text = text.replace(old, new)
    text = " ".join(_wordpunct()(text))
    for old, new in _AFTER_WORDS:
        text = text.replace(old, new)
    return text.split()


@cache
def _wordpunct() -> Callable[[str], list[str]]:
    # Loaded when first used: nltk takes a while to import.
    from nltk.tokenize import wordpunct_tokenize

    return wordpunct_tokenize


def graph_of(words: Sequence[str], spans: Sequence[Span], relations: Sequence[Relation]) -> Graph:
    """The package's `entities`: numbered in the order of the spans, relations listed with their source.

    A relation from or to a span that is no entity is dropped.
    """
    numbers = {(start, end): str(number) for number, (start, end, _) in enumerate(spans, start=1)}
    graph = {
        str(number): {
            "tokens": " ".join(words[start : end + 1]),
            "label": label,
            "start_ix": start,
            "end_ix": end,
            "relations": [],
        }
        for number, (start, end, label) in enumerate(spans, start=1)
    }
    for first, last, target_first, target_last, kind in relations:
        source, target = numbers.get((first, last)), numbers.get((target_first, target_last))
        if source and target:
            graph[source]["relations"].append([kind, target])
    return graph
