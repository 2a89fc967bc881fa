"""Tables that fit a narrow terminal: no number is cut, no column is left out.

Where a table is too wide, what follows a number (its error, what could not be scored) goes below it and names are
folded; where that is not enough, the columns are shown in several parts, each with the names in front.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from unlearn_eval.utils.terminal import styled

_LEAST_NAME = 14  # characters that a folded name keeps
_GAP = 2  # between columns, and at the end of a row: rich's padding of a table without borders
_BREAKS = re.compile(r" (?=±|\(\+|\[)")


class FittedTable(Table):
    """A table whose first `n_names` columns are names, which may be folded; the others hold numbers or short words."""

    n_names: int = 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:  # type: ignore[override]
        """The table as it is where it fits, else narrower, else in parts."""
        room = options.max_width
        cells = [[*([column.header] if self.show_header else []), *column.cells] for column in self.columns]
        if sum(map(_widest, cells)) + _GAP * len(cells) <= room:
            yield from super().__rich_console__(console, options)
            return
        narrow = [column if i < self.n_names else [_broken(cell) for cell in column] for i, column in enumerate(cells)]
        names = range(min(self.n_names, len(cells)))
        names_width = sum(min(_widest(cells[i]), _LEAST_NAME) + _GAP for i in names)
        part: list[int] = []
        taken = names_width
        for i in range(len(names), len(cells)):
            width = _widest(narrow[i]) + _GAP
            if part and taken + width > room:
                yield self._part([*names, *part], narrow)
                part, taken = [], names_width
            part.append(i)
            taken += width
        yield self._part([*names, *part], narrow)

    def _part(self, chosen: Sequence[int], cells: Sequence[Sequence[Any]]) -> Table:
        made = Table(
            title=self.title,
            title_justify=self.title_justify,
            title_style=self.title_style,
            box=self.box,
            pad_edge=self.pad_edge,
            show_header=self.show_header,
        )
        for i in chosen:
            is_name = i < self.n_names
            made.add_column(
                cells[i][0] if self.show_header else "",
                justify=self.columns[i].justify,
                no_wrap=not is_name,
                overflow="fold",
                min_width=None if is_name else _widest(cells[i]),
            )
        body = [cells[i][1:] if self.show_header else cells[i] for i in chosen]
        for row, values in zip(self.rows, zip(*body, strict=True), strict=True):
            made.add_row(*values, end_section=row.end_section)
        return made


def _text(cell: Any) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def _widest(cells: Sequence[Any]) -> int:
    return max((cell_len(line) for cell in cells for line in _text(cell).split("\n")), default=0)


def _broken(cell: Any) -> Any:
    """A cell with what follows its number below it; words of several parts one below the other."""
    text = _text(cell)
    made = _BREAKS.sub("\n", text) if any(c.isdigit() for c in text) else text.replace(" ", "\n")
    return styled(made, str(cell.style), justify=cell.justify) if isinstance(cell, Text) else made
