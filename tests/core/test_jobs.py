"""Job folders: found by name, copied with other settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmedseg.core import jobs
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.jobs import EXPERIMENT, find_job, find_preset, merged, read_settings, setting, write_job


@pytest.fixture
def bundle(tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source tree with one job and one preset, the only place where jobs are looked for."""
    job = tmp_path / "jobs" / "toy"
    (job / EXPERIMENT).parent.mkdir(parents=True)
    (job / EXPERIMENT).write_text(yaml.safe_dump(settings))
    (job / "meta.json").write_text(json.dumps({"name": "toy"}))
    presets = tmp_path / "app_configs" / "presets" / "toy"
    presets.mkdir(parents=True)
    (presets / "paper.yaml").write_text("toy: {rate: 0.125}\n")
    monkeypatch.setattr(jobs, "bundle_roots", lambda: [tmp_path])
    return tmp_path


def test_a_job_is_found_by_name_and_by_folder(bundle: Path) -> None:
    assert find_job("toy") == find_job(str(bundle / "jobs" / "toy")) == (bundle / "jobs" / "toy").resolve()


def test_the_first_root_wins(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nearer = tmp_path / "nearer"
    (nearer / "jobs" / "toy").mkdir(parents=True)
    (nearer / "jobs" / "toy" / "meta.json").write_text("{}")
    monkeypatch.setattr(jobs, "bundle_roots", lambda: [nearer, bundle])
    assert find_job("toy") == (nearer / "jobs" / "toy").resolve()


def test_an_unknown_job_or_preset_is_told_with_the_nearest(bundle: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"job: got 'toi'.*write 'toy'"):
        find_job("toi")
    with pytest.raises(ConfigurationError, match=r"preset: got 'papers'.*write 'paper'"):
        find_preset("toy", "papers")


def test_a_preset_is_found_by_name_and_by_file(bundle: Path) -> None:
    file = bundle / "app_configs" / "presets" / "toy" / "paper.yaml"
    assert find_preset("toy", "paper") == find_preset("toy", str(file)) == file


def test_the_repositorys_own_jobs_are_found_from_the_installed_package() -> None:
    assert (find_job("fedata") / EXPERIMENT).is_file()


@pytest.mark.parametrize(
    ("settings", "changes", "result"),
    [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 5}}, {"a": 1, "b": {"c": 5, "d": 3}}),
        ({"a": 1}, {"b": {"c": 2}}, {"a": 1, "b": {"c": 2}}),
        ({"a": {"b": 1}}, {"a": 2}, {"a": 2}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({"a": 1}, {"b": None}, {"a": 1}),
        ({"a": False}, {"a": 0}, {"a": 0}),
        (
            {"network": {"name": "swin", "window": 4}},
            {"network": {"name": "unetr", "heads": 2}},
            {"network": {"name": "unetr", "heads": 2}},
        ),
        (
            {"network": {"name": "swin", "window": 4}},
            {"network": {"name": "swin", "depth": 2}},
            {"network": {"name": "swin", "window": 4, "depth": 2}},
        ),
    ],
)
def test_changes_are_laid_over_settings(settings: Any, changes: Any, result: Any) -> None:
    before = json.dumps([settings, changes])
    assert merged(settings, changes) == result
    assert json.dumps([settings, changes]) == before, "neither is changed"


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("seed=3", {"seed": 3}),
        ("stages.training.rounds=2", {"stages": {"training": {"rounds": 2}}}),
        ("data.crop=[32, 32]", {"data": {"crop": [32, 32]}}),
        ("data.labels.1=liver", {"data": {"labels": {1: "liver"}}}),
        ("study=a=b", {"study": "a=b"}),
        ("network.window=", {"network": {"window": None}}),
        ("resume=true", {"resume": True}),
    ],
)
def test_a_setting_in_words(text: str, content: dict[str, Any]) -> None:
    assert setting(text) == content


@pytest.mark.parametrize("text", ["", "seed", "=3", ".a=3", "a..b=3", "a.=3", "a=[1", "a={b"])
def test_what_is_no_setting_is_told(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--set"):
        setting(text)


def test_settings_are_read_with_changes_over_them(toy: None, bundle: Path) -> None:
    content, experiment = read_settings(bundle / "jobs" / "toy", [{"toy": {"rate": 0.25}}, setting("seed=9")])
    assert (experiment.wing.rate, experiment.seed) == (0.25, 9)
    assert content["toy"] == {"rate": 0.25}


def test_labels_of_a_change_replace_the_jobs_labels(toy: None, bundle: Path) -> None:
    _, experiment = read_settings(bundle / "jobs" / "toy", [{"data": {"labels": {1: "liver"}}}])
    assert experiment.data.labels == {1: "liver"}


def test_a_wrong_change_is_told_before_anything_runs(toy: None, bundle: Path) -> None:
    with pytest.raises(ConfigurationError, match="write 'seed'"):
        read_settings(bundle / "jobs" / "toy", [{"sede": 1}])


def test_a_job_is_copied_with_its_settings_and_replaces_an_older_copy(toy: None, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "toy"
    out.mkdir(parents=True)
    (out / "stale").touch()
    job = bundle / "jobs" / "toy"
    content, experiment = read_settings(job, [{"seed": 9}])
    write_job(job, content, out)
    assert read_settings(out, [])[1].digest == experiment.digest
    assert (out / "meta.json").read_text() == (job / "meta.json").read_text()
    assert not (out / "stale").exists()
    assert read_settings(job, [])[1].seed == 7, "the original is as it was"
