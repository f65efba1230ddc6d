"""Names and figures as lines of plain text: columns where there is room for them, else figures under their name."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from fedmedseg.reporting.tables import short

_CELL = 12
_LEAST_NAME, _MOST_NAME = 24, 40


class TextColumns:
    """Lines of one table: a name, and a figure for each of ``headers``, in lines of at most ``width`` characters.

    Where they fit, figures stand in columns of 12 characters beside a name of 24 to 40; in a narrower terminal each
    name has its figures under it, with the words of their columns.
    """

    def __init__(self, headers: Sequence[str], width: int) -> None:
        self.headers, self.width = list(headers), width
        self._name = min(_MOST_NAME, width - _CELL * len(self.headers))

    @property
    def abreast(self) -> bool:
        """Whether figures stand in columns."""
        return self._name >= _LEAST_NAME

    def fit(self, cells: Sequence[str]) -> bool:
        """Whether none of ``cells`` would be cut."""
        return not self.abreast or all(len(cell) < _CELL for cell in cells)

    def head(self, title: str) -> str:
        """The line over all others."""
        if not self.abreast:
            return short(title, self.width)
        return (
            f"{title:<{self._name}}" + "".join(f"{short(one, _CELL - 1):>{_CELL}}" for one in self.headers)
        ).rstrip()

    def lines(self, names: Sequence[str], cells: Sequence[str]) -> list[str]:
        """The lines of one row: ``names``, one or two, and a figure for each header."""
        if not self.abreast:
            told = ", ".join(f"{header} {cell}" for header, cell in zip(self.headers, cells, strict=True))
            figures = textwrap.wrap(
                told, self.width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False
            )
            return [short(" ".join(names), self.width), *figures]
        each = self._name // len(names)
        name = "".join(f"{short(one, each - 1):<{each}}" for one in names)
        return [f"{name:<{self._name}}" + "".join(f"{short(cell, _CELL - 1):>{_CELL}}" for cell in cells)]
