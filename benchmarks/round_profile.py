"""Where a deployed round without training goes: processor time of every process, by what it does.

    pip install py-spy
    python benchmarks/round_profile.py --sizes 1 20
    python benchmarks/round_profile.py --sizes 250 --after 45 --seconds 40 --rounds 20

The federation is that of benchmarks/round_overhead.py: signed kits, mutual TLS, loopback; sites return what they were
sent. py-spy looks into each process a hundred times a second for --seconds of the rounds, once all of them have begun,
and writes down which functions are on a processor. A sample counts for the innermost function that belongs to one of
`KINDS`, and the `FUNCTIONS` that took most are named. Seconds are processor time of a round; what the wall time of a
round has beyond them is waiting: for another process, the disk, or the next question. Prints a table and writes
benchmarks/results/round_profile.json, size by size.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from stand_in_runs import WIDTHS, circumstances, copying, deployed

RESULT = Path(__file__).parent / "results" / "round_profile.json"
RATE = 100
"""Samples a second."""
FUNCTIONS = 12
"""How many of them are named, the longest first."""
PROCESSES = {
    "server.runner_process": "server, job",
    "server.server_train": "server, parent",
    "client.worker_process": "site, job",
    "client.client_train": "site, parent",
}
"""Part of a process's command -> what it is here."""
KINDS = (
    ("sockets and TLS", ("ssl.py", "socket.py", "selectors.py", "socketserver.py", "nvflare/fuel/f3/drivers")),
    ("files", ("core/checkpoint.py", "core/spilled.py", "core/state.py", "core/records.py", "/safetensors/")),
    ("checks and averaging", (
        "core/wire.py", "core/aggregator.py", "core/averaging.py", "core/ordering.py", "core/robust.py",
        "core/replies.py",
    )),
    ("encoding", ("/fobs/", "core/large_tensors.py", "/msgpack/", "core/traffic.py", "core/transport.py")),
    ("messages", ("nvflare/fuel/f3", "nvflare/private/aux_runner", "nvflare/fuel/utils")),
    ("tasks and questions", ("nvflare/private", "nvflare/apis", "nvflare/app_common")),
    ("the study", ("fedmedseg/", "stand_ins.py")),
)  # fmt: skip
"""What a function does, by parts of its file's name; the first kind that has one of them."""
OTHER = "anything else"
BEGUN_SECONDS = 12.0
"""How old a site's job with a small model is when it is past its imports and its first rounds."""


def kind_of(frames: Sequence[str]) -> tuple[str, str]:
    """Kind and function of a stack, its outermost frame first: `sealed (core/transport.py)`."""
    for frame in reversed(frames):
        for kind, parts in KINDS:
            if any(part in frame for part in parts):
                return kind, _short(frame)
    return OTHER, _short(frames[-1])


def _short(frame: str) -> str:
    """`name (folder/file.py)` of py-spy's `name (/folder/folder/file.py:line)`."""
    name, _, file = frame.removesuffix(")").partition(" (")
    return f"{name} ({'/'.join(Path(file.rpartition(':')[0] or file).parts[-2:])})" if file else name


def by_kind(folded: str) -> Counter[tuple[str, str]]:
    """Samples of each kind and function in py-spy's raw form: `frame;frame;frame count`, a line for every stack."""
    found: Counter[tuple[str, str]] = Counter()
    for line in filter(None, folded.splitlines()):
        stack, _, count = line.rpartition(" ")
        found[kind_of(stack.split(";"))] += int(count)
    return found


def process_of(command: Sequence[str]) -> str | None:
    """What a process is here, or None where it is none of the federation's."""
    words = " ".join(command)
    return next((name for part, name in PROCESSES.items() if part in words), None)


@dataclass
class Look:
    """What was seen of the processes for a while."""

    seconds: float = 0.0
    processor: dict[str, float] = field(default_factory=dict)
    """Seconds of processor time in that while."""
    samples: dict[str, Counter[tuple[str, str]]] = field(default_factory=dict)
    """Process -> kind and function -> how often it was seen."""


def look(program: str, seconds: float, sites: int, after: float) -> Look:
    """Wait until the job has run for ``after`` seconds everywhere, then look for ``seconds``."""
    running = _federation(sites, after)
    found = Look(seconds=seconds)
    with tempfile.TemporaryDirectory() as folder:
        files, looking = {}, []
        before = {process: sum(process.cpu_times()[:2]) for process, _ in running}
        for process, _ in running:
            files[process] = Path(folder) / f"{process.pid}.txt"
            call = [program, "record", "--pid", str(process.pid), "--rate", str(RATE), "--format", "raw",
                    "--full-filenames", "--nonblocking", "--duration", str(round(seconds)),
                    "--output", str(files[process])]  # fmt: skip
            looking.append(subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        time.sleep(seconds)
        for process, name in running:
            with suppress(psutil.NoSuchProcess):
                spent = sum(process.cpu_times()[:2]) - before[process]
                found.processor[name] = found.processor.get(name, 0.0) + spent
        for one in looking:
            if one.poll() is None:  # it counts samples, not seconds, and falls behind on busy cores
                one.send_signal(signal.SIGINT)
        for one in looking:
            one.wait(timeout=60)
        for process, name in running:
            if files[process].is_file():
                found.samples.setdefault(name, Counter()).update(by_kind(files[process].read_text()))
    return found


def _federation(sites: int, after: float) -> list[tuple[psutil.Process, str]]:
    """Its processes, once every site's job has been there for a while: the first rounds wait for one another."""
    while True:
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                name = process_of(process.cmdline())
                if name is not None:
                    found.append((process, name))
        jobs = [process for process, name in found if name == "site, job"]
        if len(jobs) == sites and all(time.time() - process.create_time() > after for process in jobs):
            return found
        time.sleep(0.2)


def profile(program: str, *, size: int, sites: int, rounds: int, seconds: float, after: float) -> dict[str, Any]:
    """Seconds of processor time a round, by process and kind."""
    before = copying()
    seen: list[Look] = []
    watching = threading.Thread(target=lambda: seen.append(look(program, seconds, sites, after)), daemon=True)
    watching.start()
    (run,) = deployed(sites=sites, rounds=rounds, width=WIDTHS[size])
    watching.join(timeout=60)
    if not seen:
        raise SystemExit("the job ended before it was looked into: more --rounds, or fewer --seconds")
    if seen[0].samples.keys() != seen[0].processor.keys():
        raise SystemExit(f"{program} did not see every process: it must be allowed to look into others' (ptrace)")
    return summary(seen[0], run.walls) | {"megabytes_each_way": round(run.megabytes, 3)} | circumstances(before)


def summary(seen: Look, walls: Sequence[float]) -> dict[str, Any]:
    """Per round: wall time, and processor time by process, shared out by the samples of each kind."""
    wall = statistics.median(walls)
    rounds = seen.seconds / wall
    found: dict[str, Any] = {"wall_s": round(wall, 3), "processor_s": {}, "kinds_s": {}, "functions_s": {}}
    kinds: dict[tuple[str, str], float] = defaultdict(float)
    functions: dict[str, float] = defaultdict(float)
    for name, spent in sorted(seen.processor.items()):
        found["processor_s"][name] = round(spent / rounds, 4)
        samples = seen.samples.get(name, Counter())
        for (kind, function), count in samples.items():
            share = spent / rounds * count / samples.total()
            kinds[kind, name] += share
            functions[f"{name}: {function}"] += share
    for (kind, name), share in kinds.items():
        found["kinds_s"].setdefault(kind, {})[name] = round(share, 4)
    longest = sorted(functions, key=lambda name: -functions[name])[:FUNCTIONS]
    found["functions_s"] = {name: round(functions[name], 4) for name in longest}
    return found


def table(size: int, found: dict[str, Any]) -> str:
    """Kinds by processes, seconds of processor time a round."""
    names = list(found["processor_s"])
    total = sum(found["processor_s"].values())
    void = ", void" if found["void"] else ""
    lines = [
        f"{size} MB: a round of {found['wall_s']:.3f} s, {total:.3f} s of processors{void}",
        f"  {'seconds a round':24s}" + "".join(f"{name:>16s}" for name in names),
    ]
    ranked = sorted(found["kinds_s"].items(), key=lambda one: -sum(one[1].values()))
    for kind, by_process in [*ranked, ("together", found["processor_s"])]:
        lines.append(f"  {kind:24s}" + "".join(f"{by_process.get(name, 0.0):16.4f}" for name in names))
    lines += [f"  {share:.4f} {function}" for function, share in found["functions_s"].items()]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None, *, measured: Callable[..., dict[str, Any]] = profile) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, choices=sorted(WIDTHS), default=[1], help="MB")
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=100, help="of the run, which must outlast --seconds")
    parser.add_argument("--seconds", type=float, default=15.0, help="to look for")
    parser.add_argument(
        "--after", type=float, default=BEGUN_SECONDS, help="seconds, of a site's job, for its first tasks"
    )
    parser.add_argument("--py-spy", default=shutil.which("py-spy"), help="the program; unset: as it is found")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args(words)
    if given.py_spy is None:
        raise SystemExit("py-spy is not installed: pip install py-spy, or --py-spy PROGRAM")
    content = json.loads(given.out.read_text()) if given.out.exists() else {}
    for size in given.sizes:
        how = {"sites": given.sites, "rounds": given.rounds, "seconds": given.seconds, "after": given.after}
        found = measured(given.py_spy, size=size, **how)
        options = " ".join(f"--{name} {value:g}" for name, value in how.items())
        content[str(size)] = found | {"command": f"python benchmarks/round_profile.py --sizes {size} {options}"}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(content, indent=1) + "\n")
        print(table(size, found), flush=True)


if __name__ == "__main__":
    main()
