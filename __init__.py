"""RadFlow. `from radflow import score, compare` scores lists of reports and compares systems (docs/evaluate.md)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from radflow.evaluation.texts import compare, score

__all__ = ["compare", "score"]
INSTALL = "pip install 'radflow[score]'"


def __getattr__(name: str) -> object:
    # Loaded when asked for: importing a package of radflow must not load the scorer.
    if name not in __all__:
        raise AttributeError(f"module 'radflow' has no attribute {name!r}")
    try:
        return getattr(import_module("radflow.evaluation.texts"), name)
    except ModuleNotFoundError as error:
        raise ImportError(f"radflow.{name} needs {error.name}, which is not installed: {INSTALL}") from error
