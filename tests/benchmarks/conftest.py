"""Studies are quiet in this process while they run; other tests hear the package as before."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _level_as_it_was() -> Iterator[None]:
    package = logging.getLogger("fedmedseg")
    level = package.level
    yield
    package.setLevel(level)
