"""Folds: every patient is tested once, nobody is in two sections, and the files stay where they are."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fedmedseg.cli.data import data_app
from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.data.datalist import read_datalist
from fedmedseg.data.folds import fold_sections, write_folds

PATIENTS = [f"p{n}" for n in range(10)]


def sections(fold: int, **changes) -> dict[str, str]:
    settings = {"folds": 3, "fold": fold, "validation": 0.25, "seed": 1, "site": "a", **changes}
    return fold_sections(PATIENTS, **settings)


def test_every_patient_is_tested_in_one_fold_and_placed_in_all() -> None:
    tested = Counter(name for fold in range(3) for name, section in sections(fold).items() if section == "test")
    assert tested == dict.fromkeys(PATIENTS, 1)
    for fold in range(3):
        assert sorted(sections(fold)) == PATIENTS
        counts = Counter(sections(fold).values())
        # 10 patients in hands of 4, 3 and 3; a quarter of the 6 or 7 others, rounded up, is 2
        assert counts == {"test": 4 if fold == 0 else 3, "validation": 2, "training": 4 if fold == 0 else 5}


def test_seed_and_site_decide_who_is_where() -> None:
    assert sections(0) == sections(0)
    assert sections(0) != sections(0, seed=2)
    assert sections(0) != sections(0, site="b")


def test_choices_need_not_be_made() -> None:
    assert Counter(sections(0, validation=0.0).values()) == {"test": 4, "training": 6}


@pytest.mark.parametrize("changes", [{"folds": 11}, {"validation": 0.99}])
def test_too_few_patients_are_named(changes) -> None:
    with pytest.raises(DataError, match="site a: got 10 labelled patients"):
        sections(0, **changes)


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """A site of eight labelled patients of two volumes each and one unlabelled one; files are empty."""
    home = tmp_path / "data" / "north"
    home.mkdir(parents=True)
    listed = {
        "name": "hearts",
        "labels": {"0": "background", "1": "left"},
        "training": [],
        "validation": [],
        "test": [],
    }
    for index in range(8):
        for phase in ("ed", "es"):
            entry = {"image": f"{index}{phase}.nii.gz", "label": f"{index}{phase}_l.nii.gz", "patient": f"p{index}"}
            section = "training" if index < 4 else "validation" if index < 6 else "test"
            if index == 0:
                entry["annotated_labels"] = [1]
            listed[section].append(entry)
            for file in (entry["image"], entry["label"]):
                (home / str(file)).touch()
    (home / "u.nii.gz").touch()
    listed["unlabeled"] = [{"image": "u.nii.gz", "patient": "p9"}]
    (home / "list.json").write_text(json.dumps(listed))
    sites = tmp_path / "data" / "sites"
    sites.mkdir()
    (sites / "north.yaml").write_text(yaml.safe_dump({"datasets": {"cmr": {"list": "../north/list.json"}}}))
    return sites


def test_folds_are_data_lists_of_the_same_files(hospital: Path, tmp_path: Path) -> None:
    written = write_folds(hospital, out=tmp_path / "folds", folds=4, validation=0.25, seed=1)
    assert [folder.parent.name for folder in written] == ["fold-1", "fold-2", "fold-3", "fold-4"]
    tested: list[str] = []
    for folder in written:
        file = folder / "north.yaml"
        list_ = (file.parent / yaml.safe_load(file.read_text())["datasets"]["cmr"]["list"]).resolve()
        cases = read_datalist(list_, salt="test")
        assert {name: len(found) for name, found in cases.items()} == {
            "training": 8,
            "validation": 4,
            "test": 4,
            "unlabeled": 1,
        }
        tested += sorted({case.patient for case in cases["test"]})
        everyone = [case for section in ("training", "validation", "test") for case in cases[section]]
        assert {case.image.resolve().parent.name for case in everyone} == {"north"}
        assert {case.patient: case.annotated_labels for case in everyone}["p0"] == (1,)
        assert json.loads(list_.read_text())["labels"] == {"0": "background", "1": "left"}
    assert sorted(tested) == [f"p{index}" for index in range(8)]


def test_what_was_written_is_replaced_only_when_asked(hospital: Path, tmp_path: Path) -> None:
    out = tmp_path / "folds"
    write_folds(hospital, out=out, folds=2, validation=0.25, seed=1)
    with pytest.raises(ConfigurationError, match="which holds files"):
        write_folds(hospital, out=out, folds=2, validation=0.25, seed=1)
    write_folds(hospital, out=out, folds=4, validation=0.25, seed=1, force=True)
    assert len(list(out.glob("fold-*"))) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1}, "--folds: got 1"),
        ({"validation": 1.0}, "--validation: got 1.0"),
        ({"empty": True}, "no site file"),
    ],
)
def test_wrong_wishes_are_refused(hospital: Path, tmp_path: Path, changes, message: str) -> None:
    sites = tmp_path if changes.pop("empty", False) else hospital
    with pytest.raises(ConfigurationError, match=message):
        write_folds(sites, out=tmp_path / "folds", **{"folds": 2, "validation": 0.25, "seed": 1, **changes})
    assert not (tmp_path / "folds").exists()


def test_the_command_names_the_folders_of_site_files(hospital: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(data_app, ["folds", str(hospital), "--out", str(tmp_path / "f"), "--folds", "2"])
    assert result.exit_code == 0, result.output
    assert result.output.split() == [str(tmp_path / "f" / "fold-1" / "sites"), str(tmp_path / "f" / "fold-2" / "sites")]
