"""What holds for every test."""

from __future__ import annotations

import os

# Workers of pytest-xdist name a width of the screen, which the console would keep; tests name theirs per call.
os.environ.pop("COLUMNS", None)
