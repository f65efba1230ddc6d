"""Studies are quiet in this process while they run; other tests hear the package as before."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# scripts that import one another, as they find themselves when they are called
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(autouse=True)
def _level_as_it_was() -> Iterator[None]:
    package = logging.getLogger("fedmedseg")
    level = package.level
    yield
    package.setLevel(level)
