"""A reward function of the user's, by its dotted path."""

import importlib
import math
import re
from collections.abc import Callable, Sequence

Function = Callable[[Sequence[str], Sequence[str]], Sequence[float | None]]
_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Plugin:
    """Calls f(candidates, references) with the whole texts as written; one finite number or None for each report.

    None means that the value could not be computed (not that it is bad). The part is named after the function.
    """

    def __init__(self, path: str, function: Function) -> None:
        self.path, self.function, self.name = path, function, name_of(path)

    @classmethod
    def load(cls, path: str) -> "Plugin":
        """From `module:function`; the module must be importable, in the reward's worker processes too.

        Raises:
            ValueError: no such module, or no such function in it.
        """
        name_of(path)
        module, _, attribute = path.partition(":")
        try:
            function = getattr(importlib.import_module(module), attribute, None)
        except ModuleNotFoundError as error:
            raise ValueError(f"reward.plugin {path}: {error}; put its folder on PYTHONPATH") from error
        if not callable(function):
            raise ValueError(f"reward.plugin {path}: expected a function {attribute} in {module}, got {function!r}")
        return cls(path, function)

    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> list[float | None]:
        values = list(self.function(candidates, references))
        if len(values) != len(candidates):
            raise ValueError(f"reward.plugin {self.path}: expected {len(candidates)} values, got {len(values)}")
        for value in values:
            if value is not None and not math.isfinite(value):
                raise ValueError(f"reward.plugin {self.path}: expected finite numbers or None, got {value}")
        return [None if value is None else float(value) for value in values]


def name_of(path: str) -> str:
    """The function's name, which names the part.

    Raises:
        ValueError: not of the form module:function.
    """
    if not _PATH.fullmatch(path):
        raise ValueError(f"expected reward.plugin as module:function, got {path!r}")
    return path.rpartition(":")[2]
