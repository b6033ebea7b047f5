"""Abbreviations and misspelt words of reports, read as the words they stand for (lexicons/spelling.toml)."""

import re
from bisect import bisect_right
from functools import cache

from radflow.rewards.memory import remember
from radflow.rewards.rules.patterns import read_patterns

_WORD = re.compile(r"[A-Za-z]+(?:/[A-Za-z\d]*)?")
_SHORTEST = 6  # letters; shorter words have too many neighbours


@remember
def mend(sentence: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The sentence in known words, and where each mended word ends in it and in the original (`original_position`)."""
    pieces: list[str] = []
    ends, cursor, length = [(0, 0)], 0, 0
    for match in _WORD.finditer(sentence):
        word = mended_word(match.group())
        if word != match.group():
            pieces += sentence[cursor : match.start()], word
            length += match.start() - cursor + len(word)
            cursor = match.end()
            ends.append((length, cursor))
    return ("".join(pieces) + sentence[cursor:], tuple(ends)) if pieces else (sentence, ())


def original_position(position: int, ends: tuple[tuple[int, int], ...]) -> int:
    """Where in the original sentence a position of the mended one is; inside a mended word, to within that word."""
    number = bisect_right(ends, (position, 1 << 30))
    mended, original = ends[number - 1]
    return min(original + position - mended, *(end for _, end in ends[number : number + 1]), 1 << 30)


@remember
def mended_word(word: str) -> str:
    """What a word stands for: the long form of an abbreviation, the known word that it is a slip or two away from.

    A slip is a letter left out, added, replaced, or swapped with its neighbour; lexicons/spelling.toml says which words
    may have two. A word with several known neighbours stays as it is, and so does a real one.
    """
    table, low = _table(), word.lower()
    if low in table.long_forms:
        return table.long_forms[low]
    if len(low) < _SHORTEST or low in table.real or "/" in low:
        return word
    for slips, by_part in enumerate(table.by_part, start=1):
        if len(low) > table.longest + slips:  # no neighbours, and its parts without two letters would fill the memory
            break
        near = {known for part in _shortened(low, slips) for known in by_part.get(part, ())}
        within = [known for known in near if _slips(low, known) <= slips]
        if within:
            return within[0] if len(within) == 1 else word
    return word


class _Table:
    """The words of lexicons/spelling.toml, and the known ones by what is left of them without a letter or two."""

    def __init__(self) -> None:
        content = read_patterns("spelling").content
        self.long_forms: dict[str, str] = content["abbreviations"]
        words: list[list[str]] = [content["known"]["one_slip"], content["known"]["two_slips"]]
        self.real = {*content["real"]["words"], *words[0], *words[1]}
        self.longest = max(map(len, words[0] + words[1]))
        self.by_part: list[dict[str, set[str]]] = [{}, {}]
        for slips, known in ((1, words[0] + words[1]), (2, words[1])):
            for word in known:
                for part in _shortened(word, slips):
                    self.by_part[slips - 1].setdefault(part, set()).add(word)


_table = cache(_Table)


def _shortened(word: str, times: int) -> set[str]:
    """The word, and what is left of it without up to so many letters."""
    parts = {word}
    for _ in range(times):
        parts |= {part[:i] + part[i + 1 :] for part in parts for i in range(len(part))}
    return parts


def _slips(first: str, second: str) -> int:
    """Letters left out, added, replaced, or swapped with the next, that make one word the other."""
    before: list[int] = []
    row = [*range(len(second) + 1)]
    for i, letter in enumerate(first, start=1):
        above, before, row = before, row, [i]
        for j, other in enumerate(second, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other)))
            if i > 1 and j > 1 and letter == second[j - 2] and other == first[i - 2]:
                row[j] = min(row[j], above[j - 2] + 1)
    return row[-1]
