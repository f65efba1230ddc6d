"""The class allow-list covers what our jobs name, and no more than it says."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedmedseg.privacy.policy import CLASS_ALLOW_LIST, simulator_resources

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


def allowed(path: str) -> bool:
    return any(path.startswith(entry) if entry.endswith(".") else path == entry for entry in CLASS_ALLOW_LIST)


def test_the_committed_policy_is_the_one_the_command_writes() -> None:
    committed = ROOT / "simulator_workspace" / "local" / "resources.json"
    assert json.loads(committed.read_text()) == simulator_resources()


def test_there_are_jobs_to_judge() -> None:
    assert len(CONFIGS) >= 2
    assert all(list(class_paths(json.loads(file.read_text()))) for file in CONFIGS)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: f"{file.parents[2].name}: {file.stem}")
def test_every_class_a_job_names_is_allowed_and_exists(file: Path) -> None:
    for path in class_paths(json.loads(file.read_text())):
        assert allowed(path), f"{file.name} names {path}"
        module, _, name = path.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name), type), path


@pytest.mark.parametrize(
    "path", ["fedmedsegevil.core.X", "os.system", "nvflare.app_opt.tracking.tb.tb_receiver.Other", "fedmedseg", ""]
)
def test_other_classes_are_not_allowed(path: str) -> None:
    assert not allowed(path)


def test_every_allowed_class_of_flare_is_needed_by_a_job() -> None:
    named = {path for file in CONFIGS for path in class_paths(json.loads(file.read_text()))}
    assert {entry for entry in CLASS_ALLOW_LIST if not entry.endswith(".")} <= named


def test_a_package_prefix_ends_with_a_dot() -> None:
    """Without it FLARE would also allow packages whose name merely begins like ours."""
    for entry in CLASS_ALLOW_LIST:
        assert entry.endswith(".") or entry.rpartition(".")[2][:1].isupper(), entry
