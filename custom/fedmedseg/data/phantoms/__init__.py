"""Phantoms: synthetic volumes with true geometry that stand in for hospitals in the simulator and in tests."""

from fedmedseg.data.phantoms.writer import write_site

__all__ = ["write_site"]
