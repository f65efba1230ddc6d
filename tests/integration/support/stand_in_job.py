"""A system's job whose executors stand in for its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmedseg.core.jobs import read_settings, write_job

JOB = Path(__file__).parents[3] / "jobs" / "fedata"


def stand_in_job(out: Path, changes: Mapping[str, Any]) -> Path:
    """FedATA's job with stand-in executors, a reporter that writes nothing, and other settings."""
    settings, _ = read_settings(JOB, [{"compute": {"threads": 1}}, changes])
    job = write_job(JOB, settings, out)
    client = job / "app" / "config" / "config_fed_client.json"
    content = json.loads(client.read_text())
    content["executors"] = [{"tasks": ["*"], "executor": {"path": "stand_ins.StandInExecutor"}}]
    client.write_text(json.dumps(content))
    server = job / "app" / "config" / "config_fed_server.json"
    content = json.loads(server.read_text())
    for component in content["components"]:
        if component["id"] == "record":
            component["args"]["reporter"]["path"] = "stand_ins.SilentReporter"
    server.write_text(json.dumps(content))
    return job
