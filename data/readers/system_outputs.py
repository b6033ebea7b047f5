"""What a published system's own code writes, where it is a form of its own: RadFM's table (docs/baselines.md)."""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

RADFM_TRUTH, RADFM_WRITTEN = "ground truth", "pred"  # columns of src/test.py, in lower case
RADFM_COLUMNS = {"question", RADFM_TRUTH, RADFM_WRITTEN}
STUDY = "study "  # `radflow inputs` writes it before an id where RadFM expects the reference


def radfm_entries(cells: Mapping[str, str], row: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(id, entry) of each report in a row of RadFM's output.

    A cell is a list of texts as Python writes it, one per study of the batch. The table names no study, and its rows
    are shuffled: "Ground Truth", which the model never sees, repeats what the input table held, either the id of the
    study or the text of its reference. Reports of the second kind are named by their row.

    Raises ValueError if a cell is something else.
    """
    truths, written = (_texts(cells[column], column) for column in (RADFM_TRUTH, RADFM_WRITTEN))
    if len(truths) != len(written):
        raise ValueError(f"expected a prediction per reference, got {len(written)} for {len(truths)}")
    for index, (truth, text) in enumerate(zip(truths, written, strict=True), 1):
        if truth.startswith(STUDY):
            yield truth.removeprefix(STUDY), {"prediction": text}
        else:
            number = f"{row}" if len(truths) == 1 else f"{row}.{index}"
            yield f"row {number}", {"prediction": text, "report": truth}


def _texts(cell: str, column: str) -> list[str]:
    try:
        texts = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"column {column!r}: expected a list as RadFM writes it, ['No effusion.'], got {cell:.80}")
    return texts
