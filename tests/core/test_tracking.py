"""MLflow is FLARE's own receiver, named by a job on demand alone, and missing packages are said in plain words."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from fedmedseg.core import tracking
from fedmedseg.core.allowed_classes import CLASS_ALLOW_LIST, OPTIONAL_AT_SERVER, simulator_resources, without_optional
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.executor import ANALYTICS_EVENT
from fedmedseg.core.jobs import CONFIG, find_job
from fedmedseg.core.tracking import EVENTS, MLFLOW_RECEIVER, add_mlflow, check_uri, require_mlflow, wants_mlflow

JOBS = sorted(path.name for path in (Path(__file__).parents[2] / "jobs").iterdir() if path.is_dir())


@pytest.mark.parametrize("name", JOBS)
def test_no_job_tracks_unless_it_is_asked_to(name: str) -> None:
    assert not wants_mlflow(find_job(name))


def test_the_receiver_is_flares_own_and_hears_what_sites_send() -> None:
    """Its module imports mlflow, so only its place is looked at."""
    module, _, name = MLFLOW_RECEIVER.rpartition(".")
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert f"class {name}(AnalyticsReceiver):" in source
    for argument in ("tracking_uri", "kw_args", "events"):
        assert f"{argument}: Optional[" in source
    assert EVENTS == (ANALYTICS_EVENT,)


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
