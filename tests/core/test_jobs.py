"""Job folders: found by name, copied with other settings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmedseg.core import jobs
from fedmedseg.core.config import systems
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.jobs import (
    EXPERIMENT,
    check_quorum,
    find_job,
    find_preset,
    main_stage,
    merged,
    presets_for_role,
    read_settings,
    setting,
    write_job,
)


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


@pytest.mark.parametrize("text", ["", "seed", "=3", ".a=3", "a..b=3", "a.=3", "a=[1", "a={b", "study=2024-13-45"])
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


def test_a_header_stays_a_comment_whatever_is_in_it(toy: None, bundle: Path, tmp_path: Path) -> None:
    job = bundle / "jobs" / "toy"
    content, experiment = read_settings(job, [])
    out = write_job(job, content, tmp_path / "out", header="made by\n  --set study=x\nseed: 99\r\x0bstudy: y")
    text = (out / EXPERIMENT).read_text()
    assert text.startswith("# made by\n#   --set study=x\n# seed: 99\n")
    assert read_settings(out, [])[1].digest == experiment.digest


def test_entries_of_the_meta_file_are_replaced_and_others_kept(toy: None, bundle: Path, tmp_path: Path) -> None:
    job = bundle / "jobs" / "toy"
    (job / "meta.json").write_text(json.dumps({"name": "toy", "deploy_map": {"app": ["@ALL"]}}))
    out = write_job(job, read_settings(job, [])[0], tmp_path / "out", meta={"name": "study", "min_clients": 3})
    expected = {"name": "study", "deploy_map": {"app": ["@ALL"]}, "min_clients": 3}
    assert json.loads((out / "meta.json").read_text()) == expected


def test_a_job_may_be_written_over_itself(toy: None, bundle: Path) -> None:
    job = bundle / "jobs" / "toy"
    content, _ = read_settings(job, [{"seed": 9}])
    write_job(job, content, job)
    assert read_settings(job, [])[1].seed == 9
    assert [path.name for path in job.parent.iterdir()] == ["toy"]


def test_a_copy_that_cannot_be_finished_leaves_what_was_there(toy: None, bundle: Path, tmp_path: Path) -> None:
    job, out = bundle / "jobs" / "toy", tmp_path / "out"
    write_job(job, read_settings(job, [{"seed": 9}])[0], out)

    def fail(copy: Path) -> None:
        raise ConfigurationError("encoder", got="none")

    with pytest.raises(ConfigurationError):
        write_job(job, read_settings(job, [])[0], out, finish=fail)
    assert read_settings(out, [])[1].seed == 9
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize(("quorum", "sites", "fits"), [("all", 1, True), (0.9, 1, True), (2, 2, True), (3, 2, False)])
def test_only_a_count_can_be_too_many(toy: None, bundle: Path, quorum: str | float, sites: int, fits: bool) -> None:
    _, experiment = read_settings(bundle / "jobs" / "toy", [{"federation": {"quorum": quorum}}])
    if fits:
        check_quorum(experiment, sites)
    else:
        with pytest.raises(ConfigurationError, match=r"federation.quorum: got 3. Expected at most 2, the number of"):
            check_quorum(experiment, sites)


@pytest.mark.parametrize(("rounds", "stage"), [((5, 1, 1), "training"), ((0, 4, 1), "tuning"), ((0, 0, 1), "testing")])
def test_the_main_stage_is_the_first_that_is_not_left_out(
    toy: None, bundle: Path, monkeypatch: pytest.MonkeyPatch, rounds: tuple[int, ...], stage: str
) -> None:
    from fedmedseg.core import config

    monkeypatch.setattr(jobs, "system_module", config.system_module)
    stages = {name: {"rounds": number} for name, number in zip(("training", "tuning", "testing"), rounds, strict=True)}
    assert main_stage(read_settings(bundle / "jobs" / "toy", [{"stages": stages}])[1]) == stage


def test_an_import_is_told_the_presets_for_its_role() -> None:
    assert presets_for_role("fedata", "hippocampus") == ["hippocampus"]
    assert "sunnybrook" in presets_for_role("fedata", "cmr")
    assert presets_for_role("fedata", "knee") == []


@pytest.mark.parametrize("system", systems())
def test_a_written_jobs_page_has_no_link_out_of_its_folder(system: str, tmp_path: Path) -> None:
    settings, _ = read_settings(find_job(system), [])
    out = write_job(find_job(system), settings, tmp_path / "job")
    page = (out / "README.md").read_text(encoding="utf-8")
    assert "](.." not in page
    assert page.startswith("# ")
    shipped = (find_job(system) / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"\(([^()\s]+) of fedmedseg\)", page)
    assert len(named) == shipped.count("](..")
    project = find_job(system).parents[1]
    assert all((project / name.partition("#")[0]).is_file() for name in named)


def test_a_page_that_is_no_utf8_is_copied_as_it_is(tmp_path: Path) -> None:
    settings, _ = read_settings(find_job("fedavg"), [])
    own = write_job(find_job("fedavg"), settings, tmp_path / "own")
    (own / "README.md").write_bytes(b"# caf\xe9 ![x](../../x.png)\n")
    assert (write_job(own, settings, tmp_path / "copy") / "README.md").read_bytes() == (own / "README.md").read_bytes()
