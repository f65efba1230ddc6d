"""Figures of a comparison: drawn for what there is, the same bytes again, every method in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.comparison.conftest import patients

from fedmedseg.comparison.figures import figure_files
from fedmedseg.comparison.study import Comparison
from fedmedseg.comparison.tables import grouped

Read = Callable[[dict[str, Any]], Comparison]
SITES = {"east": patients(0.8, 0.6), "west": patients(0.5, 0.7)}


def test_there_is_a_figure_for_what_there_is_and_no_other(
    content: dict[str, Any], read: Read, left: Callable[..., list[dict[str, Any]]]
) -> None:
    assert figure_files(read(content), {}) == {}
    results = left(content, {("local", "100pc", 1): SITES})
    comparison = read(content)
    names = {"dice", "hd95", "sites"}
    assert set(figure_files(comparison, grouped(comparison, results))) == {
        f"{name}.{kind}" for name in names for kind in ("svg", "png")
    }
    content["labelled"] = {"fractions": [0.5, 1.0]}
    found = {(method, level, 1): SITES for method in ("fedavg", "local") for level in ("50pc", "100pc")}
    results = left(content, found)
    comparison = read(content)
    groups = grouped(comparison, results)
    files = figure_files(comparison, groups)
    assert {name for name in files if name.endswith(".svg")} == {
        f"{name}.svg" for name in (*names, "labels", "megabytes")
    }
    assert all(content.startswith(b"\x89PNG") for name, content in files.items() if name.endswith(".png"))
    assert figure_files(comparison, groups) == files
