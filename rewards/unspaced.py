"""Scripts written without blanks between words: each of their characters is counted and compared as one word."""

import re

# Thai, Lao, Burmese, Khmer; Chinese, Japanese and Korean with their punctuation and full-width forms. Korean has
# blanks, but particles are part of its words.
CHARACTER = (
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
    "\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]"
)
_CHARACTER = re.compile(CHARACTER)
_WORD = re.compile(r"\w+")


def has_characters(text: str) -> bool:
    """Whether a letter of the text is in such a script."""
    return not text.isascii() and any(character.isalpha() for character in _CHARACTER.findall(text))


def set_apart(text: str) -> str:
    """The text with a blank on both sides of each such character; one without such a letter is not changed."""
    return _CHARACTER.sub(r" \g<0> ", text) if has_characters(text) else text


def words(text: str) -> list[str]:
    """Runs of letters and digits, and single characters of these scripts; punctuation is none."""
    return _WORD.findall(set_apart(text))
