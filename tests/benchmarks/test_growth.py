"""What hundreds of sites would ask of the server: lines through measured points, and arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import growth
import pytest
from growth import Measured, measured, planned

LINE = Measured(megabytes=250.0, most_sites=8, base=300.0, own=2.0, models=0.1, seconds=0.004)


def cell(folder: Path, sites: int, megabytes: float, seconds: float, memory: float, where: str = "deployed") -> None:
    content = {"sites": sites, "megabytes": megabytes, "round": {"median_s": seconds}, "server_megabytes": memory}
    (folder / f"{where}-{sites}-sites-{megabytes:g}-mb.json").write_text(json.dumps(content))


def test_lines_go_through_the_deployed_federations_of_the_largest_model(tmp_path: Path) -> None:
    """By hand: from 2 to 4 sites 50 MB and 2 s more are 25 MB and 1 s a site, of 250 MB 0.1 models and 0.004 s a MB.

    Without a site the server has 1000 MB, of which it has 400 with a model of 1 MB, too: 600 of 250 are 2.4 models.
    """
    cell(tmp_path, 2, 250, 4.0, 1050.0)
    cell(tmp_path, 4, 250, 6.0, 1100.0)
    cell(tmp_path, 2, 1, 0.5, 400.0)
    cell(tmp_path, 4, 1, 0.6, 400.0)
    cell(tmp_path, 2, 300, 9.0, 9000.0)
    cell(tmp_path, 8, 250, 99.0, 9999.0, where="simulator")
    line = measured(tmp_path)
    assert (line.megabytes, line.most_sites) == (250, 4)
    assert (line.base, line.own, line.models, line.seconds) == pytest.approx((400.0, 2.4, 0.1, 0.004))


def test_one_federation_draws_no_line(tmp_path: Path) -> None:
    cell(tmp_path, 2, 250, 4.0, 1050.0)
    with pytest.raises(ValueError, match=r"no two deployed federations.*scale\.py"):
        measured(tmp_path)


def test_a_round_of_a_hundred_sites_is_worked_out() -> None:
    """By hand: 100 sites of 250 MB are 25 GB, half of it up, 300 Gbit in all; 12 models and 0.3 GB are 3.3 GB."""
    plan = planned(100, 250.0, share=(1.0, 0.5), gigabits=10.0, line=LINE)
    assert (plan.sent, plan.received, plan.wire) == pytest.approx((25.0, 12.5, 30.0))
    assert (plan.work, plan.memory) == pytest.approx((100.0, 3.3))


def test_transports_are_those_that_were_measured() -> None:
    shares = growth.shares()
    assert shares["fp32"] == (1.0, 1.0)
    assert all(0.4 < one < 0.51 for one in shares["fp16"])
    assert all(0.2 < one < 0.26 for one in shares["int8"])


def test_the_command_prints_a_line_for_each_size_number_and_transport(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell(tmp_path, 2, 250, 4.0, 1050.0)
    cell(tmp_path, 4, 250, 6.0, 1100.0)
    growth.main(["--sites", "10", "100", "--megabytes", "250", "--scale", str(tmp_path)])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "Lines through 250 MB, up to 4 sites: 0.100 models of memory and 1.00 s a further site."
    assert len(said) == 4 + 2 * 3
    assert said[4] == "| 250 | 10 | fp32 | 2.5 | 2.5 | 40.0 | 10.0 | 1.2 |"


@pytest.mark.parametrize("words", [["--sites", "0"], ["--gigabits", "-1"], ["--megabytes", "0"]])
def test_nothing_and_less_is_refused(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        growth.parsed(words)
