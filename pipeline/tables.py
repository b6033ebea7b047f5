"""Tables as text, Markdown and LaTeX: one content, three forms; and rows as CSV."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from radflow.data.readers.tables import escape_control

_NAMED = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX = str.maketrans({character: f"\\{character}" for character in "&%$#_{}"} | _NAMED)


@dataclass(frozen=True)
class Table:
    """Cells as they are shown, with escapes; the first column is left-aligned, the others are numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def _lines(self) -> list[list[str]]:
        """Head and rows. An id or a name may hold what steers a terminal, or a line end."""
        return [[escape_control(cell) for cell in line] for line in (self.head, *self.rows)]

    def text(self) -> str:
        lines = self._lines
        first, *widths = _widths(lines)
        shown = []
        for name, *cells in lines:
            padded = [name.ljust(first), *(cell.rjust(w) for cell, w in zip(cells, widths, strict=True))]
            shown.append("  ".join(padded).rstrip())
        return "\n".join([self.title, "", shown[0], "-" * len(shown[0]), *shown[1:]])

    def markdown(self) -> str:
        """The rows alone, aligned: readable on a terminal too."""
        lines = [[cell.replace("|", r"\|") for cell in line] for line in self._lines]
        widths = _widths(lines)
        shown = [" | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines]
        shown.insert(1, "-|-".join("-" * w for w in widths))
        return "\n".join(f"| {line} |" for line in shown)

    def latex(self) -> str:
        head, *body = (" & ".join(cell.translate(_LATEX) for cell in line) + r" \\" for line in self._lines)
        begin = [f"% {self.title}", rf"\begin{{tabular}}{{l{'r' * (len(self.head) - 1)}}}", r"\toprule", head]
        return "\n".join([*begin, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def documents(tables: Sequence[Table], notes: Sequence[str]) -> Mapping[str, str]:
    """File ending -> the whole document."""
    notes = [escape_control(note) for note in notes]
    pages = {
        "txt": [*(table.text() for table in tables), "\n".join(notes)],
        "md": [*(f"### {t.title}\n\n{t.markdown()}" for t in tables), "\n".join(f"- {note}" for note in notes)],
        "tex": [*(table.latex() for table in tables), "\n".join(f"% {note}" for note in notes)],
    }
    return {ending: "\n\n".join(parts) + "\n" for ending, parts in pages.items()}


def csv_document(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as CSV, its first line the columns; other keys of a row are left out.

    A text that a spreadsheet would run as a formula (it begins with = + - @ or white space, and is no number) gets an
    apostrophe before it, and so does one that begins with apostrophes and then these. Without the first apostrophe of
    such a cell all texts are as they were; programs find them so in the JSON files next to it.
    Source: OWASP, CSV injection.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_harmless, columns))
    writer.writerows([_harmless(row.get(column)) for column in columns] for row in rows)
    return file.getvalue()


def _harmless(cell: object) -> object:
    risky = isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if risky else cell


_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def with_direction(label: str, better: str) -> str:
    """The label of a metric, which says so if lower is better."""
    return label if better == "higher" else f"{label} (lower is better)"


def number(value: float | None, *, signed: bool = False) -> str:
    """Three decimals; a dash if there is no value, or if a bound does not exist (NaN)."""
    if value is None or value != value:
        return "-"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def bounds(low: float, high: float, *, signed: bool = False) -> str:
    return f"[{number(low, signed=signed)}, {number(high, signed=signed)}]"
