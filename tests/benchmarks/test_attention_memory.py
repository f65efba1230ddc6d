"""The measurement of attention's memory, at a size that takes no time: both ways agree, and the scores show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "attention_memory.py"


def test_explicit_scores_take_their_memory_and_the_fused_kernel_does_not(tmp_path: Path) -> None:
    """1,600 tokens: a map of scores is 9.8 MiB, and two maps are kept for the backward pass."""
    out = tmp_path / "found.json"
    call = [sys.executable, str(SCRIPT), "--size", "16", "80", "80", "--width", "2", "--out", str(out)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())["transformer"]
    assert (found["size"], found["tokens"]) == ([16, 80, 80], 1600)
    score = 4 * 1600**2 / 2**20
    assert found["explicit"]["peak_mib"] - found["fused"]["peak_mib"] > 2 * score
    assert found["ratio"] == found["explicit"]["peak_mib"] / found["fused"]["peak_mib"]
    assert f"{found['ratio']:.2f} times" in done.stdout
