"""Tables as text, Markdown, JSON-able rows and LaTeX: one content, four forms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
})  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; the first column is left-aligned, the others are numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        lines = [self.head, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        shown = ["  ".join(_aligned(line, widths)).rstrip() for line in lines]
        return "\n".join([self.title, "", shown[0], "-" * len(shown[0]), *shown[1:]])

    def markdown(self) -> str:
        lines = [_markdown_line(line) for line in (self.head, *self.rows)]
        lines.insert(1, _markdown_line(["---", *["---:"] * (len(self.head) - 1)]))
        return "\n".join([f"### {self.title}", "", *lines])

    def latex(self) -> str:
        body = [" & ".join(cell.translate(_LATEX) for cell in line) + r" \\" for line in self.rows]
        head = " & ".join(cell.translate(_LATEX) for cell in self.head) + r" \\"
        columns = "l" + "r" * (len(self.head) - 1)
        return "\n".join([
            f"% {self.title}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *body,
            r"\bottomrule", r"\end{tabular}",
        ])  # fmt: skip


def _aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def documents(tables: Sequence[Table], notes: Sequence[str]) -> Mapping[str, str]:
    """File ending -> the whole document."""
    return {
        "txt": "\n\n".join([*(table.text() for table in tables), "\n".join(notes)]) + "\n",
        "md": "\n\n".join([*(table.markdown() for table in tables), "\n".join(f"- {note}" for note in notes)]) + "\n",
        "tex": "\n\n".join([*(table.latex() for table in tables), "\n".join(f"% {note}" for note in notes)]) + "\n",
    }


def number(value: float | None, *, signed: bool = False) -> str:
    """Three decimals; a dash where there is no value, and where a bound does not exist (NaN)."""
    if value is None or value != value:
        return "-"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def bounds(low: float, high: float, *, signed: bool = False) -> str:
    return f"[{number(low, signed=signed)}, {number(high, signed=signed)}]"
