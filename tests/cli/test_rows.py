"""Tables of the commands say everything in any width."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from fedmedseg.cli.rows import Rows, show

FILE = "images/hippocampus_003_of_the_second_visit.nii.gz"


def said(table: Rows, width: int) -> str:
    console = Console(file=StringIO(), width=width)
    show(console, table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    return str(text)


def faults() -> Rows:
    table = Rows("file", "reason", "volumes\nset aside", title="set aside")
    table.add_row(FILE, "file of the label: not a [b]NIfTI[/b] file, or one that ends too early", "1")
    table.add_row("scan.nii", "", "2")
    return table


def test_a_table_that_fits_is_a_table() -> None:
    text = said(faults(), 120)
    (line,) = [line for line in text.splitlines() if FILE in line]
    assert line.split()[-1] == "1"
    assert "not a NIfTI file" in line


@pytest.mark.parametrize("width", [78, 85, 100])
def test_long_sentences_are_folded_and_words_stay_whole(width: int) -> None:
    text = said(faults(), width)
    assert max(map(len, text.splitlines())) <= width
    (line,) = [line for line in text.splitlines() if FILE in line]
    assert line.split()[1:3] == ["file", "of"]
    words = text.split()
    for word in ("NIfTI", "early", "volumes", "aside", "scan.nii"):
        assert word in words


@pytest.mark.parametrize("width", [20, 40])
def test_where_the_longest_words_do_not_fit_every_row_has_a_line_for_each_cell(width: int) -> None:
    assert said(faults(), width).splitlines() == [
        "set aside",
        FILE,
        "  reason: file of the label: not a NIfTI file, or one that ends too early",
        "  volumes set aside: 1",
        "scan.nii",
        "  volumes set aside: 2",
    ]
