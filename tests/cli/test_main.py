"""The `fedmedseg` command itself: it answers at once, whatever its parts need for their work."""

from __future__ import annotations

import subprocess
import sys

import pytest

HELP = """
import sys
from contextlib import suppress
from fedmedseg.cli.main import app
with suppress(SystemExit):
    app(sys.argv[1:])
heavy = [name for name in ("nvflare", "torch", "monai") if name in sys.modules]
sys.stderr.write("loaded: " + " ".join(heavy))
"""


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], *([name, "--help"] for name in ("resume", "simulate", "predict", "export"))]
)
def test_help_loads_neither_flare_nor_torch(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", HELP, *words], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip(), "it answered"
    assert done.stderr == "loaded: "
