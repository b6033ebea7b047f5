"""Text of reports as the rules read it."""

from collections.abc import Callable

from radflow.rewards.memory import remember
from radflow.rewards.types import Parser


def tidy(text: str) -> str:
    """Single spaces, no spaces around line ends, at most one empty line at a time.

    Patterns that skip white space themselves would take quadratic time on a text of nothing but line ends.
    """
    lines = [" ".join(line.split()) for line in text.splitlines()]
    kept = [line for number, line in enumerate(lines) if line or (number and lines[number - 1])]
    return "\n".join(kept)


def describe_with(parse: Parser) -> Callable[[str], str]:
    """Report, or one of its sections -> the text that describes the examination; remembers what it was asked."""
    return remember(lambda text: parse(text).described)
