"""Does a text deny a finding that it, or another text, is certain of?"""

import re
from collections.abc import Iterable
from functools import lru_cache

from radflow.rewards.rules.acuity import names, searches
from radflow.rewards.types import Finding

_WORDS = re.compile(r"[a-z]+")


def denies_what_is_certain(asserted: Iterable[Finding], denied: Iterable[Finding]) -> bool:
    """One finding is certain in the first and denied without any reservation in the second."""
    denials = {one for one in denied if one.value == 0}
    certain = _Certain(asserted) if denials else None
    return any(certain.is_denied_by(denial) for denial in denials) if certain else False


class _Certain:
    """What a text is certain of, all compared with a denial at once: sets of findings are integers, a bit for each."""

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.having: dict[tuple[str, object], int] = {}  # (field, value) -> those that have it
        for number, one in enumerate({one for one in findings if one.value == 1}):
            fields: dict[str, Iterable[object]] = {
                "name": [one.name],
                "mention": [one.mention],
                "word": _words(one.piece),
            }
            fields |= {"sides": one.sides, "regions": one.regions, "grades": one.grades}
            for trait in ((field, value) for field, values in fields.items() for value in values):
                self.having[trait] = self.having.get(trait, 0) | 1 << number

    def is_denied_by(self, denial: Finding) -> bool:
        """The denial is of the same thing, where it may be the same, with no qualifier that the assertion lacks."""
        same = self._any("name", [denial.name])
        for field in ("sides", "regions", "grades"):
            values = getattr(denial, field)
            same &= self._any(field, values) if values else same
        if same and denial.name in names("many_forms") and not searches("words.generic", denial.mention):
            same &= self._form(denial.mention.split()[-1][:5])
        for word in _words(denial.piece) - _words(denial.mention) if same else ():
            same &= same if searches("words.plain", word) else self._any("word", [word])
        return bool(same) and not _is_reserved(denial.sentence, denial.mention)

    def _any(self, field: str, values: Iterable[object]) -> int:
        found = 0
        for value in values:
            found |= self.having.get((field, value), 0)
        return found

    def _form(self, stem: str) -> int:
        """Those whose words for the finding hold this."""
        if ("form", stem) not in self.having:
            mentions = [value for field, value in self.having if field == "mention" and stem in str(value)]
            self.having["form", stem] = self._any("mention", mentions)
        return self.having["form", stem]


@lru_cache(maxsize=256)
def _words(text: str) -> frozenset[str]:
    return frozenset(_WORDS.findall(text))


@lru_cache(maxsize=256)
def _is_reserved(sentence: str, mention: str) -> bool:
    """What is denied is another one, or one elsewhere."""
    return searches("words.reserved", sentence[: sentence.lower().find(mention)])
