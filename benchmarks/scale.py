"""How a federation grows: rounds of 2 to 64 sites and models of up to 250 MB, and the memory of the server's process.

    python benchmarks/scale.py
    python benchmarks/scale.py --where simulator --sites 2 8 16 32 64 --sizes 1 20
    python benchmarks/scale.py --where deployed --sites 2 4 8 --sizes 250
    python benchmarks/scale.py --table

Sites return what they were sent. Each number of sites and size is a cell, a JSON file under
benchmarks/results/scale/; a call goes on with those that are missing. The simulator has --threads processes for all
sites; a deployed federation has one for each, signed kits and mutual TLS. The largest resident memory is that of the
process that holds the server's job, over the whole of it; its slope, by least squares over the numbers of sites, is
given in models for each further site beside the goal.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stand_in_runs import WIDTHS, circumstances, copying, deployed, in_simulator, spread

RESULTS = Path(__file__).parent / "results" / "scale"
SLOPE = 0.1
"""Models of memory that a further site may cost the server, at most."""
WHERE = ("simulator", "deployed")


@dataclass(frozen=True)
class Cell:
    """One federation and one size of model."""

    where: str
    sites: int
    size: int
    results: Path = RESULTS

    @property
    def file(self) -> Path:
        """Where its result lies."""
        return self.results / f"{self.where}-{self.sites}-sites-{self.size}-mb.json"

    def measure(self, *, threads: int, rounds: int) -> dict[str, Any]:
        """Run it once."""
        before, width = copying(), WIDTHS[self.size]
        if self.where == "simulator":
            run = in_simulator(sites=self.sites, threads=min(threads, self.sites), rounds=rounds, width=width)
        else:
            (run,) = deployed(sites=self.sites, rounds=rounds, width=width)
        return {
            "where": self.where,
            "sites": self.sites,
            "threads": min(threads, self.sites) if self.where == "simulator" else self.sites,
            "megabytes": round(run.megabytes, 3),
            "round": spread(run.walls),
            "job_s": round(run.seconds, 1),
            "server_megabytes": round(run.server_megabytes, 1),
            **circumstances(before),
        }


def slope(points: Sequence[tuple[int, float]], megabytes: float) -> float:
    """Models of memory for each further site: least squares over (sites, megabytes of the server)."""
    line = statistics.linear_regression([sites for sites, _ in points], [memory for _, memory in points])
    return line.slope / megabytes


def table(results: Path = RESULTS) -> list[str]:
    """What there is, as lines of Markdown, with the slope of each group of two sizes of federation and more."""
    found = [json.loads(file.read_text()) for file in sorted(results.glob("*.json"))]
    found.sort(key=lambda one: (one["where"], one["megabytes"], one["sites"]))
    said = [
        "| where | sites | processes | model (MB) | round (s) | job (s) | server (MB) |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, float], list[tuple[int, float]]] = {}
    for one in found:
        cells = (one["where"], one["sites"], one["threads"], one["megabytes"], one["round"]["median_s"], one["job_s"])
        said.append("| " + " | ".join(map(str, (*cells, one["server_megabytes"]))) + " |")
        groups.setdefault((one["where"], one["megabytes"]), []).append((one["sites"], one["server_megabytes"]))
    for (where, megabytes), points in groups.items():
        if len(points) > 1:
            rise = slope(points, megabytes)
            said.append(f"{where}, {megabytes:g} MB: {rise:.3f} models of memory a further site (goal at most {SLOPE})")
    return said


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--where", nargs="+", choices=WHERE, default=list(WHERE))
    parser.add_argument("--sites", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--sizes", nargs="+", type=int, choices=sorted(WIDTHS), default=[1], help="MB")
    parser.add_argument("--threads", type=int, default=2, help="of the simulator, for all sites together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print what there is")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Run the cells that are missing, print all."""
    given = parsed(words)
    wanted = [
        Cell(where, sites, size, given.results)
        for size in given.sizes for where in given.where for sites in given.sites
    ]  # fmt: skip
    for cell in () if given.table else wanted:
        if not cell.file.exists():
            content = cell.measure(threads=given.threads, rounds=given.rounds)
            cell.file.parent.mkdir(parents=True, exist_ok=True)
            cell.file.write_text(json.dumps(content, indent=1) + "\n")
            print(f"{cell.file.stem}: {content['round']['median_s']} s a round, {content['server_megabytes']} MB")
    print("\n".join(table(given.results)))


if __name__ == "__main__":
    main()
