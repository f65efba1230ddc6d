"""The benchmark of growth: cells that are kept, the slope of memory, and the smallest federation for real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import scale
from scale import Cell, slope, table


def cell(where: str, sites: int, megabytes: float, memory: float) -> dict[str, Any]:
    return {
        "where": where, "sites": sites, "threads": 2, "megabytes": megabytes, "round": {"median_s": 0.5},
        "job_s": 10.0, "server_megabytes": memory,
    }  # fmt: skip


def test_the_slope_is_in_models_a_site() -> None:
    """Worked out by hand: 100 MB more from 2 to 4 sites and 200 more to 8 are 50 MB a site, a fifth of 250."""
    assert slope([(2, 500.0), (4, 600.0), (8, 800.0)], 250.0) == pytest.approx(0.2)
    assert slope([(2, 500.0), (8, 500.0)], 250.0) == 0.0


def test_the_table_has_a_slope_for_each_size_and_place(tmp_path: Path) -> None:
    for name, content in {
        "a": cell("simulator", 2, 1.4, 400.0),
        "b": cell("deployed", 8, 264.0, 1264.0),
        "c": cell("deployed", 2, 264.0, 736.0),
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    said = table(tmp_path)
    assert [line.split(" | ")[:2] for line in said[2:5]] == [
        ["| deployed", "2"], ["| deployed", "8"], ["| simulator", "2"]
    ]  # fmt: skip
    assert said[5:] == ["deployed, 264 MB: 0.333 models of memory a further site (goal at most 0.1)"]


def test_a_finished_cell_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def measure(self: Cell, **_: object) -> dict[str, Any]:
        ran.append(self.file.stem)
        return cell(self.where, self.sites, float(self.size), 100.0)

    monkeypatch.setattr(Cell, "measure", measure)
    words = ["--where", "simulator", "--sites", "2", "4", "--results", str(tmp_path)]
    scale.main(words)
    scale.main(words)
    assert ran == ["simulator-2-sites-1-mb", "simulator-4-sites-1-mb"]
    scale.main(["--table", "--results", str(tmp_path)])
    assert len(ran) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_smallest_federations(tmp_path: Path) -> None:
    """The server's process is found in both places, and holds torch at least."""
    scale.main(["--sites", "2", "--rounds", "2", "--results", str(tmp_path)])
    found = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("*.json")}
    assert sorted(found) == ["deployed-2-sites-1-mb", "simulator-2-sites-1-mb"]
    assert all(one["server_megabytes"] > 150 for one in found.values())
