"""The images in a folder: files and DICOM series under names of their own; what is broken is told from what is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_series import write_series as series

from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.data.images import images_at


def volume(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), path)


def test_files_and_series_are_found_at_any_depth_under_names_of_their_own(tmp_path: Path) -> None:
    volume(tmp_path / "b" / "one.two.nii.gz")
    volume(tmp_path / "a.nii")
    volume(tmp_path / ".hidden.nii.gz")
    series(tmp_path / "c")
    series(tmp_path / "d" / "e", uid="1.9", number=2)
    series(tmp_path / "d" / "e", uid="1.5", number=1, modality="CT")
    (tmp_path / "notes.txt").write_text("of mine")
    found = images_at(tmp_path)
    assert [(one.name, one.modality, one.fault) for one in found.sources] == [
        ("a", None, None), ("b/one.two", None, None), ("c", "mr", None), ("d/e-1", "ct", None), ("d/e-2", "mr", None),
    ]  # fmt: skip
    assert found.passed_over == [tmp_path / "notes.txt"]
    assert [one.name for one in images_at(tmp_path / "a.nii").sources] == ["a"]
    assert [one.name for one in images_at(tmp_path / "c").sources] == ["c"]


def test_a_series_in_the_current_folder_is_called_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series(tmp_path / "c")
    monkeypatch.chdir(tmp_path / "c")
    assert [one.name for one in images_at(Path(".")).sources] == ["c"]


def test_a_series_becomes_a_volume_where_its_headers_say_without_its_names(tmp_path: Path) -> None:
    series(tmp_path / "c")
    (source,) = images_at(tmp_path / "c").sources
    (tmp_path / "out").mkdir()
    made = source.as_nifti(tmp_path / "out")
    image = nib.load(made)
    assert image.shape == (4, 6, 5)
    assert np.asarray(image.dataobj)[0, 0].tolist() == [0, 100, 200, 300, 400]
    # DICOM's x and y point left and back
    np.testing.assert_allclose(image.affine, [[-2, 0, 0, -10], [0, -1.5, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
    assert b"DOE" not in made.read_bytes()


def test_a_series_that_the_reader_places_elsewhere_is_told_by_how_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series(tmp_path / "c")
    (source,) = images_at(tmp_path / "c").sources
    monkeypatch.setattr("fedmedseg.data.importers.ct_dicom.corner_distance", lambda one, other: 12.34)
    with pytest.raises(DataError, match=r"DICOM stack: got a place 12\.3 mm from where its headers say"):
        source.as_nifti(tmp_path)


def test_what_is_broken_is_told_apart_from_what_is_no_image(tmp_path: Path) -> None:
    series(tmp_path / "gap", skip=2)
    series(tmp_path / "scout", count=1)
    (tmp_path / "x.dcm").write_bytes(b"none")
    (tmp_path / "list.json").write_text("{}")
    found = images_at(tmp_path)
    assert {one.name: one.fault for one in found.sources} == {
        "gap": "DICOM stack: uneven slice positions",
        "scout": "a DICOM series of one slice",
        "x.dcm": "no DICOM file, whatever its ending says",
    }
    assert found.passed_over == [tmp_path / "list.json"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root / "nothing", "nothing at"),
        (lambda root: root, "none of them an image"),
        (lambda root: _written(root / "a.txt"), "ends with .nii.gz or .nii"),
        (lambda root: [volume(root / "a.nii"), volume(root / "a.nii.gz"), root][-1], "two images that are called a"),
    ],
)
def test_a_place_without_images_is_refused(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        images_at(make(tmp_path))


def _written(path: Path) -> Path:
    path.write_text("none")
    return path


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    """It is told with the others at the end, where a folder's own listing shows it too."""
    (tmp_path / "gone.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    assert [one.name for one in images_at(tmp_path).sources] == ["gone"]
