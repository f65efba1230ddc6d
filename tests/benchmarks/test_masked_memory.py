"""Memory of the student's step, at the smallest size: with the visible tokens alone it is less than with all."""

from __future__ import annotations

import json
from pathlib import Path

import goals
import masked_memory
import pytest


def test_dropped_tokens_take_no_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    masked_memory.main(["--width", "64", "--edges", "6", "--out", str(out)])
    one = json.loads(out.read_text())["tokens"]["216 tokens"]
    assert one["ratio"] == one["mib"]["drop"] / one["mib"]["replace"]
    assert 0.0 < one["ratio"] < 0.9
    assert f"{one['ratio']:.2f} of it" in capsys.readouterr().out
    (figure,) = goals.masked_memory(out)
    assert (figure.value, figure.goal, figure.side) == (one["ratio"], 0.6, "most")
