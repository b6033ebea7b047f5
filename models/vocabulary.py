"""Tokens that were added to a vocabulary: control tokens, which no text may hold, and words, which are text."""

import re
from typing import Any


def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Id -> name of the tokens that are special or written like one: <tool_call> is not called special. ValueError if a
    special token is none of the tokenizer's."""
    special = set(tokenizer.all_special_ids)
    if None in special:
        raise ValueError(f"a special token without an id among {tokenizer.special_tokens_map}")
    added = tokenizer.added_tokens_decoder
    special |= {index for index, token in added.items() if token.special or re.fullmatch("<.+>", str(token))}
    return {index: tokenizer.convert_ids_to_tokens(index) for index in sorted(special)}


class TextEncoder:
    """Text -> token ids: added words are tokens, the name of a control token is only text."""

    def __init__(self, tokenizer: Any) -> None:
        # The tokenizer's steps without its own search for added tokens, which split_special_tokens skips only in part.
        self._steps = tokenizer.backend_tokenizer
        control = control_tokens(tokenizer)
        words = {self._normal(str(t)): (i, t) for i, t in tokenizer.added_tokens_decoder.items() if i not in control}
        self._ids = {word: index for word, (index, _) in words.items()}
        longest_first = sorted(words, key=len, reverse=True)
        self._words = re.compile("|".join(_pattern(word, words[word][1]) for word in longest_first))

    def __call__(self, text: str) -> list[int]:
        text, ids, end = self._normal(text), [], 0
        for match in self._words.finditer(text) if self._ids else ():
            ids += [*self._split(text[end : match.start()]), self._ids.get(match[0]) or self._ids[match[0].strip()]]
            end = match.end()
        return ids + self._split(text[end:])

    def _normal(self, text: str) -> str:
        normalizer = self._steps.normalizer
        return normalizer.normalize_str(text) if normalizer else text

    def _split(self, text: str) -> list[int]:
        words = self._steps.pre_tokenizer.pre_tokenize_str(text)
        return [token.id for word, _ in words for token in self._steps.model.tokenize(word)]


def _pattern(word: str, token: Any) -> str:
    """What the tokenizer takes for an added word: as part of a longer one too, and with blanks, as its token says."""
    pattern = re.escape(word)
    if token.single_word:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return r"\s*" * token.lstrip + pattern + r"\s*" * token.rstrip
