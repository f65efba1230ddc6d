"""What hundreds of hospitals would ask of the server: computed from what was measured with a few.

    python benchmarks/growth.py
    python benchmarks/growth.py --sites 100 500 --megabytes 249 --gigabits 10

Nothing is run. Bytes are arithmetic: every site fetches the shared model and sends as much back, times what the
transport leaves of dense float32 (benchmarks/results/wire.json). Memory and seconds at the server are the lines that
least squares draw through the deployed federations of benchmarks/results/scale, carried far beyond their last point: a
site more costs what it cost there. Those seconds were taken with all sites on the server's own cores, and are more than
a server of its own needs. Time on the wire is bytes through the server's link, one direction after the other, for every
site waits for the round's model before it trains and all train equally long.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scale import RESULTS as SCALE
from scale import slope

WIRE = Path(__file__).parent / "results" / "wire.json"
TRANSPORTS = ("fp32", "fp16", "int8")
"""Those that shrink both directions."""
SIZES = (19.3, 77.3, 248.7)
"""MB of float32: the usual 3D U-Net, four times as much, and SwinUNETR at its published width."""


@dataclass(frozen=True)
class Measured:
    """The lines through the deployed federations of one size of model.

    Attributes:
        megabytes: that size.
        most_sites: the largest federation measured.
        base: megabytes of the server's process without a model to speak of: that of the smallest size measured.
        own: models of memory without any site.
        models: of memory, for a further site.
        seconds: of a round for a further site, and each megabyte of its model.
    """

    megabytes: float
    most_sites: int
    base: float
    own: float
    models: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A round of so many sites at the server.

    Attributes:
        sent, received: gigabytes.
        wire: seconds of them on the server's link.
        work: seconds of the server's own.
        memory: gigabytes of its process.
    """

    sent: float
    received: float
    wire: float
    work: float
    memory: float


def measured(folder: Path = SCALE) -> Measured:
    """The lines through the largest size of model that several deployed federations were measured with.

    Raises:
        ValueError: there are no two such federations.
    """
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("deployed-*.json"))]
    sizes = sorted(
        {one["megabytes"] for one in found if sum(one["megabytes"] == two["megabytes"] for two in found) > 1}
    )
    if not sizes:
        raise ValueError(f"{folder} has no two deployed federations of one size: run benchmarks/scale.py")
    of_size = [[one for one in found if one["megabytes"] == size] for size in (sizes[0], sizes[-1])]
    smallest, largest = ([(one["sites"], one["server_megabytes"]) for one in cells] for cells in of_size)
    base = _intercept(smallest) if len(sizes) > 1 else 0.0
    rounds = [(one["sites"], one["round"]["median_s"]) for one in of_size[-1]]
    return Measured(
        megabytes=sizes[-1],
        most_sites=max(sites for sites, _ in largest),
        base=base,
        own=(_intercept(largest) - base) / sizes[-1],
        models=max(0.0, slope(largest, sizes[-1])),
        seconds=max(0.0, slope(rounds, sizes[-1])),
    )


def _intercept(points: Sequence[tuple[int, float]]) -> float:
    """Where the line through (sites, figure) meets no site at all."""
    return statistics.linear_regression([sites for sites, _ in points], [figure for _, figure in points]).intercept


def shares(file: Path = WIRE) -> Mapping[str, tuple[float, float]]:
    """Transport -> what it leaves of dense float32 on the way down and up."""
    unet = json.loads(file.read_text())["unet"]
    return {"fp32": (1.0, 1.0)} | {name: (unet[name]["share_down"], unet[name]["share"]) for name in TRANSPORTS[1:]}


def planned(sites: int, megabytes: float, *, share: tuple[float, float], gigabits: float, line: Measured) -> Plan:
    """A round of ``sites`` sites with a model of ``megabytes`` over a link of ``gigabits`` a second."""
    sent, received = (sites * megabytes * one / 1000 for one in share)
    return Plan(
        sent=sent,
        received=received,
        wire=(sent + received) * 8 / gigabits,
        work=sites * megabytes * line.seconds,
        memory=(line.base + megabytes * (line.own + sites * line.models)) / 1000,
    )


def table(sites: Sequence[int], sizes: Sequence[float], gigabits: float, line: Measured) -> list[str]:
    """Lines of Markdown, one for each size, number of sites and transport."""
    said = [
        f"Lines through {line.megabytes:g} MB, up to {line.most_sites} sites: {line.models:.3f} models of memory and "
        f"{line.seconds * line.megabytes:.2f} s a further site.",
        "",
        f"| model (MB) | sites | transport | sent (GB) | received (GB) | on a link of {gigabits:g} Gbit/s (s) "
        "| at the server (s) | server's memory (GB) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for megabytes in sizes:
        for number in sites:
            for transport, share in shares().items():
                one = planned(number, megabytes, share=share, gigabits=gigabits, line=line)
                figures = (one.sent, one.received, one.wire, one.work, one.memory)
                said.append(
                    f"| {megabytes:g} | {number} | {transport} | "
                    + " | ".join(f"{value:.1f}" for value in figures)
                    + " |"
                )
    return said


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", nargs="+", type=int, default=[10, 100, 300])
    parser.add_argument("--megabytes", nargs="+", type=float, default=list(SIZES), help="of the model in float32")
    parser.add_argument("--gigabits", type=float, default=1.0, help="a second, of the server's link")
    parser.add_argument("--scale", type=Path, default=SCALE, help="what benchmarks/scale.py measured")
    given = parser.parse_args(words)
    if min(*given.sites, *given.megabytes, given.gigabits) <= 0:
        parser.error("--sites, --megabytes and --gigabits are above 0")
    return given


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    given = parsed(words)
    line = measured(given.scale)
    print("\n".join(table(given.sites, given.megabytes, given.gigabits, line)))


if __name__ == "__main__":
    main()
