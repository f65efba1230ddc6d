"""What FedCRLD's attention costs in memory: the fused kernel against scores that are written out.

    python benchmarks/attention_memory.py

For each way a fresh process does one forward and backward pass of the re-localization transformer on a bottleneck as
volumes of the given size leave it (10 slices of 200 x 200 by default, 6,250 tokens of 512 channels), on one thread of a
CPU, and says how much memory that took at its peak. With --whole it is the whole network, whose convolutions
are counted with it. Both ways start from the same weights and must agree in the loss. Prints the figures and writes
benchmarks/results/attention_memory.json.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peak_memory import grown, in_fresh_process
from torch import nn

from fedmedseg.core.records import installed_versions
from fedmedseg.fedcrld.network import RelocalizationNetwork
from fedmedseg.fedcrld.relocalization import Relocalization
from fedmedseg.networks.attention import SwitchableAttention

RESULT = Path(__file__).parent / "results" / "attention_memory.json"
WAYS = ("fused", "explicit")


def step_of(size: tuple[int, int, int], width: int, *, whole: bool) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """The module, and what gives its loss on noise; ``size`` is slices x height x width of a volume."""
    slices, height, breadth = size
    if whole:
        network = RelocalizationNetwork(classes=4, width=width)
        images = torch.randn(1, 1, height, breadth, slices)
        return network, lambda: network(images).square().mean()
    module = Relocalization(channels=8 * width, inner=4 * width, faithful_reshape=False)
    shape = (1, 8 * width, slices, -(-height // 8), -(-breadth // 8))
    shared, local = torch.randn(shape), torch.randn(shape)
    return module, lambda: module(shared, local).square().mean()


def measure(way: str, size: tuple[int, int, int], width: int, *, whole: bool) -> dict[str, float]:
    """Memory of one pass at its peak (MiB), and the loss."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    # libraries that are loaded with the first pass are no part of it
    warm, small = step_of((1, 16, 16), width, whole=whole)
    small().backward()
    del warm, small
    module, step = step_of(size, width, whole=whole)
    for part in module.modules():
        if isinstance(part, SwitchableAttention):
            part.use_flash_attention = way == "fused"

    def both_ways() -> torch.Tensor:
        loss = step()
        loss.backward()
        return loss.detach()

    peak, loss = grown(both_ways)
    return {"peak_mib": peak, "loss": float(loss)}


def compare(size: tuple[int, int, int], width: int, *, whole: bool) -> dict[str, Any]:
    """Both ways, each in a process of its own.

    Raises:
        SystemExit: they do not compute the same.
    """
    found: dict[str, Any] = {}
    for way in WAYS:
        words = ("--only", way, "--size", *size, "--width", width, *(["--whole"] if whole else []))
        found[way] = in_fresh_process(__file__, *words, own=True)
    if abs(found["fused"]["loss"] - found["explicit"]["loss"]) > 1e-4 * abs(found["explicit"]["loss"]):
        raise SystemExit(f"void: the losses differ, {found}; nothing written")
    return found | {"ratio": found["explicit"]["peak_mib"] / found["fused"]["peak_mib"]}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs=3, type=int, default=[10, 200, 200], help="slices, height, width of a volume")
    parser.add_argument("--width", type=int, default=64, help="channels of the network's first block")
    parser.add_argument("--whole", action="store_true", help="the whole network, not the transformer alone")
    parser.add_argument("--only", choices=WAYS, help="measure one, and print it as JSON")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    size = (options.size[0], options.size[1], options.size[2])
    if options.only:
        print(json.dumps(measure(options.only, size, options.width, whole=options.whole)))
        return
    found = compare(size, options.width, whole=options.whole)
    part = "whole network" if options.whole else "transformer"
    tokens = size[0] * -(-size[1] // 8) * -(-size[2] // 8)
    print(
        f"{tokens} tokens, {part}: explicit {found['explicit']['peak_mib']:.0f} MiB, "
        f"fused {found['fused']['peak_mib']:.0f} MiB, {found['ratio']:.2f} times"
    )
    known = json.loads(options.out.read_text()) if options.out.is_file() else {}
    known[part] = {
        "size": list(size),
        "width": options.width,
        "tokens": tokens,
        **found,
    }
    record = known | {"versions": installed_versions(), "machine": platform.machine()}
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
