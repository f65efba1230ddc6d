"""Decathlon tasks and plain image folders."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.data.importers.base import Collection
from fedmedseg.data.importers.decathlon import DecathlonImporter, role_from


def read(source: Path, **options: int) -> Collection:
    return DecathlonImporter(**options).read(source, tick=lambda done, of: None)


def test_a_task_yields_its_training_and_test_images(task: Callable[..., Path]) -> None:
    found = read(task(labelled=3, unlabelled=2))
    assert [case.content.has_label for case in found.cases] == [True, True, True, False, False]
    assert found.labels == {1: "anterior", 2: "posterior"}
    assert found.role == "hippocampus"
    assert len({case.patient for case in found.cases}) == 5


def test_a_plain_folder_is_paired_by_name_and_named_after_itself(task: Callable[..., Path], tmp_path: Path) -> None:
    root = task(labelled=2, unlabelled=0)
    (root / "dataset.json").unlink()
    (root / "imagesTr").rename(root / "images")
    (root / "labelsTr").rename(root / "labels")
    (root / "labels" / "hippocampus_001.nii.gz").unlink()
    found = read(root)
    assert {case.name: case.content.has_label for case in found.cases} == {
        "hippocampus_000": True,
        "hippocampus_001": False,
    }
    assert found.role == "hippocampus"


@pytest.mark.parametrize(
    ("title", "role"), [("Task01_BrainTumour", "braintumour"), ("My Set", "my_set"), ("2019 liver", "set_2019_liver")]
)
def test_a_role_is_made_from_the_title(title: str, role: str) -> None:
    assert role_from(title) == role


def test_a_task_with_several_channels_asks_which_one(task: Callable[..., Path], tmp_path: Path) -> None:
    root = task(labelled=1, unlabelled=0, channels=2)
    with pytest.raises(ConfigurationError, match="0 = MR0, 1 = MR1"):
        read(root)
    case = read(root, channel=1).cases[0]
    case.content.write(tmp_path / "one.nii.gz", None, link=False)
    source = nib.load(root / "imagesTr" / "hippocampus_000.nii.gz")
    np.testing.assert_array_equal(nib.load(tmp_path / "one.nii.gz").dataobj, np.asanyarray(source.dataobj)[..., 1])
    with pytest.raises(ConfigurationError, match="0 to 1"):
        read(root, channel=2)


def test_a_channel_of_a_one_channel_task_is_refused(task: Callable[..., Path]) -> None:
    with pytest.raises(ConfigurationError, match="one channel"):
        read(task(), channel=0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"training": "x"}, "a list"),
        ({"training": ["./imagesTr/a.nii.gz"]}, "an image and a label"),
        ({"training": [{"image": "../../secret.nii.gz", "label": "l.nii.gz"}]}, "outside the task"),
        ({"training": [{"image": "/etc/hostname", "label": "l.nii.gz"}]}, "outside the task"),
        ({"training": [{"image": "imagesTr/gone.nii.gz", "label": "labelsTr/gone.nii.gz"}]}, "imagesTr and labelsTr"),
        ({"labels": {"one": "x"}}, "labels"),
        ({"test": ["imagesTr/hippocampus_000.nii.gz"]}, "twice"),
    ],
)
def test_a_wrong_dataset_json_is_refused(task: Callable[..., Path], change: dict[str, object], told: str) -> None:
    path = task() / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigurationError, match=told):
        read(path.parent)


def test_json_that_is_none_and_a_folder_that_is_none_are_told_apart(tmp_path: Path) -> None:
    for content in ("{", "[" * 100_000):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(ConfigurationError, match="JSON"):
            read(tmp_path)
    (tmp_path / "dataset.json").rename(tmp_path / "other.json")
    with pytest.raises(ConfigurationError, match=r"got other\.json\. Expected dataset\.json"):
        read(tmp_path)


def test_a_task_without_cases_is_an_error(task: Callable[..., Path]) -> None:
    path = task() / "dataset.json"
    path.write_text(json.dumps({"training": []}))
    with pytest.raises(DataError, match="no image"):
        read(path.parent)


def test_the_size_of_a_case_is_its_field_of_view(task: Callable[..., Path]) -> None:
    assert [case.content.volume_mm3() for case in read(task(labelled=2, unlabelled=0)).cases] == [216.0, 252.0]


def test_the_real_hippocampus_set_is_read() -> None:
    folder = os.environ.get("FEDMEDSEG_DATA")
    if not folder or not (Path(folder) / "hippocampus").is_dir():
        pytest.skip("FEDMEDSEG_DATA with hippocampus/ is not set")
    found = read(Path(folder) / "hippocampus")
    assert len(found.cases) == 260
    assert all(case.content.has_label for case in found.cases)
