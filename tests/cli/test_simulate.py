"""`fedmedseg simulate` refuses what cannot work before anything is started, and says how to mend it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fedmedseg.cli.main import app
from fedmedseg.cli.study import read_study


def simulate(tmp_path: Path, *options: str) -> tuple[int, str]:
    """Exit code and everything said; no simulator is ever started by these calls."""
    workspace = tmp_path / "w"
    before = {path for path in tmp_path.rglob("*") if "w" not in path.parts[len(tmp_path.parts)]}
    result = CliRunner().invoke(app, ["simulate", "fedata", "-w", str(workspace), *options])
    assert {path for path in tmp_path.rglob("*") if "w" not in path.parts[len(tmp_path.parts)]} == before
    assert not (workspace / "server").exists()
    return result.exit_code, " ".join(result.output.split())


def site_files(folder: Path, content: dict, data_list: dict | None = None) -> Path:
    folder.mkdir()
    (folder / "ward.yaml").write_text(yaml.safe_dump(content))
    if data_list is not None:
        (folder / "datalist.json").write_text(json.dumps(data_list))
    return folder


LISTED = {"datasets": {"cmr": {"list": "datalist.json"}}}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "segmentation.batchs=3"], ["segmentation.batchs", "write 'batch'"]),
        (["--set", "network.feature_siz=24"], ["network.feature_siz", "write 'feature_size'"]),
        (["--set", "fedata.mask_unit=12"], ["fedata.mask_unit", "got 12", "use 16"]),
        (["--set", "data.crop=[60, 64]"], ["data.crop", "divide by 32"]),
        (["--set", "data.labels={1: a, 3: b}"], ["data.labels", "without a gap"]),
        (["--set", "federation.quorum=4", "-n", "3"], ["federation.quorum", "got 4", "at most 3"]),
        (["--set", "stages.pretraining"], ["--set", "section.key=value"]),
        (["-n", "2", "-t", "3"], ["-t", "got 3", "1 to 2"]),
        (["-n", "0"], ["-n", "at least 1 site"]),
        (["-n", "99999999999999999999"], ["-n", "at most 10000"]),
        (["--set", "data.phantom.sites=99999999999"], ["data.phantom.sites: got 99999999999", "10000"]),
        (["-n", "2", "-c", "a,b"], ["-n and -c", "one of them"]),
        (["-c", "a,a"], ["-c", "different site names"]),
        (["--preset", "sunnybrok"], ["preset", "write 'sunnybrook'"]),
        (["--preset", "sunnybrook", "-n", "2"], ["site files", "none for site-1, site-2", "--sites"]),
    ],
)
def test_a_wrong_setting_is_told_with_its_remedy(tmp_path: Path, options: list[str], words: list[str]) -> None:
    code, said = simulate(tmp_path, *options)
    assert code == 2
    for word in words:
        assert word in said


def test_a_run_that_is_to_tell_mlflow_asks_for_the_package_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedmedseg.core import tracking

    monkeypatch.setattr(tracking, "PACKAGE", "a_package_that_is_nowhere")
    code, said = simulate(tmp_path, "--mlflow", "results")
    assert code == 2
    assert "--mlflow: got an environment without the package" in said
    assert 'pip install "fedmedseg[tracking]"' in said
    assert not (tmp_path / "w").exists()


def test_a_misfitting_encoder_is_told_without_options_of_other_commands(tmp_path: Path) -> None:
    import torch

    from fedmedseg.core.jobs import find_job, read_settings
    from fedmedseg.networks.factory import build_segmentation

    model = build_segmentation(read_settings(find_job("fedata"), [])[1])
    torch.save(model.swinViT.state_dict(), tmp_path / "theirs.pt")
    code, said = simulate(tmp_path, "--encoder", str(tmp_path / "theirs.pt"), "--set", "network.window=3")
    assert code == 2
    assert "set network.* and data.crop to those of the file" in said
    assert "--min-matched" not in said


def test_a_run_that_cannot_be_continued_costs_nothing_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLARE empties the workspace at its start, the finished report with it."""
    from fedmedseg.cli import simulate as module
    from fedmedseg.core.jobs import find_job, read_settings
    from fedmedseg.core.state import SiteState

    started: list[bool] = []
    monkeypatch.setattr(module, "_run", lambda study, *_: started.append(study.experiment.resume))
    code, said = simulate(tmp_path, "--resume")
    assert (code, started, list(tmp_path.iterdir())) == (2, [], [])
    assert "--resume: got no earlier run of fedata" in said
    assert "drop --resume" in said

    experiment = read_settings(find_job("fedata"), [])[1]
    root = tmp_path / "w.fedmedseg" / "server" / "state"
    SiteState(root, study=experiment.study, experiment=experiment.digest, site="server", run="first")
    report = tmp_path / "w" / "report.html"
    report.parent.mkdir()
    report.write_text("finished")
    for change in ("seed=99", "segmentation.steps=7"):
        code, said = simulate(tmp_path, "--resume", "--set", change)
        assert (code, started) == (2, [])
        assert f"with other settings alone ({experiment.digest[:16]})" in said
    code, said = simulate(tmp_path, "--resume", "--set", "study=elsewhere")
    assert (code, started) == (2, [])
    assert f"no earlier run of elsewhere, but of {experiment.study}." in said
    assert report.read_text() == "finished"

    assert simulate(tmp_path, "--resume")[0] == 0
    assert simulate(tmp_path, "--set", "seed=99")[0] == 0
    assert simulate(tmp_path, "--set", "seed=99", "--set", "resume=true")[0] == 0, (
        "as the job says, which may start anew"
    )
    assert started == [True, False, True]


@pytest.mark.parametrize(("kept", "words"), [(False, "the same call starts it again"), (True, "with --resume")])
def test_an_interrupted_run_says_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool, words: str
) -> None:
    from fedmedseg.cli import simulate as module
    from fedmedseg.core.state import SiteState

    def run(study, workspace, *_) -> None:
        if kept:
            experiment = study.experiment
            root = workspace.with_name("w.fedmedseg") / "server" / "state"
            SiteState(root, study=experiment.study, experiment=experiment.digest, site="server", run="first")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_run", run)
    result = CliRunner().invoke(app, ["simulate", "fedata", "-w", str(tmp_path / "w")])
    assert result.exit_code == 130
    assert words in " ".join(result.output.split())


def test_an_unknown_job_is_told_with_the_nearest_name() -> None:
    result = CliRunner().invoke(app, ["simulate", "fedat"])
    assert result.exit_code == 2
    assert "write 'fedata'" in " ".join(result.output.split())


def test_a_missing_data_list_is_told_before_the_run(tmp_path: Path) -> None:
    code, said = simulate(tmp_path, "--sites", str(site_files(tmp_path / "sites", LISTED)))
    assert code == 2
    assert "datalist.json" in said


def test_of_a_refused_call_nothing_stays_and_an_earlier_workspace_does(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    options = ("simulate", "fedata", "-w", str(here / "w"), "--sites", str(site_files(tmp_path / "sites", LISTED)))
    for earlier in (False, True):
        if earlier:
            (here / "w" / "local").mkdir(parents=True)
            (here / "w.fedmedseg" / "site-1" / "models").mkdir(parents=True)
        result = CliRunner().invoke(app, list(options))
        assert result.exit_code == 2
        assert "no file" in " ".join(result.output.split())
        assert (here / "w").is_dir() == earlier
        assert (here / "w.fedmedseg" / "site-1" / "models").is_dir() == earlier
    earlier_file = here / "w" / "local" / "sites" / "ward.yaml"
    earlier_file.parent.mkdir()
    earlier_file.write_text("of an earlier call")
    assert CliRunner().invoke(app, list(options)).exit_code == 2
    assert earlier_file.read_text() == "of an earlier call", "a refused call leaves no data for the next one"


def test_a_workspace_of_too_long_a_name_is_refused_in_words(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["simulate", "fedata", "-w", str(tmp_path / ("w" * 300))])
    assert result.exit_code == 2
    assert "choose another with -w" in " ".join(result.output.split())


def test_a_data_list_that_names_absent_files_is_told_with_their_number(tmp_path: Path) -> None:
    cases = {"training": [{"image": f"{name}.nii.gz", "label": f"{name}-l.nii.gz"} for name in "ab"]}
    code, said = simulate(tmp_path, "--sites", str(site_files(tmp_path / "sites", LISTED, cases)))
    assert code == 2
    assert "4" in said


def test_a_site_without_the_role_is_told_which_it_has(tmp_path: Path) -> None:
    content = {"datasets": {"abdominal_ct": {"list": "datalist.json"}}}
    code, said = simulate(tmp_path, "--sites", str(site_files(tmp_path / "sites", content)))
    assert code == 2
    assert "abdominal_ct" in said
    assert "'cmr'" in said


def test_an_unknown_key_of_a_site_file_is_told_with_the_nearest(tmp_path: Path) -> None:
    code, said = simulate(tmp_path, "--sites", str(site_files(tmp_path / "sites", LISTED | {"state_dr": "x"})))
    assert code == 2
    assert "write 'state_dir'" in said


def test_a_folder_without_site_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, said = simulate(tmp_path, "--sites", str(tmp_path / "empty"))
    assert code == 2
    assert "folder of <site>.yaml files" in said


def test_a_workspace_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("a file where the workspace should be")
    result = CliRunner().invoke(app, ["simulate", "fedata", "-w", str(tmp_path / "w")])
    assert result.exit_code == 2
    assert "choose another with -w" in " ".join(result.output.split())
    assert (tmp_path / "w").read_text() == "a file where the workspace should be"


def test_a_folder_that_holds_files_of_ones_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    result = CliRunner().invoke(app, ["simulate", "fedata", "-w", str(tmp_path / "precious")])
    assert result.exit_code == 2
    assert "which holds thesis.txt" in " ".join(result.output.split())
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["precious"], "no folder beside it either"


def test_a_workspace_with_a_space_is_refused(tmp_path: Path) -> None:
    """FLARE's simulator splits its own commands at spaces."""
    result = CliRunner().invoke(app, ["simulate", "fedata", "-w", str(tmp_path / "my study")])
    assert result.exit_code == 2
    assert "a path without spaces" in " ".join(result.output.split())
    assert not (tmp_path / "my study").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        result = CliRunner().invoke(app, ["simulate", "fedata", "-w", str(tmp_path / "w")])
    finally:
        tmp_path.chmod(0o700)
    assert result.exit_code == 2


def test_site_files_are_placed_with_paths_that_do_not_depend_on_their_folder(tmp_path: Path) -> None:
    from fedmedseg.cli.simulate import _place_site_files, _site_files_of

    sites = site_files(tmp_path / "sites", LISTED | {"cache_dir": "../cache"}, {})
    _place_site_files(_site_files_of(sites, ("ward",)), tmp_path / "w")
    placed = yaml.safe_load((tmp_path / "w" / "local" / "sites" / "ward.yaml").read_text())
    assert placed["datasets"]["cmr"]["list"] == str(sites / "datalist.json")
    assert placed["cache_dir"] == str(tmp_path / "cache")


@pytest.mark.parametrize("name", ["../x", "server", "St.Mary", "a b", "Local", "-n"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(tmp_path: Path, name: str) -> None:
    code, said = simulate(tmp_path, f"-c=site-1,{name}")
    assert code == 2
    assert "a site name of letters" in said
    assert not list(tmp_path.rglob("x"))


def test_a_site_without_its_file_is_named_with_those_that_have_one(tmp_path: Path) -> None:
    code, said = simulate(tmp_path, "--sites", str(site_files(tmp_path / "sites", LISTED, {})), "-c", "ward,clinic")
    assert code == 2
    assert "no site file for clinic" in said
    assert "ward" in said


def test_a_workspace_in_use_is_refused(tmp_path: Path) -> None:
    from fedmedseg.core.simulation import claimed, prepare_workspace

    prepare_workspace(tmp_path / "w", {})
    with claimed(tmp_path / "w"):
        code, said = simulate(tmp_path)
        assert code == 2
        assert "another run is under way" in said
    with claimed(tmp_path / "w"):
        pass


def test_the_number_of_sites_decides_what_phantom_sites_share_out_and_nothing_else() -> None:
    from fedmedseg.cli.simulate import _shared_out

    shared = read_study("segviz", None, None, None)
    four = _shared_out(shared, 4)
    assert four.experiment.data.phantom.sites == 4
    assert four.experiment.digest != shared.experiment.digest
    assert _shared_out(shared, 2) is shared
    styled = read_study("fedata", None, None, None)
    assert _shared_out(styled, 4) is styled


def test_sites_whose_models_are_of_an_earlier_run_are_named(tmp_path: Path) -> None:
    from fedmedseg.cli.simulate import _of_earlier_runs

    for folder in ("site-1/models/heart", "site-3/models/heart", "site-2/models/other", "server/results/heart"):
        (tmp_path / folder).mkdir(parents=True)
    assert _of_earlier_runs(tmp_path, "heart", ("site-1", "site-2")) == ["site-3"]
    assert _of_earlier_runs(tmp_path / "nothing", "heart", ("site-1",)) == []


@pytest.mark.parametrize("left", [False, True])
def test_real_data_and_phantoms_are_told_apart_and_so_are_an_earlier_calls_site_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: bool
) -> None:
    """Nobody who leaves --sites out should mistake the data of the call before for phantoms."""
    from fedmedseg.cli.simulate import _check_site_files, _place_site_files, _site_files_of

    listed = {part: [] for part in ("training", "validation", "test")}
    sites = site_files(tmp_path / "sites", LISTED, listed)
    _place_site_files(_site_files_of(sites, ("ward",)), tmp_path / "w")
    experiment = read_study("fedata", None, None, None).experiment
    _check_site_files(tmp_path / "w" / "local" / "sites", ("ward", "site-1"), experiment, left=left)
    said = " ".join(capsys.readouterr().out.split())
    earlier = f", of an earlier call, in {tmp_path / 'w' / 'local' / 'sites'}: name --sites for others"
    assert said == f"site files: ward{earlier if left else ''} phantoms: site-1"
