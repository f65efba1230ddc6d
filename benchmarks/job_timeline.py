"""Where the time of a whole job goes whose sites train nothing: its start, its rounds, its end.

    python benchmarks/job_timeline.py

The job is that of benchmarks/round_overhead.py with 1.4 MB: six rounds and two further stages. Simulator and
deployment take turns; each run is cut at what the server's job writes into its log (`MARKS`). Prints the medians of
each part and writes benchmarks/results/job_timeline.json. Where copying memory moved by more than a tenth meanwhile,
the run is marked as void.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from stand_in_runs import WIDTHS, Run, circumstances, copying, deployed, in_simulator

RESULT = Path(__file__).parent / "results" / "job_timeline.json"
SIMULATOR, DEPLOYED = "simulator", "deployed"
MARKS = (
    ("until the server's job runs: sign-in and schedule, or FLARE's own start; imports", r"Server runner starting"),
    ("first model and its checks", r"Round 0 started"),
    ("first round: the sites' imports and preflight, too", r"Round 0 finished"),
    ("all other rounds", r"Round \d+ finished"),
    ("report, and waiting for late messages", r"END_RUN fired"),
    ("the server's job ends", r"MPM: Good Bye"),
)
"""What ends with a line of the log, in order; of several such lines the last one, but for the first round's."""
LAST = "until whoever asked for the job knows"
_STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) ", re.MULTILINE)


def parts_of(run: Run) -> dict[str, float]:
    """Seconds of each part; together they are the whole job.

    Raises:
        SystemExit: the log has no such line, as with another version of FLARE.
    """
    found, before = {}, run.began
    for name, pattern in MARKS:
        line = re.compile(rf"(?<!ABOUT_TO_){pattern}")
        times = [time for time, text in _lines(run.log) if line.search(text)]
        if not times:
            raise SystemExit(f"the server's log has no line with {pattern!r}: does FLARE still write it?")
        at = times[0] if "Round 0" in pattern else times[-1]
        found[name], before = at - before, at
    found[LAST] = run.began + run.seconds - before
    return found


def _lines(log: str) -> Iterator[tuple[float, str]]:
    """When, in seconds since 1970, and what: lines without a time belong to the one before."""
    _, *pieces = _STAMP.split(log)
    for stamp, text in zip(pieces[::2], pieces[1::2], strict=True):
        yield datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp(), text


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Medians of one way's runs."""
    parts: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for name, seconds in parts_of(run).items():
            parts[name].append(seconds)
    return {
        "job_s": round(statistics.median(run.seconds for run in runs), 2),
        "parts_s": {name: round(statistics.median(values), 2) for name, values in parts.items()},
        "runs": len(runs),
    }


def table(content: dict[str, Any]) -> str:
    """Parts by ways."""
    ways = (SIMULATOR, DEPLOYED)
    width = max(len(name) for name in (*(name for name, _ in MARKS), LAST))
    lines = [f"{'seconds':{width}s}" + "".join(f"{way:>12s}" for way in ways) + ("  void" if content["void"] else "")]
    for name in (*(name for name, _ in MARKS), LAST):
        lines.append(f"{name:{width}s}" + "".join(f"{content[way]['parts_s'][name]:12.2f}" for way in ways))
    lines.append(f"{'the whole job':{width}s}" + "".join(f"{content[way]['job_s']:12.2f}" for way in ways))
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args(words)
    before, how = copying(), {"sites": given.sites, "rounds": given.rounds, "width": WIDTHS[1]}
    runs: dict[str, list[Run]] = {SIMULATOR: [], DEPLOYED: []}
    for _ in range(given.repeats):
        runs[SIMULATOR].append(in_simulator(threads=given.sites, **how))
        runs[DEPLOYED] += deployed(**how)
    content: dict[str, Any] = {way: summary(of_way) for way, of_way in runs.items()}
    content |= circumstances(before)
    content["command"] = (
        f"python benchmarks/job_timeline.py --repeats {given.repeats} --sites {given.sites} --rounds {given.rounds}"
    )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content))


if __name__ == "__main__":
    main()
