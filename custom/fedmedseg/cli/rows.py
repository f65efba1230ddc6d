"""Tables of the commands: nothing in them is cut off, and what does not fit as a table is told row by row."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

WIDE = 10_000
"""Columns that no table needs."""


class Rows(Table):
    """A table whose cells go on in the next line where they are too long for their column."""

    def __init__(self, *headers: str, **options: Any) -> None:
        super().__init__(**{"box": box.SIMPLE_HEAD, **options})
        for header in headers:
            self.add_column(header)

    def add_column(self, header: Any = "", *args: Any, **options: Any) -> None:
        """As rich's, but for what is done with what is too long."""
        super().add_column(header, *args, **{"overflow": "fold", **options})


def show(console: Console, table: Rows) -> None:
    """Print ``table`` where its longest words fit side by side; elsewhere each row as lines under its first cell."""
    wide = console.options.update(width=WIDE, max_width=WIDE)
    # a path above a table is a line of its own: rich would break it at the table's width
    title, table.title = table.title, None
    if title:
        console.print(title, highlight=False, soft_wrap=True)
    needed = Measurement.get(console, wide, table)
    if needed.minimum <= console.width:
        if needed.maximum > console.width:
            _share_out(table, room=console.width, least=needed.minimum)
        console.print(table)
        return
    if table.caption:
        console.print(table.caption, highlight=False, soft_wrap=True)
    headers = [_text(column.header).plain.replace("\n", " ") for column in table.columns]
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        first, *others = map(_text, cells)
        console.print(first, soft_wrap=True)
        for header, cell in zip(headers[1:], others, strict=True):
            if cell.plain:
                named = Text(f"  {header}: " if header else "  ")
                console.print(named + Text(" / ").join(cell.split("\n")), soft_wrap=True)


def _share_out(table: Rows, *, room: int, least: int) -> None:
    """Give every column its longest word, and what is left of ``room`` to those that need more, alike.

    rich takes from the widest columns whatever words they hold. ``least`` is what the table needs with whole words.
    """
    texts = [[_text(cell).plain for cell in (column.header, *column.cells)] for column in table.columns]
    widths = [max(cell_len(word) for text in column for word in [*text.split(), ""]) for column in texts]
    wanted = [max(cell_len(line) for text in column for line in text.split("\n")) for column in texts]
    left = room - least
    by_need = sorted(range(len(widths)), key=lambda place: wanted[place] - widths[place])
    for done, place in enumerate(by_need):
        more = min(wanted[place] - widths[place], left // (len(widths) - done))
        widths[place], left = widths[place] + more, left - more
    for column, width in zip(table.columns, widths, strict=True):
        column.width = width


def _text(cell: Any) -> Text:
    return Text.from_markup(cell) if isinstance(cell, str) else cell
