"""What a federated round costs beyond training: rounds of the fedata job in which no site trains anything.

    python benchmarks/round_overhead.py --sites 2 --threads 2 --rounds 8

Prints the median wall time of a round and its MAD, for the shipped polling intervals and for FLARE's stock ones
in the same run (interleaved), and writes benchmarks/results/round_overhead.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import yaml

from fedmedseg.core import simulation
from fedmedseg.core.allowed_classes import simulator_resources
from fedmedseg.core.jobs import EXPERIMENT, find_job
from fedmedseg.core.records import installed_versions

SUPPORT = Path(__file__).parents[1] / "tests" / "integration" / "support"
RESULT = Path(__file__).parent / "results" / "round_overhead.json"
STOCK_TASK_REQUEST_SECONDS = 2.0


def noop_job(folder: Path, rounds: int, *, stock: bool) -> Path:
    """The fedata job with executors that return at once."""
    job = folder / "job"
    shutil.copytree(find_job("fedata"), job)
    client = job / "app" / "config" / "config_fed_client.json"
    settings = json.loads(client.read_text())
    settings["executors"] = [{"tasks": ["*"], "executor": {"path": "stand_ins.StandInExecutor"}}]
    client.write_text(json.dumps(settings))
    if stock:
        server = job / "app" / "config" / "config_fed_server.json"
        settings = json.loads(server.read_text())
        settings["server"]["task_request_interval"] = STOCK_TASK_REQUEST_SECONDS
        server.write_text(json.dumps(settings))
    experiment = yaml.safe_load((job / EXPERIMENT).read_text())
    experiment["stages"]["pretraining"]["rounds"] = rounds
    (job / EXPERIMENT).write_text(yaml.safe_dump(experiment))
    return job


def measure(sites: int, threads: int, rounds: int, *, stock: bool) -> dict[str, Any]:
    """One run; the first round, which waits for the processes to start, is dropped."""
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder) / "workspace"
        resources = simulator_resources()
        resources["class_allow_list"].append("stand_ins.")
        simulation.prepare_workspace(workspace, resources)
        call = simulation.Simulation(
            job=noop_job(Path(folder), rounds, stock=stock),
            workspace=workspace,
            sites=tuple(f"site-{index + 1}" for index in range(sites)),
            threads=threads,
            log=Path(folder) / "log",
            environment={"PYTHONPATH": str(SUPPORT)},
        )
        record = simulation.run(call, lambda event: None)
        if record is None or record["outcome"] != "finished":
            raise SystemExit(f"the run did not finish:\n{call.log.read_text()[-2000:]}")
        walls = [entry["wall_seconds"] for entry in record["rounds"] if entry["stage"] == "pretraining"][1:]
        sent = record["rounds"][0]["sites"]["site-1"]["bytes_down"]
        return {"walls": walls, "bytes": sent}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    walls: dict[str, list[float]] = {"shipped": [], "stock task_request_interval": []}
    size = 0
    for _ in range(arguments.repeats):
        for name in walls:
            measured = measure(arguments.sites, arguments.threads, arguments.rounds, stock=name != "shipped")
            walls[name] += measured["walls"]
            size = measured["bytes"]
    result: dict[str, Any] = {
        "command": f"python benchmarks/round_overhead.py --sites {arguments.sites} --threads {arguments.threads} "
        f"--rounds {arguments.rounds} --repeats {arguments.repeats}",
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": installed_versions(),
        "megabytes_each_way": round(size / 1e6, 3),
    }
    for name, values in walls.items():
        median = statistics.median(values)
        mad = statistics.median(abs(value - median) for value in values)
        result[name] = {"median_s": round(median, 3), "mad_s": round(mad, 3), "rounds": len(values)}
        print(f"{name:30s} {median:.3f} s a round (MAD {mad:.3f}, {len(values)} rounds, {size / 1e6:.2f} MB each way)")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
