"""What a federated round costs beyond training: in the simulator, deployed, against Flower and against no federation.

    python benchmarks/round_overhead.py
    python benchmarks/round_overhead.py --parts rounds --sizes 1 20 250 --flower PYTHON
    python benchmarks/round_overhead.py --parts efficiency

`rounds`: sites return what they were sent; seconds of a round in the simulator, in a deployed federation (signed
kits, mutual TLS, loopback), and in Flower's simulation of tensors of the same shapes, where --flower names the
interpreter of an environment with `flwr[simulation]`. The wall time of the whole job, start-up and our two further
stages included, is set against that of Flower's, too. `efficiency`: sites keep a core busy for about --seconds; the
same work in processes without a federation, divided by the round. Ways take turns, the first round of each run is
dropped. Prints medians beside the goals and writes benchmarks/results/round_overhead.json, part by part. Where copying
memory moved by more than a tenth meanwhile, a part is marked as void.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stand_in_runs import (
    WIDTHS,
    Run,
    circumstances,
    copying,
    deployed,
    in_simulator,
    plain,
    shapes_of,
    spread,
    with_flower,
)

RESULT = Path(__file__).parent / "results" / "round_overhead.json"
SHIPPED, DEPLOYED, FLOWER = "simulator", "deployed", "Flower's simulation"
OF_FLOWER = {(DEPLOYED, 1): 1.2, (SHIPPED, 1): 3.0, (SHIPPED, 250): 1.5}
"""Way and megabytes -> the goal: its round over Flower's, at most."""
PARTS = ("rounds", "efficiency")
WHOLE_JOB = 1.25
EFFICIENCY = {10.0: 0.88, 30.0: 0.95}
"""Seconds of local work -> the goal: work without a federation over a round, at least."""


def of_size(size: int, given: argparse.Namespace) -> dict[str, Any]:
    """All ways of one size of the shared model."""
    width, before = WIDTHS[size], copying()
    walls: dict[str, list[float]] = defaultdict(list)
    jobs: dict[str, list[float]] = defaultdict(list)
    megabytes = 0.0

    def note(way: str, run: Run) -> None:
        nonlocal megabytes
        walls[way] += run.walls
        jobs[way].append(run.seconds)
        megabytes = run.megabytes

    for _ in range(given.repeats):
        threads = min(given.threads, given.sites)
        note(SHIPPED, in_simulator(sites=given.sites, threads=threads, rounds=given.rounds, width=width))
        for run in deployed(sites=given.sites, rounds=given.rounds, width=width):
            note(DEPLOYED, run)
        if given.flower:
            rounds, whole = with_flower(given.flower, sites=given.sites, rounds=given.rounds, shapes=shapes_of(width))
            walls[FLOWER] += rounds
            jobs[FLOWER].append(whole)
    return summary(size, megabytes, walls, jobs) | circumstances(before)


def summary(size: int, megabytes: float, walls: dict[str, list[float]], jobs: dict[str, list[float]]) -> dict[str, Any]:
    """What a size's figures say, with the ratios to Flower where it ran, and their goals."""
    found: dict[str, Any] = {"megabytes_each_way": round(megabytes, 3), "of_flower": {}, "job_of_flower": {}}
    for way, values in walls.items():
        found[way] = spread(values) | {"job_s": round(statistics.median(jobs[way]), 2)}
    for way in (SHIPPED, DEPLOYED) if FLOWER in walls else ():
        ratio = found[way]["median_s"] / found[FLOWER]["median_s"]
        found["of_flower"][way] = {"ratio": round(ratio, 3), "goal": OF_FLOWER.get((way, size))}
        whole = found[way]["job_s"] / found[FLOWER]["job_s"]
        found["job_of_flower"][way] = {"ratio": round(whole, 3), "goal": WHOLE_JOB}
    return found


def efficiencies(given: argparse.Namespace) -> dict[str, Any]:
    """For each length of local work: the same work without a federation, over the round's wall time."""
    before = copying()
    probe = plain(sites=given.sites, rounds=1, work=20) / 20
    found: dict[str, Any] = {}
    for seconds in given.seconds:
        work = max(1, round(seconds / probe))
        alone: list[float] = []
        walls: dict[str, list[float]] = defaultdict(list)
        for _ in range(given.repeats):
            alone.append(plain(sites=given.sites, rounds=2, work=work))
            arguments = {"sites": given.sites, "rounds": given.rounds, "width": WIDTHS[20], "work": work}
            walls[SHIPPED] += in_simulator(threads=given.sites, **arguments).walls
            for run in deployed(**arguments):
                walls[DEPLOYED] += run.walls
            alone.append(plain(sites=given.sites, rounds=2, work=work))
        usual = statistics.median(alone)
        one: dict[str, Any] = {"without_federation_s": round(usual, 3), "goal": EFFICIENCY.get(seconds)}
        for way, values in walls.items():
            one[way] = spread(values) | {"efficiency": round(usual / statistics.median(values), 3)}
        found[f"{seconds:g} s"] = one
    return {"work": found} | circumstances(before)


def lines(content: dict[str, Any]) -> list[str]:
    """What is printed."""
    said = []
    for size, found in content.get("rounds", {}).items():
        said.append(f"{size} MB ({found['megabytes_each_way']} MB each way){', void' if found['void'] else ''}")
        for way in (SHIPPED, DEPLOYED, FLOWER):
            if way in found:
                one = found[way]
                usual = f"{one['median_s']:.3f} s a round (MAD {one['mad_s']:.3f})"
                said.append(f"  {way:28s} {usual}, job {one['job_s']} s")
        for name, what in (("of_flower", "round"), ("job_of_flower", "job")):
            for way, one in found[name].items():
                goal = "" if one["goal"] is None else f" (goal at most {one['goal']})"
                said.append(f"  {what} of {way} over Flower's: {one['ratio']}{goal}")
    efficiency = content.get("efficiency")
    if efficiency is None:
        return said
    for length, found in efficiency["work"].items():
        said.append(f"{length} of local work{', void' if efficiency['void'] else ''}")
        for way in (SHIPPED, DEPLOYED):
            goal = "" if found["goal"] is None else f" (goal at least {found['goal']})"
            said.append(f"  {way}: {found[way]['efficiency']} of the time is work{goal}")
    return said


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sizes", nargs="+", type=int, choices=sorted(WIDTHS), default=[1], help="MB")
    parser.add_argument("--seconds", nargs="+", type=float, default=[10.0], help="of local work in a round")
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of the simulator")
    parser.add_argument("--rounds", type=int, default=6, help="of a run")
    parser.add_argument("--repeats", type=int, default=2, help="how often the ways take turns")
    parser.add_argument("--flower", type=Path, help="interpreter of an environment with flwr[simulation]")
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    given = parsed(words)
    before = json.loads(given.out.read_text()) if given.out.exists() else {}
    # of the form that this version writes
    content = {part: before[part] for part in PARTS if part in before}
    if "rounds" in given.parts:
        for size in given.sizes:
            content.setdefault("rounds", {})[str(size)] = of_size(size, given)
            _write(given.out, content)
    if "efficiency" in given.parts:
        content["efficiency"] = efficiencies(given)
    _write(given.out, content)
    print("\n".join(lines(content)))


def _write(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
