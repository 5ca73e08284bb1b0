"""Tables of text: Markdown in commands, HTML in the report."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        head: The names of the columns.
        rows: The cells.
        numeric: The columns of numbers, which are right-aligned.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Collection[int] = ()

    def markdown(self) -> str:
        """Returns the table in Markdown, without a final line break.

        Example:
            >>> print(Table(["preset", "layers"], [["mlp", "2"]], numeric=[1]).markdown())
            | preset | layers |
            | --- | ---: |
            | mlp | 2 |
        """
        rule = ["---:" if column in self.numeric else "---" for column in range(len(self.head))]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in (self.head, rule, *self.rows))
