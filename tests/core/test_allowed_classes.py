"""The class allow-list covers what our jobs name, and no more than it says."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.fl_component import FLComponent

from fedmedseg.core.allowed_classes import CLASS_ALLOW_LIST, class_policy, list_problems, simulator_resources

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("jobs/*/app/config/*.json"))


def class_paths(node: Any) -> Iterator[str]:
    """Every class a configuration names, those of nested arguments too."""
    if isinstance(node, dict):
        for key in ("path", "class_path"):
            if isinstance(node.get(key), str):
                yield node[key]
        for value in node.values():
            yield from class_paths(value)
    elif isinstance(node, list):
        for value in node:
            yield from class_paths(value)


def test_the_committed_policy_is_the_one_the_command_writes() -> None:
    committed = ROOT / "simulator_workspace" / "local" / "resources.json"
    assert json.loads(committed.read_text()) == simulator_resources()


def test_there_are_jobs_to_judge() -> None:
    assert len(CONFIGS) >= 2
    assert all(list(class_paths(json.loads(file.read_text()))) for file in CONFIGS)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: f"{file.parents[2].name}: {file.stem}")
def test_every_class_a_job_names_is_allowed_and_a_component_of_flare(file: Path) -> None:
    for path in class_paths(json.loads(file.read_text())):
        assert path in CLASS_ALLOW_LIST, f"{file.name} names {path}"


def test_the_list_holds_what_jobs_name_and_nothing_else() -> None:
    named = {path for file in CONFIGS for path in class_paths(json.loads(file.read_text()))}
    assert sorted(named) == list(CLASS_ALLOW_LIST)


@pytest.mark.parametrize("path", CLASS_ALLOW_LIST)
def test_every_entry_is_one_class_where_it_is_defined(path: str) -> None:
    """FLARE would build whatever lies at the path: no name that a module merely imports, and no function."""
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, type)
    assert found.__module__ == module
    assert issubclass(found, FLComponent) or path.endswith(".HTMLReporter"), path


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"class_list_enforcement_mode": "warn"}, ["class_list_enforcement_mode is 'warn'"]),
        ({"class_allow_list": [*CLASS_ALLOW_LIST, "fedmedseg."]}, ["wider than our jobs need: fedmedseg."]),
        ({"class_allow_list": list(CLASS_ALLOW_LIST[1:])}, [f"our jobs cannot run without {CLASS_ALLOW_LIST[0]}"]),
        ({"class_allow_list": "fedmedseg."}, ["class_allow_list is a str instead of a list"]),
    ],
)
def test_what_is_wrong_with_a_policy_is_told(change: dict[str, Any], found: list[str]) -> None:
    problems = list_problems({**class_policy(), **change})
    assert len(problems) == len(found)
    for problem, beginning in zip(problems, found, strict=True):
        assert problem.startswith(beginning)


def test_a_policy_without_a_list_is_told() -> None:
    assert len(list_problems({})) == 1
