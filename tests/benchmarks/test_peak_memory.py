"""Memory at its peak: what work takes shows, what is given back before it does not hide it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from peak_memory import in_fresh_process

SCRIPT = """
import json
import sys
sys.path.insert(0, {folder!r})
from peak_memory import grown

def held(mib):
    return bytearray(mib * 2**20)

earlier = held(200)
del earlier
first = grown(lambda: len(held(64)))
second = grown(lambda: len(held(16)))
print("chatter")
print(json.dumps([first, second, sys.argv[1:]]))
"""


def test_each_piece_of_work_is_told_by_its_own_peak(tmp_path: Path) -> None:
    """64 MiB, then 16 MiB, given back in between, after 200 MiB that were held earlier."""
    script = tmp_path / "work.py"
    script.write_text(SCRIPT.format(folder=str(Path(__file__).parents[2] / "benchmarks")))
    first, second, words = in_fresh_process(str(script), "--size", 3, own=True)
    assert first == [pytest.approx(64, abs=4), 64 * 2**20]
    assert second == [pytest.approx(16, abs=4), 16 * 2**20]
    assert words == ["--size", "3"]


def test_a_process_that_fails_is_no_figure(tmp_path: Path) -> None:
    script = tmp_path / "work.py"
    script.write_text("raise SystemExit(3)")
    with pytest.raises(subprocess.CalledProcessError):
        in_fresh_process(str(script))
