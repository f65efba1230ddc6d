"""All benchmarks one after the other, and every goal of performance with what was measured beside it.

    python benchmarks/bench.py --minutes 20
    python benchmarks/bench.py --full

Without --full each runs at a small size, as many as fit into --minutes; with it each runs at full length, however long
that takes, and one that has run at this length, by this script and these versions, is not run again (--again does), so
that a call that was interrupted is simply made again. A process each, one at a time. Prints a table and writes it as
JSON beside the benchmarks' own results. Goals that no benchmark shows are in the table as missing.

Exit code: 0, or 1 where a goal was missed, a figure is void, or a benchmark failed or found no time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from goals import BENCHMARKS, MISSING, Benchmark, Figure, Missing

from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.records import installed_versions

HERE = Path(__file__).parent
OUT = {False: HERE.parent / "runs" / "bench" / "quick", True: HERE.parent / "runs" / "bench" / "full"}
LEAST_SECONDS = 20.0
"""With less time left no benchmark is begun."""
TAIL = 12
"""Lines of a failed benchmark that are shown."""


@dataclass(frozen=True)
class Outcome:
    """What became of one benchmark."""

    name: str
    command: str
    state: Literal["done", "kept", "failed", "no time"]
    seconds: float = 0.0
    problem: str = ""
    figures: tuple[Figure, ...] = ()


def run(
    benchmarks: Iterable[Benchmark], folder: Path, *, full: bool, minutes: float | None = None, again: bool = False
) -> list[Outcome]:
    """Run those that have this length, in their order; what it takes beyond ``minutes`` is ended.

    Each ends by itself, or with all processes that it started.
    """
    ends = None if minutes is None else time.monotonic() + 60 * minutes
    found = []
    for benchmark in benchmarks:
        arguments = benchmark.full if full else benchmark.quick
        if arguments is None or (benchmark.gpu and not torch.cuda.is_available()):
            continue
        left = None if ends is None else ends - time.monotonic()
        found.append(_one(benchmark, arguments, folder, left=left, keep=full and not again))
        last = found[-1]
        print(f"{time.strftime('%H:%M:%S')} {last.name}: {last.state}, {last.seconds:.0f} s", flush=True)
        if last.problem:
            print(last.problem, flush=True)
    return found


def rows_of(outcomes: Sequence[Outcome], missing: Sequence[Missing]) -> list[dict[str, Any]]:
    """Every figure, what was not measured, and what nothing measures."""
    rows: list[dict[str, Any]] = []
    for one in outcomes:
        rows += [{**asdict(figure), "verdict": figure.verdict, "benchmark": one.name} for figure in one.figures] or [
            {"id": "-", "what": one.name, "verdict": one.state, "benchmark": one.name}
        ]
    shown = [str(row["what"]) for row in rows]
    rows += [
        {"id": one.id, "what": one.what, "why": one.why, "verdict": "missing", "benchmark": None}
        for one in missing
        if not (one.unless and any(what.startswith(one.unless) for what in shown))
    ]
    # by goal, those without one last, otherwise as they were measured
    return sorted(rows, key=lambda row: (row["id"] == "-", row["id"]))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: the goal beside each figure."""
    lines = ["| goal | what | figure | wanted | |", "|---|---|---|---|---|"]
    for row in rows:
        figure = f"{row['value']:.3g}" if "value" in row else "-"
        goal = row.get("goal")
        wanted = "-" if goal is None else f"{'>=' if row['side'] == 'least' else '<='} {goal:g}"
        why = f" ({row['why']})" if "why" in row else ""
        lines.append(f"| {row['id']} | {row['what']} | {figure} | {wanted} | {row['verdict']}{why} |")
    return "\n".join(lines)


def _one(benchmark: Benchmark, arguments: tuple[str, ...], folder: Path, *, left: float | None, keep: bool) -> Outcome:
    made = folder / (f"{benchmark.name}.json" if benchmark.pieces is None else benchmark.name)
    result = made if benchmark.pieces is None else made / benchmark.pieces
    option = "--out" if benchmark.pieces is None else "--results"
    call = [sys.executable, str(benchmark.file), *arguments, option, str(made)]
    told = " ".join(["python", f"benchmarks/{benchmark.file.name}", *arguments])
    note, key = folder / f"{benchmark.name}.run.json", _key(benchmark, arguments)
    before = _noted(note) if keep else {}
    if before.get("key") == key and "seconds" in before:
        try:
            return Outcome(benchmark.name, told, "kept", float(before["seconds"]), "", tuple(benchmark.read(result)))
        except (OSError, ValueError, KeyError):
            # gone or damaged since: it is measured again
            before = {}
    if left is not None and left < LEAST_SECONDS:
        return Outcome(benchmark.name, told, "no time")
    if before.get("key") != key or benchmark.pieces is None:
        # of another length, script or version: nothing of it may be taken for a figure of this run
        shutil.rmtree(made, ignore_errors=True) if made.is_dir() else made.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(note, json.dumps({"key": key}).encode())
    began = time.monotonic()
    said, code = _call(call, left)
    seconds = time.monotonic() - began
    tail = "\n".join(said.splitlines()[-TAIL:])
    if code is None:
        return Outcome(benchmark.name, told, "no time", seconds, f"ended after {seconds:.0f} s\n{tail}".strip())
    if code:
        return Outcome(benchmark.name, told, "failed", seconds, tail or f"exit code {code}")
    try:
        figures = tuple(benchmark.read(result))
    except (OSError, ValueError, KeyError) as error:
        return Outcome(benchmark.name, told, "failed", seconds, f"its result cannot be read: {error!r}")
    write_atomic(note, json.dumps({"key": key, "seconds": round(seconds, 1)}).encode())
    return Outcome(benchmark.name, told, "done", seconds, "", figures)


def _call(call: Sequence[str], seconds: float | None) -> tuple[str, int | None]:
    """What a process said and its exit code; None where it was ended for want of time."""
    process = subprocess.Popen(
        call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        return process.communicate(timeout=seconds)[0], process.returncode
    except subprocess.TimeoutExpired:
        # the session is the process's own: what it started ends with it
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0], None
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def _key(benchmark: Benchmark, arguments: tuple[str, ...]) -> str:
    """Digest of what a result depends on, this machine's figures aside."""
    content = [arguments, installed_versions(), hashlib.sha256(benchmark.file.read_bytes()).hexdigest()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _noted(note: Path) -> dict[str, Any]:
    try:
        content = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="full length, resumable")
    parser.add_argument("--again", action="store_true", help="run again what has run at full length")
    parser.add_argument("--minutes", type=float, help="end what has not ended after so many; unset: none is")
    parser.add_argument("--only", nargs="+", choices=[one.name for one in BENCHMARKS], help="only these")
    parser.add_argument("--flower", type=Path, help="interpreter of an environment with flwr[simulation]")
    parser.add_argument("--out", type=Path, help="folder of results; unset: runs/bench/quick or runs/bench/full")
    given = parser.parse_args()
    folder = given.out or OUT[given.full]
    chosen = [one for one in BENCHMARKS if given.only is None or one.name in given.only]
    if given.flower is not None:
        beside = ("--flower", str(given.flower))
        chosen = [
            replace(one, quick=(*(one.quick or ()), *beside), full=(*one.full, *beside))
            if one.name == "round_overhead"
            else one
            for one in chosen
        ]
    outcomes = run(chosen, folder, full=given.full, minutes=given.minutes, again=given.again)
    rows = rows_of(outcomes, MISSING)
    content = {
        "length": "full" if given.full else "quick",
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": installed_versions(),
        "runs": [{name: value for name, value in asdict(one).items() if name != "figures"} for one in outcomes],
        "rows": rows,
    }
    write_atomic(folder / "bench.json", (json.dumps(content, indent=1) + "\n").encode())
    print(table(rows))
    print(f"written: {folder / 'bench.json'}")
    return int(any(row["verdict"] in ("missed", "void", "failed", "no time") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
