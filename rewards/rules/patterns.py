"""Regular expressions of the TOML files in lexicons/, checked when they are read."""

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

LEXICONS = Path(__file__).parent / "lexicons"
# `<name>` but not that of a named group or of a lookbehind
_PART = re.compile(r"(?<!\?P)<(\w+)>")


class PatternFile:
    """A TOML file of regular expressions.

    In an expression, `<name>` is the entry of that name in the table `parts`: an expression, or a list of alternatives.
    A part may use those above it. A ValueError names the file and the entry that is wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: expected TOML, got: {error}") from error
        self._parts: dict[str, str] = {}
        for name, value in self.content.get("parts", {}).items():
            expressions, form = ([value], "{}") if isinstance(value, str) else (value, "(?:{})")
            self._parts[name] = self.compile(expressions, f"parts.{name}", form).pattern

    def compile(self, expressions: object, entry: str, form: str = "{}") -> re.Pattern[str]:
        """Compile a list of alternatives to one pattern that ignores case.

        Args:
            entry: where they are in the file, for errors.
            form: the pattern, with {} for the alternatives.
        """
        listed = expressions if isinstance(expressions, list) else []
        if not listed or not all(isinstance(expression, str) and expression for expression in listed):
            raise ValueError(f"{self.path}: {entry}: expected a list of regular expressions, got {expressions!r}")
        expanded = [self._expand(expression, entry) for expression in listed]
        for expression, text in zip(listed, expanded, strict=True):
            try:
                re.compile(text)
            except re.error as error:
                message = f"{self.path}: {entry}: expected a regular expression, got {expression!r}: {error}"
                raise ValueError(message) from error
        return re.compile(form.format("|".join(expanded)), re.IGNORECASE)

    def _expand(self, expression: str, entry: str) -> str:
        for name in _PART.findall(expression):
            if name not in self._parts:
                raise ValueError(f"{self.path}: {entry}: expected <{name}> among parts above it, got {[*self._parts]}")
        return _PART.sub(lambda match: self._parts[match[1]], expression)


@cache
def read_patterns(name: str) -> PatternFile:
    """The file of that name, without its ending, in lexicons/."""
    return PatternFile(LEXICONS / f"{name}.toml")
