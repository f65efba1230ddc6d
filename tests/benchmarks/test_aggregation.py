"""The measurement of the server's arithmetic, at a size that takes no time: results are equal, figures are there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "aggregation.py"


def test_it_prints_a_share_of_copying_and_a_multiple_of_sorting(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    call = [sys.executable, str(SCRIPT), "--sites", "3", "--megabytes", "4", "--repeats", "2", "--out", str(out)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(out.read_text())["results"]
    assert set(found["of_copying"]) == {"mean", "mean with every check", "trimmed mean", "median"}
    assert all(share > 0.0 for share in found["of_copying"].values())
    # sorting three numbers at each of a million places is an order of magnitude slower on any machine
    assert all(times > 4.0 for times in found["times_sorting"].values())
    assert f"{found['times_sorting']['median']:.1f} times as fast as by sorting" in done.stdout
