"""The measurement of the wire: the shares it prints are those of the replies, and below the goals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "wire.py"


def test_it_prints_the_share_of_every_transport(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())["unet"]
    assert 19 < found["megabytes"] < 20
    for transport, most in (("fp16", 0.51), ("int8", 0.26), ("topk", 0.02)):
        assert 0.5 * most < found[transport]["share"] <= most
        assert f"{transport}: {found[transport]['share']:.4f} of dense" in done.stdout
