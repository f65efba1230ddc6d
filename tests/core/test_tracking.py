"""MLflow is FLARE's own receiver, named by a job on demand alone, and missing packages are said in plain words."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ProcessType
from nvflare.apis.fl_context import FLContext

from fedmedseg.core import tracking
from fedmedseg.core.allowed_classes import CLASS_ALLOW_LIST, OPTIONAL_AT_SERVER, simulator_resources, without_optional
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.jobs import CONFIG, find_job
from fedmedseg.core.server_events import tell_figures
from fedmedseg.core.tracking import (
    ANALYTICS_EVENT,
    MLFLOW_RECEIVER,
    add_mlflow,
    check_uri,
    component,
    require_mlflow,
    wants_mlflow,
)

JOBS = sorted(path.name for path in (Path(__file__).parents[2] / "jobs").iterdir() if path.is_dir())


@pytest.mark.parametrize("name", JOBS)
def test_no_job_tracks_unless_it_is_asked_to(name: str) -> None:
    assert not wants_mlflow(find_job(name))


def test_flares_receiver_writes_what_the_server_tells_where_mlflow_reads_it(
    context: Callable[..., FLContext], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An experiment a study, a run a site, a step a round; the file of results alone, and nobody on the network."""
    pytest.importorskip("mlflow", reason="the extra tracking is not installed")
    # FLARE's receiver sets it for the whole process
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, MagicMock(side_effect=AssertionError("the network is asked")))
    from mlflow.tracking.client import MlflowClient

    described = component("heart")
    module, _, name = described["path"].rpartition(".")
    receiver = getattr(importlib.import_module(module), name)(**described["args"])
    assert receiver.events == [ANALYTICS_EVENT]
    server = context("server")
    engine = server.get_engine()
    engine.get_workspace().get_result_root.return_value = str(tmp_path)
    engine.get_clients.return_value = [SimpleNamespace(name=one) for one in ("east", "west")]
    server.set_prop(FLContextKey.PROCESS_TYPE, ProcessType.SERVER_JOB, private=True, sticky=False)
    server.set_prop(FLContextKey.WORKSPACE_OBJECT, engine.get_workspace(), private=True, sticky=False)
    engine.new_context.return_value.__enter__.side_effect = lambda: context("server")
    engine.fire_event.side_effect = receiver.handle_event
    receiver.handle_event(EventType.START_RUN, server)
    for number, losses in enumerate([{"east": 0.5, "west": 0.75}, {"east": 0.25, "west": 0.625}]):
        sites = {site: {"metrics": {"loss": loss}} for site, loss in losses.items()}
        tell_figures({"stage": "pretraining", "round": number, "sites": sites}, engine)
    receiver.handle_event(EventType.END_RUN, server)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("heart")
    runs = {run.info.run_name.partition("-")[0]: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {"east": "FINISHED", "west": "FINISHED"}
    told = {
        name: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "pretraining/loss")]
        for name, run in runs.items()
    }
    assert told == {"east": [(0, 0.5), (1, 0.25)], "west": [(0, 0.75), (1, 0.625)]}


def test_mlflow_tells_its_makers_nothing_unless_that_is_wanted() -> None:
    """MONAI imports it wherever it is installed, so this package has said no before."""
    pytest.importorskip("mlflow", reason="the extra tracking is not installed")
    look = "import fedmedseg, monai; from mlflow.telemetry.client import get_telemetry_client as c; print(c())"
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-c", look], env=kept, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[-1] == "None"


@pytest.mark.parametrize("uri", [None, "https://tracking.example.org:5000"])
def test_a_job_names_it_once_beside_all_it_named_before(tmp_path: Path, uri: str | None) -> None:
    job = Path(shutil.copytree(find_job("fedavg"), tmp_path / "job"))
    file = job / CONFIG / "config_fed_server.json"
    before = json.loads(file.read_text())
    add_mlflow(job, "earlier", "http://elsewhere")
    add_mlflow(job, "heart", uri)
    after = json.loads(file.read_text())
    *others, added = after["components"]
    assert others == before["components"]
    assert {key: after[key] for key in after if key != "components"} == {
        key: before[key] for key in before if key != "components"
    }
    expected = {"events": ["fed.analytix_log_stats"], "kw_args": {"experiment_name": "heart"}}
    assert added == {
        "id": "mlflow",
        "path": MLFLOW_RECEIVER,
        "args": expected if uri is None else {"tracking_uri": uri, **expected},
    }
    assert wants_mlflow(job)


@pytest.mark.parametrize(
    "uri",
    ["", "somewhere", "file:///data/mlruns", "sqlite:///x.db", "http://", "https://ann:secret@tracking.example.org"],
)
def test_an_address_that_is_none_is_refused_and_no_password_is_repeated(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="--mlflow: got") as caught:
        check_uri(uri, option="--mlflow")
    assert "secret" not in str(caught.value)


def test_a_missing_package_is_said_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "PACKAGE", "a_package_that_is_nowhere")
    with pytest.raises(ConfigurationError, match=r"without the package mlflow.*fedmedseg\[tracking\]"):
        require_mlflow(option="--mlflow")
    monkeypatch.setattr(tracking, "PACKAGE", "json")
    require_mlflow(option="--mlflow")


def test_no_list_holds_the_receiver_unless_it_was_added() -> None:
    assert MLFLOW_RECEIVER in OPTIONAL_AT_SERVER
    assert not set(OPTIONAL_AT_SERVER) & set(CLASS_ALLOW_LIST)
    assert MLFLOW_RECEIVER not in simulator_resources()["class_allow_list"]
    wider = simulator_resources(added=OPTIONAL_AT_SERVER)
    assert wider["class_allow_list"] == [*CLASS_ALLOW_LIST, MLFLOW_RECEIVER]
    assert without_optional(wider) == simulator_resources()
    assert without_optional({"class_allow_list": 3}) == {"class_allow_list": 3}
