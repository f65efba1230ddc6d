"""The look at a job's classes when it is deployed, by FLARE's own rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedmedseg.core.deployed_classes import CONFIG, AllowedClasses
from fedmedseg.core.jobs import find_job

OURS = {"path": "fedmedseg.core.records.RunRecord"}
FOREIGN = {"path": "collections.OrderedDict", "args": {}}
REFUSED = "a class outside class_allow_list: collections.OrderedDict"


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kit, in which its parent process works."""
    for name in ("startup", "local"):
        (tmp_path / name).mkdir()
    allow(tmp_path, ["fedmedseg."])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def allow(kit: Path, classes: list[str], mode: str = "enforce") -> None:
    content = {"class_allow_list": classes, "class_list_enforcement_mode": mode}
    (kit / "local" / "resources.json").write_text(json.dumps(content))


def app(kit: Path, server: dict[str, Any], client: dict[str, Any] | None = None) -> str:
    folder = kit / "job" / "app"
    (folder / "config").mkdir(parents=True, exist_ok=True)
    for side, content in (("server", server), ("client", client or {})):
        (folder / "config" / CONFIG[side]).write_text(json.dumps({"format_version": 2, **content}))
    return str(folder)


@pytest.mark.parametrize(
    "settings",
    [
        {"components": [OURS, FOREIGN]},
        {"workflows": [{"id": "x", **FOREIGN}]},
        {"executors": [{"tasks": ["*"], "executor": FOREIGN}]},
        {"task_data_filters": [{"tasks": ["*"], "filters": [OURS, FOREIGN]}]},
        {"task_result_filters": [{"tasks": ["*"], "filters": [FOREIGN]}]},
        {"components": [{"class_path": "collections.OrderedDict"}]},
    ],
)
def test_a_foreign_class_is_refused_wherever_it_is_named_outright(kit: Path, settings: dict[str, Any]) -> None:
    folder = app(kit, settings, {"components": [OURS]})
    assert AllowedClasses(side="server").validate(folder) == (REFUSED, {})
    assert AllowedClasses(side="client").validate(folder) == ("", {})


@pytest.mark.parametrize("component", [{"name": "OrderedDict"}, {"path": 3}, {"path": ""}, {"path": "a b/../c"}, {}])
def test_what_names_no_class_is_refused_without_its_words(kit: Path, component: dict[str, Any]) -> None:
    said, _ = AllowedClasses(side="server").validate(app(kit, {"components": [component]}))
    assert said.removeprefix("a class outside class_allow_list: ") in {"no name of a class", "OrderedDict"}


def test_the_list_and_its_mode_are_the_kits_own_as_they_are_now(kit: Path) -> None:
    folder, look = app(kit, {"components": [FOREIGN]}), AllowedClasses(side="server")
    assert look.validate(folder)[0] == REFUSED
    allow(kit, ["fedmedseg.", "collections.OrderedDict"])
    assert look.validate(folder)[0] == ""
    allow(kit, ["fedmedseg."], mode="warn")
    assert look.validate(folder)[0] == ""


def test_what_flare_would_not_build_is_no_reason(kit: Path) -> None:
    assert AllowedClasses(side="server").validate(app(kit, {"components": [{**FOREIGN, "disabled": True}]}))[0] == ""


def test_a_job_with_code_is_left_to_flares_right_to_bring_it(kit: Path) -> None:
    folder = app(kit, {"components": [FOREIGN]})
    (Path(folder) / "custom").mkdir()
    assert AllowedClasses(side="server").validate(folder)[0] == ""


@pytest.mark.parametrize("side", ["server", "client"])
def test_our_own_jobs_pass(kit: Path, side: Any) -> None:
    from fedmedseg.core.allowed_classes import CLASS_ALLOW_LIST

    allow(kit, list(CLASS_ALLOW_LIST))
    assert AllowedClasses(side=side).validate(str(find_job("fedata") / "app")) == ("", {})
