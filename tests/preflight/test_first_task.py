"""What a site checks before its first task: quickly, in a real federation only, and told by reason code alone."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from nvflare.apis.fl_constant import FLContextKey, ReservedKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from fedmedseg.core import audit, kit_checks
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.executor import TrainingExecutor
from fedmedseg.core.findings import Level
from fedmedseg.core.first_task import first_task_checks, require_fit
from fedmedseg.core.place import Place
from fedmedseg.core.versions import own_versions
from fedmedseg.core.wire import Header


@pytest.fixture
def fresh(federation: Any) -> Path:
    """A kit that is valid by this machine's own clock."""
    now = datetime.now(UTC)
    dates = {"start": now - timedelta(days=1), "end": now + timedelta(days=90)}
    kit: Path = federation.kit(**dates, root=federation.root(**dates))
    return kit


def place(kit: Path, *, simulated: bool = False) -> Place:
    return Place(
        name="hospital-1",
        simulated=simulated,
        folder=kit.name,
        workspace=kit,
        local=kit / "local",
        config=kit / "job" / "app" / "config",
        run=kit / "job",
    )


def test_a_sound_kit_passes(fresh: Path) -> None:
    findings = first_task_checks(fresh, run=fresh / "job")
    assert [one for one in findings if one.level is Level.FAIL] == []
    assert {
        "python",
        "packages",
        "clock",
        "disk",
        "certificate dates",
        "private key",
        "package",
        "package files",
        "class allow-list",
        "privacy",
    } <= {one.check for one in findings}
    require_fit(place(fresh))


def test_every_failed_check_is_named_and_nothing_of_it_told(fresh: Path, caplog: pytest.LogCaptureFixture) -> None:
    (fresh / "local" / "privacy.json").unlink()
    (fresh / "local" / "resources.json").write_text("{}")
    with pytest.raises(FedMedSegError) as refused:
        require_fit(place(fresh))
    assert refused.value.public == "PREFLIGHT: class allow-list, privacy"
    assert refused.value.reason is Reason.PREFLIGHT
    assert "no local/privacy.json" in refused.value.local
    assert "as it was provisioned" in refused.value.local
    assert str(fresh) not in refused.value.local


def test_a_warning_is_logged_and_stops_nothing(fresh: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    (fresh / "startup" / "client.key").chmod(0o644)
    require_fit(place(fresh))
    assert "preflight, private key: they belong together" in caplog.text
    assert str(fresh) not in caplog.text


def test_a_certificate_that_ended_refuses_the_task(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = datetime.now(UTC) + timedelta(days=91)
    monkeypatch.setattr(kit_checks, "today", lambda: later)
    with pytest.raises(FedMedSegError, match="certificate dates"):
        require_fit(place(fresh))


@pytest.mark.parametrize("version", [None, "9.9"])
def test_a_package_that_is_not_the_kits_refuses_the_task(fresh: Path, version: str | None) -> None:
    file = fresh / "startup" / "release.json"
    content = json.loads(file.read_text())
    file.unlink()
    if version is not None:
        file.write_text(json.dumps({**content, "version": version}))
    with pytest.raises(FedMedSegError) as refused:
        require_fit(place(fresh))
    assert refused.value.public == "PREFLIGHT: package"


def test_a_real_federation_without_a_kit_is_refused_and_the_simulator_has_none(tmp_path: Path) -> None:
    with pytest.raises(FedMedSegError) as refused:
        require_fit(place(tmp_path))
    assert refused.value.public == "PREFLIGHT: startup kit"
    require_fit(place(tmp_path, simulated=True))


class Never(TrainingExecutor):
    """A site that must not get as far as its learner."""

    def make_learner(self, experiment: Any, place: Place) -> Any:
        raise AssertionError("built although the kit is unsafe")


def context(kit: Path, *, simulated: bool) -> FLContext:
    workspace = MagicMock()
    workspace.get_root_dir.return_value = str(kit)
    workspace.get_site_config_dir.return_value = str(kit / "local")
    workspace.get_app_config_dir.return_value = str(kit / "job" / "app" / "config")
    workspace.get_run_dir.return_value = str(kit / "job")
    engine = MagicMock()
    engine.get_workspace.return_value = workspace
    fl_ctx = FLContext()
    for key, value in (
        (ReservedKey.ENGINE, engine),
        (ReservedKey.IDENTITY_NAME, "hospital-1"),
        (ReservedKey.RUN_NUM, "job"),
        (FLContextKey.SIMULATE_MODE, simulated),
    ):
        fl_ctx.set_prop(key, value, private=True, sticky=False)
    return fl_ctx


def request() -> Shareable:
    """A task of a server with the same versions, and nothing else in it."""
    task = Shareable()
    task.set_header(Header.VERSIONS, own_versions())
    return task


def test_the_executor_answers_its_first_task_with_the_reason(fresh: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    (fresh / "local" / "privacy.json").unlink()
    reply = Never().execute("pretraining", request(), context(fresh, simulated=False), Signal())
    assert reply.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert reply.get_header(Header.REASON) == "PREFLIGHT: privacy"
    assert str(fresh) not in str(dict(reply))
    assert "FLARE accepts any scope and filters nothing" in caplog.text
    (told,) = audit.read(fresh / audit.FOLDER)
    assert (told["outcome"], told["reason"]) == ("refused", "PREFLIGHT: privacy")


def test_the_simulators_executor_checks_no_kit(fresh: Path) -> None:
    (fresh / "local" / "privacy.json").unlink()
    reply = Never().execute("pretraining", request(), context(fresh, simulated=True), Signal())
    # it went on to the study, which is not there
    assert reply.get_header(Header.REASON) == "CONFIGURATION: experiment.yaml"
