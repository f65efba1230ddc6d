"""Two runs with one seed: whether the final models have the same SHA-256, and which figures of the test differ.

    python benchmarks/determinism.py
    python benchmarks/determinism.py --jobs fedavg --set stages.training.rounds=2 --set segmentation.steps=6

Each job's shipped study runs twice in FLARE's simulator with three sites: first with a process for each, then with one
thread, where every task of every site has a process of its own. What must not matter is so as different as it can be:
the order of arrival, what a process remembers, how long a round takes. Writes benchmarks/results/determinism.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmedseg.core.jobs import known_jobs
from fedmedseg.core.versions import installed_versions

RESULT = Path(__file__).parent / "results" / "determinism.json"
SITES = 3
RECORD = Path("server") / "simulate_job" / "report" / "run.json"


def run(job: str, threads: int, changes: Sequence[str], folder: Path) -> dict[str, Any]:
    """The record of one run.

    Raises:
        SystemExit: it did not finish.
    """
    call = [sys.executable, "-m", "fedmedseg", "simulate", job, "-n", str(SITES), "-t", str(threads), "-w", str(folder)]
    call += [word for change in changes for word in ("--set", change)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{job} did not finish:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    record: dict[str, Any] = json.loads((folder / RECORD).read_text())
    return record


def figures(record: Mapping[str, Any]) -> dict[str, float]:
    """What the sites told of their test, by site and name."""
    last = record["rounds"][-1]["sites"]
    return {f"{site}/{name}": value for site, answer in last.items() for name, value in answer["metrics"].items()}


def compare(job: str, changes: Sequence[str]) -> dict[str, Any]:
    """Both runs of a job: their digests, and which figures of the test differ."""
    records = []
    for threads in (SITES, 1):
        with tempfile.TemporaryDirectory() as folder:
            records.append(run(job, threads, changes, Path(folder) / "w"))
    first, second = map(figures, records)
    digests = [record["shared_sha256"] for record in records]
    return {
        "shared_sha256": digests,
        "same": digests[0] == digests[1],
        "figures": len(first),
        "different": sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name)),
    }


def main(words: Sequence[str] | None = None) -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", choices=list(known_jobs()), default=list(known_jobs()))
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        help="one setting, as stages.training.rounds=2; may be repeated",
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args(words)
    found = {}
    for job in given.jobs:
        found[job] = one = compare(job, given.changes)
        said = "one SHA-256" if one["same"] else "two different models"
        print(f"{job}: {said}, {len(one['different'])} of {one['figures']} figures differ", flush=True)
    content = {"sites": SITES, "changes": given.changes, "jobs": found}
    content |= {"versions": installed_versions(), "machine": platform.machine()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
