"""Federated rounds whose sites train nothing, or keep a core busy for a while: in the simulator, deployed, and plain.

What the benchmarks of rounds and of scale have in common. The job is FedATA's with executors that return their tensors
at once; its network is made as wide as the bytes that are asked for.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from fedmedseg.core import admin, simulation
from fedmedseg.core.allowed_classes import simulator_resources
from fedmedseg.core.versions import installed_versions

SUPPORT = Path(__file__).parents[1] / "tests" / "integration" / "support"
sys.path.insert(0, str(SUPPORT))

from stand_in_job import stand_in_job  # noqa: E402

WIDTHS = {1: 12, 20: 48, 250: 168}
"""Megabytes of the shared model, nearly: width of FedATA's encoder that has them."""
DRIFT = 0.1
"""How far copying memory may move within a run before its figures are void."""
SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Run:
    """What one run showed.

    Attributes:
        walls: seconds of each round but the first, which waits for the processes to start.
        seconds: of the whole job, start and end included.
        megabytes: what one site is sent in a round.
        server_megabytes: largest resident memory of the process that holds the server's job.
        began: when it was asked for, seconds since 1970.
        log: what the process that holds the server's job wrote.
    """

    walls: list[float]
    seconds: float
    megabytes: float
    server_megabytes: float
    began: float
    log: str


def written_job(folder: Path, *, rounds: int, width: int) -> Path:
    """The job; its two stages of one round follow."""
    changes = {
        "network": {"feature_size": width},
        "stages": {"pretraining": {"rounds": rounds}},
        # what sites return comes to rest after some rounds
        "federation": {"no_progress_rounds": rounds},
    }
    return stand_in_job(folder / "job", changes)


def named(sites: int) -> tuple[str, ...]:
    """site-1, site-2, ..."""
    return tuple(f"site-{number + 1}" for number in range(sites))


def in_simulator(*, sites: int, threads: int, rounds: int, width: int, work: int = 0) -> Run:
    """One run of `nvflare simulator`."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder) / "workspace"
        resources = simulator_resources()
        resources["class_allow_list"].append("stand_ins.")
        simulation.prepare_workspace(workspace, resources)
        call = simulation.Simulation(
            job=written_job(Path(folder), rounds=rounds, width=width),
            workspace=workspace,
            sites=named(sites),
            threads=threads,
            log=Path(folder) / "log",
            environment={
                "PYTHONPATH": str(SUPPORT),
                "FEDMEDSEG_FAULT": json.dumps(_faults(work)),
                "OMP_NUM_THREADS": "1",
            },
        )
        began, start = time.time(), time.monotonic()
        with largest_memory(_is_simulator) as memory:
            record = simulation.run(call, lambda event: None)
            seconds = time.monotonic() - start
        if record is None or record["outcome"] != "finished":
            raise SystemExit(f"the simulator did not finish:\n{call.log.read_text(errors='replace')[-2000:]}")
        return _run(record, began=began, seconds=seconds, memory=memory(), folder=workspace / "server")


def deployed(*, sites: int, rounds: int, width: int, work: int = 0, repeats: int = 1) -> Iterator[Run]:
    """Runs of one job in a federation of signed kits, processes and mutual TLS on this machine."""
    from hospitals import Hospitals

    with simulation.terminate_as_exit(), tempfile.TemporaryDirectory() as folder:
        hospitals = Hospitals(Path(folder), sites=named(sites), faults=_faults(work))
        with hospitals:
            hospitals.up()
            for _ in range(repeats):
                with tempfile.TemporaryDirectory() as made, largest_memory(_is_server_job) as memory:
                    job = written_job(Path(made), rounds=rounds, width=width)
                    began, start = time.time(), time.monotonic()
                    with admin.session(hospitals.admin) as session:
                        job_id = admin.submit(session, job)
                        meta = admin.wait(session, job_id, timeout=3600.0)
                        seconds = time.monotonic() - start
                        ended = hospitals.fetch(session, job_id, meta)
                    if ended.record["outcome"] != "finished":
                        raise SystemExit(f"the job did not finish: {ended.record['reason']}")
                    yield _run(ended.record, began=began, seconds=seconds, memory=memory(), folder=ended.folder)


def plain(*, sites: int, rounds: int, work: int) -> float:
    """Seconds a round of the same local work takes in as many processes that know of no federation."""
    code = (
        "import sys, time; from stand_ins import busy_work; busy_work(1)\n"
        "print('ready', flush=True); sys.stdin.readline(); began = time.monotonic()\n"
        f"for _ in range({rounds}): busy_work({work})\n"
        "print(time.monotonic() - began, flush=True)"
    )
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(sites)
    ]
    try:
        for one in running:
            _line(one)
        for one in running:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        return max(float(_line(one)) for one in running) / rounds
    finally:
        for one in running:
            one.kill()
            one.wait()


def with_flower(
    python: Path, *, sites: int, rounds: int, shapes: Mapping[str, Sequence[int]]
) -> tuple[list[float], float]:
    """Seconds of each of Flower's rounds but the first, and of the whole, for tensors of the same shapes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "specification.json"
        file.write_text(json.dumps({"sites": sites, "rounds": rounds, "shapes": shapes}))
        # neither may call home
        silent = {"RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_HOME": folder}
        began = time.monotonic()
        done = subprocess.run(
            [str(python), str(Path(__file__).parent / "flower_rounds.py"), str(file)],
            text=True, capture_output=True, timeout=3600, check=False,
            env={**os.environ, **silent, "OMP_NUM_THREADS": "1"}, cwd=folder,
        )  # fmt: skip
        seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"Flower did not finish:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])["walls"], seconds


def shapes_of(width: int) -> dict[str, list[int]]:
    """Names and shapes of the shared tensors."""
    from fedmedseg.core.config import load_experiment
    from fedmedseg.core.jobs import EXPERIMENT
    from fedmedseg.fedata.plan import initial_shared

    with tempfile.TemporaryDirectory() as folder:
        job = written_job(Path(folder), rounds=1, width=width)
        tensors = initial_shared(load_experiment(job / EXPERIMENT))
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


@contextmanager
def largest_memory(wanted: Callable[[list[str]], bool]) -> Iterator[Callable[[], float]]:
    """Watch the processes started below this one; the value tells the largest resident megabytes of a wanted one."""
    largest = 0.0
    ended = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not ended.wait(SAMPLE_SECONDS):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    if wanted(process.cmdline()):
                        largest = max(largest, process.memory_info().rss / 1e6)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield lambda: largest
    finally:
        ended.set()
        watching.join()


def copying() -> float:
    """Gigabytes a second of copying memory, the median of five."""
    source = np.ones(32 * 2**20, np.float32)
    target = np.empty_like(source)
    speeds = []
    for _ in range(5):
        began = time.perf_counter()
        np.copyto(target, source)
        speeds.append(source.nbytes / (time.perf_counter() - began) / 1e9)
    return statistics.median(speeds)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, MAD and number of values."""
    median = statistics.median(values)
    mad = statistics.median(abs(value - median) for value in values)
    return {"median_s": round(median, 3), "mad_s": round(mad, 3), "rounds": len(values)}


def circumstances(before: float) -> dict[str, Any]:
    """Versions, hardware, and whether copying memory moved since ``before`` was measured."""
    drift = abs(copying() / before - 1.0)
    return {
        "versions": installed_versions(),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "drift": round(drift, 3),
        "void": drift > DRIFT,
    }


def _faults(work: int) -> list[dict[str, Any]]:
    return [{"site": None, "round": None, "kind": f"work {work}"}] if work else []


def _run(record: Mapping[str, Any], *, began: float, seconds: float, memory: float, folder: Path) -> Run:
    """What a run showed; ``folder`` is the server's of this job, which holds its log."""
    rounds = [one for one in record["rounds"] if one["stage"] == "pretraining"]
    return Run(
        walls=[one["wall_seconds"] for one in rounds[1:]],
        seconds=seconds,
        megabytes=next(iter(rounds[0]["sites"].values()))["bytes_down"] / 1e6,
        server_megabytes=memory,
        began=began,
        log=(folder / "log.txt").read_text(errors="replace"),
    )


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _is_simulator(words: list[str]) -> bool:
    """The simulator's main process, in which the server runs; its sites have processes of their own."""
    return "fedmedseg.core.flare_simulator" in words


def _is_server_job(words: list[str]) -> bool:
    return any(word.endswith("server.runner_process") for word in words)
