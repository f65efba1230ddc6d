"""Names and figures as plain text in terminals of any width."""

from __future__ import annotations

import pytest

from fedmedseg.reporting.text_columns import TextColumns

HEADERS = ["personal", "local"]


def test_where_there_is_room_figures_stand_under_their_header() -> None:
    columns = TextColumns(HEADERS, 96)
    assert columns.abreast
    assert columns.head("Dice") == "Dice" + " " * 40 + "personal" + " " * 7 + "local"
    (line,) = columns.lines(["site-1", "liver"], ["0.860", "-"])
    assert line == "site-1" + " " * 14 + "liver" + " " * 15 + "       0.860" + "           -"


def test_the_name_gives_up_room_first() -> None:
    columns = TextColumns(HEADERS, 50)
    assert columns.abreast
    (line,) = columns.lines(["a hospital with a long name"], ["0.860", "0.700"])
    assert line == "a hospital with a long..." + " " * 8 + "0.860" + " " * 7 + "0.700"
    assert len(line) == 50


def test_what_is_longer_than_a_column_is_known_before_it_is_cut() -> None:
    assert TextColumns(HEADERS, 96).fit(["hospital-01", "-"])
    assert not TextColumns(HEADERS, 96).fit(["hospital-012", "-"])
    assert TextColumns(HEADERS, 24).fit(["hospital-012", "-"]), "there it is broken, not cut"


def test_in_a_narrow_terminal_figures_follow_their_name() -> None:
    columns = TextColumns(HEADERS, 24)
    assert not columns.abreast
    assert columns.head("Dice") == "Dice"
    assert columns.lines(["site-1", "liver"], ["0.860", "0.700"]) == [
        "site-1 liver",
        "  personal 0.860, local",
        "  0.700",
    ]


@pytest.mark.parametrize("width", [20, 24, 47, 48, 96])
def test_no_line_is_wider_than_asked(width: int) -> None:
    columns = TextColumns(HEADERS, width)
    lines = [columns.head("Dice"), *columns.lines(["a" * 60, "b" * 60], ["0.123456789012345", "-"])]
    assert max(map(len, lines)) <= width
