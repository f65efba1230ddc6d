"""What benchmarks that run on a GPU too have in common: their devices, and where each device's result lies."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
DEVICES = ("cpu", "cuda")


def result_of(given: argparse.Namespace, name: str) -> Path:
    """The file that benchmark ``name`` writes: --out, or one for each --device.

    Raises:
        SystemExit: a GPU that is not there.
    """
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: this machine has no GPU that torch can use")
    out: Path | None = given.out
    return out or RESULTS / f"{name}{'_cuda' if given.device == 'cuda' else ''}.json"
