"""What the server's arithmetic costs, as shares of the bandwidth of copying memory: mean, checks, robust rules.

    python benchmarks/aggregation.py --sites 4 8 --megabytes 64

For each number of sites every rule works through as many differences as that many replies of one model hold, on one
thread, turn by turn (so that all meet the same machine), and its bytes of replies per second of processor time are
divided by those of copying the same tensors. The trimmed mean and the median are also measured against the same rule
by torch's sort, whose result must be equal bit for bit. Where copying itself moved by more than a tenth between the
first and the second half of the turns, the figures are marked as void. Prints medians and writes
benchmarks/results/aggregation.json.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedmedseg.core.averaging import weighted_mean
from fedmedseg.core.federation_settings import RobustSection
from fedmedseg.core.ordering import median, trimmed_mean
from fedmedseg.core.records import installed_versions
from fedmedseg.core.robust import combined, norms_of, survey
from fedmedseg.core.wire import Schema

RESULT = Path(__file__).parent / "results" / "aggregation.json"
GOALS = {"mean": 0.55, "mean with every check": 0.45, "trimmed mean": 0.25, "median": 0.25}
FASTER = 15.0
DRIFT = 0.1
Replies = dict[str, dict[str, torch.Tensor]]


def replies(sites: int, megabytes: int) -> Replies:
    """Differences of a network of large and small tensors, as many bytes a site as asked for."""
    draws = torch.Generator().manual_seed(1)
    numbers = megabytes * 2**20 // 4
    shapes = {"a.weight": numbers // 2, "b.weight": numbers // 4, "c.weight": numbers // 4, "a.bias": 256}
    return {
        f"site-{site}": {name: torch.randn(count, generator=draws) for name, count in shapes.items()}
        for site in range(sites)
    }


def by_sorting(tensors: list[torch.Tensor], trim: int) -> torch.Tensor:
    """The trimmed mean by torch's sort over the stacked tensors, summed in the same order."""
    rows = torch.sort(torch.stack(tensors), dim=0).values[trim : len(tensors) - trim]
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total / len(rows)


def checked_mean(schema: Schema, given: Replies, weights: dict[str, float]) -> None:
    """Everything that a round does with replies: schema, finiteness, norms, how they lie to each other, the mean."""
    norms = {}
    for site, tensors in given.items():
        assert schema.problem(tensors, finite=False) is None
        norms[site] = norms_of(tensors)
        assert all(map(math.isfinite, norms[site].values()))
    survey(given, schema.specs, norms=norms)
    weighted_mean(given, weights)


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(sites: int, megabytes: int, repeats: int) -> dict[str, Any]:
    """All rules for one number of sites."""
    given = replies(sites, megabytes)
    weights = dict.fromkeys(given, 1.0 / sites)
    schema = Schema(given["site-0"])
    copies = {name: torch.empty_like(tensor) for name, tensor in given["site-0"].items()}
    columns = {name: [given[site][name] for site in given] for name in given["site-0"]}
    trim = 1 if sites < 5 else 2

    def copy() -> None:
        for tensors in given.values():
            for name, tensor in tensors.items():
                copies[name].copy_(tensor)

    ways: dict[str, Callable[[], object]] = {
        "copy": copy,
        "mean": lambda: weighted_mean(given, weights),
        "mean with every check": lambda: checked_mean(schema, given, weights),
        "trimmed mean": lambda: combined(given, RobustSection(rule="trimmed_mean", faulty=trim)),
        "median": lambda: combined(given, RobustSection(rule="median")),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, work in ways.items():
            taken[name].append(seconds(work))
    usual = {name: statistics.median(times[1:]) for name, times in taken.items()}
    half = max(1, repeats // 2)
    probe = [statistics.median(taken["copy"][1 : 1 + half]), statistics.median(taken["copy"][-half:])]
    sorting = {}
    for name, cut in (("trimmed mean", trim), ("median", (sites - 1) // 2)):
        rule = partial(trimmed_mean, trim=cut) if name == "trimmed mean" else median
        part = [tensor[: 2**20] for tensor in columns["a.weight"]]
        assert torch.equal(rule(part), by_sorting(part, cut)), "the results differ"
        ours, theirs = [], []
        for _ in range(3):
            ours.append(seconds(partial(rule, part)))
            theirs.append(seconds(partial(by_sorting, part, cut)))
        sorting[name] = statistics.median(theirs) / statistics.median(ours)
    return {
        "sites": sites,
        "megabytes": megabytes,
        "trim": trim,
        "seconds": usual,
        "of_copying": {name: usual["copy"] / usual[name] for name in GOALS},
        "times_sorting": sorting,
        "drift": abs(probe[1] / probe[0] - 1.0),
        "void": abs(probe[1] / probe[0] - 1.0) > DRIFT,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--megabytes", type=int, default=64, help="of one site's reply")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for sites in given.sites:
        one = measure(sites, given.megabytes, given.repeats)
        found.append(one)
        print(f"{sites} sites, {given.megabytes} MiB each{' (VOID: the machine drifted)' if one['void'] else ''}")
        for name, goal in GOALS.items():
            print(f"  {name}: {one['of_copying'][name]:.2f} of copying (goal {goal})")
        for name, times in one["times_sorting"].items():
            print(f"  {name}: {times:.1f} times as fast as by sorting, bit for bit equal (goal {FASTER:g})")
    machine = platform.processor() or platform.machine()
    content = {"results": found, "versions": installed_versions(), "machine": machine}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
