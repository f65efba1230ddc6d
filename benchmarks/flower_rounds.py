"""Rounds of Flower's simulation whose clients return what they were sent, to compare ours with.

    PYTHON benchmarks/flower_rounds.py SPECIFICATION.json

PYTHON is the interpreter of an environment with `flwr[simulation]`, which need not hold fedmedseg: the two ask for
different versions of the same libraries. The specification names sites, rounds and the shapes of the tensors; the
result is one line of JSON at the end of what is printed: seconds of every round but the first.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

client = ClientApp()
server = ServerApp()
specification: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text()) if len(sys.argv) > 1 else {}
began: list[float] = []


@client.train()
def train(message: Message, context: Context) -> Message:
    """Send back what came."""
    content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)


class Timed(FedAvg):
    """Flower's own average, with the time at which every round begins."""

    def configure_train(self, server_round: int, *arguments: Any, **named: Any) -> Any:
        """Note the time, go on."""
        began.append(time.monotonic())
        return super().configure_train(server_round, *arguments, **named)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    arrays = {name: Array(np.zeros(shape, np.float32)) for name, shape in specification["shapes"].items()}
    rounds, sites = specification["rounds"], specification["sites"]
    strategy = Timed(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(arrays), num_rounds=rounds)
    began.append(time.monotonic())


if __name__ == "__main__":
    backend = {"client_resources": {"num_cpus": 1.0}}
    run_simulation(server_app=server, client_app=client, num_supernodes=specification["sites"], backend_config=backend)
    walls = [after - before for before, after in itertools.pairwise(began)]
    sys.stdout.write("\n" + json.dumps({"walls": walls[1:]}) + "\n")
