"""Text of reports as the rules read it."""


def tidy(text: str) -> str:
    """Single spaces, no spaces around line ends, at most one empty line at a time.

    Patterns that skip white space themselves would take quadratic time on a text of nothing but line ends.
    """
    lines = [" ".join(line.split()) for line in text.splitlines()]
    kept = [line for number, line in enumerate(lines) if line or (number and lines[number - 1])]
    return "\n".join(kept)
