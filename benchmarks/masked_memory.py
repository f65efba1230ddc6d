"""What dropping masked tokens saves in memory: the student's step with the visible tokens alone, and with all.

    python benchmarks/masked_memory.py

The students and crops are those of benchmarks/masked_step.py. For each way and number of tokens a fresh process does
one forward and backward pass on one thread of a CPU, and says how much memory that took at its peak: what the pass
keeps for its gradients, and the gradients. Prints the ratios beside the goal and writes
benchmarks/results/masked_memory.json.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from masked_step import objectives, student_step
from peak_memory import grown, in_fresh_process

from fedmedseg.core.versions import installed_versions

RESULT = Path(__file__).parent / "results" / "masked_memory.json"
GOAL = 0.6
"""Of the memory with all tokens, at most."""
CROPS = {6: 4, 8: 2, 10: 1}
"""Tokens along an axis -> crops in a step, as many tokens in all."""
WAYS = ("drop", "replace")


def measure(way: str, edge: int, width: int) -> dict[str, float]:
    """MiB of one step with ``edge`` tokens along each axis."""
    torch.set_num_threads(1)
    student_step(objectives(2, 1, width)[way], 1)()
    step = student_step(objectives(edge, CROPS[edge], width)[way], CROPS[edge])
    return {"mib": grown(step)[0]}


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384, help="channels of a token; heads of 64")
    parser.add_argument("--edges", nargs="+", type=int, choices=sorted(CROPS), default=sorted(CROPS))
    parser.add_argument("--only", nargs=2, metavar=("WAY", "EDGE"), help="measure one, and print it as JSON")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args(words)
    if given.only:
        print(json.dumps(measure(given.only[0], int(given.only[1]), given.width)))
        return
    found: dict[str, Any] = {}
    for edge in given.edges:
        mib = {
            way: in_fresh_process(__file__, "--width", given.width, "--only", way, edge, own=True)["mib"]
            for way in WAYS
        }
        ratio = mib["drop"] / mib["replace"]
        found[f"{edge**3} tokens"] = {"crops": CROPS[edge], "mib": mib, "ratio": ratio, "reached": ratio <= GOAL}
        print(
            f"{edge**3:5d} tokens, {CROPS[edge]} crops: visible {mib['drop']:.0f} MiB, all {mib['replace']:.0f} MiB, "
            f"{ratio:.2f} of it (goal at most {GOAL})",
            flush=True,
        )
    content = {"goal": GOAL, "width": given.width, "tokens": found}
    content |= {"versions": installed_versions(), "machine": platform.machine()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
