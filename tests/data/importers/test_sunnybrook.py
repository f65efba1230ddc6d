"""Both layouts of the Sunnybrook data: the masks, the voxels and the affine are the ones that were put in."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import public_sets as made
import pytest

from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.data.importers.base import Collection, SourceCase
from fedmedseg.data.importers.sunnybrook import SunnybrookImporter
from fedmedseg.data.importers.sunnybrook_dicom import original_name


def read(source: Path, **options: bool) -> Collection:
    return SunnybrookImporter(**options).read(source, tick=lambda done, of: None)


def written(case: SourceCase, folder: Path) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    image, label = folder / "image.nii.gz", folder / "label.nii.gz"
    case.content.write(image, label, link=False)
    return nib.load(image), nib.load(label)


def phases(collection: Collection) -> dict[str, SourceCase]:
    return {case.name.rpartition("_")[2]: case for case in collection.cases}


@pytest.mark.parametrize("layout", ["challenge", "atlas"])
def test_masks_voxels_and_affine_are_those_of_the_dicom_study(
    layout: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    found = phases(read(request.getfixturevalue(layout)))
    assert set(found) == {"ED", "ES"}
    for name, phase, locations in (("ED", made.DIASTOLE, [1, 2, 3, 4]), ("ES", made.SYSTOLE, [1, 2, 3])):
        image, label = written(found[name], tmp_path)
        assert image.shape == (made.COLUMNS, made.ROWS, len(locations))
        expected = np.stack([made.cavity(location, phase) for location in locations], axis=-1)
        np.testing.assert_array_equal(np.asanyarray(label.dataobj), expected.astype(np.uint8))
        np.testing.assert_array_equal(label.affine, image.affine)
        for place, location in enumerate(locations):
            for column, row in ((0, 0), (made.COLUMNS - 1, 3), (7, made.ROWS - 1)):
                assert image.dataobj[column, row, place] == 1000 * location + 100 * phase + row
                patient = made.ORIGIN + location * made.STEP * made.NORMAL
                patient = patient + column * made.COLUMN_SPACING * made.ROW + row * made.ROW_SPACING * made.COLUMN
                world = image.affine @ [column, row, place, 1]
                np.testing.assert_allclose(world[:3], patient * [-1, -1, 1], atol=1e-4)
        np.testing.assert_allclose(image.header.get_zooms(), (1.25, 1.5, 9.0), rtol=1e-5)


def test_the_group_and_patient_come_from_the_original_name(challenge: Path, atlas: Path) -> None:
    assert {(case.group, case.patient) for case in read(challenge).cases} == {("HF-I", "SC-HF-I-01")}
    assert {(case.group, case.patient) for case in read(atlas).cases} == {("N", "SC-N-02")}


@pytest.mark.parametrize(
    ("text", "name"),
    [("SC-HF-NI-3", "SC-HF-NI-03"), ("sc-hyp-040", "SC-HYP-40"), ("SC-X-1", None), ("SCD0000101", None)],
)
def test_original_names_are_brought_to_one_form(text: str, name: str | None) -> None:
    assert original_name(text) == name


def test_myocardium_lies_between_the_contours_and_only_where_every_slice_has_both(
    challenge: Path, tmp_path: Path
) -> None:
    found = phases(read(challenge, myocardium=True))
    _, label = written(found["ED"], tmp_path)
    expected = [
        np.where(made.cavity(place, made.DIASTOLE), 1, 2 * made.cavity(place, made.DIASTOLE, grow=2))
        for place in range(1, made.LOCATIONS)
    ]
    np.testing.assert_array_equal(np.asanyarray(label.dataobj), np.stack(expected, axis=-1))
    assert found["ED"].annotated_labels is None
    _, label = written(found["ES"], tmp_path)
    assert np.unique(np.asanyarray(label.dataobj)).tolist() == [0, 1]
    assert found["ES"].annotated_labels == (1,)


def test_a_slice_contoured_at_a_neighbouring_phase_joins_the_nearer_phase(challenge: Path, tmp_path: Path) -> None:
    folder = made.contours_of(challenge, "SC-HF-I-1")
    (folder / f"IM-0001-{made.number(3, made.SYSTOLE):04d}-icontour-manual.txt").unlink()
    made.write_contour(folder, 3, made.SYSTOLE + 1, "i")
    image, _ = written(phases(read(challenge))["ES"], tmp_path)
    assert image.dataobj[0, 0, :].tolist() == [1200, 2200, 3300]


def test_slices_beyond_a_gap_in_the_contours_are_left_out_and_counted(challenge: Path, tmp_path: Path) -> None:
    folder = made.contours_of(challenge, "SC-HF-I-1")
    (folder / f"IM-0001-{made.number(2, made.DIASTOLE):04d}-icontour-manual.txt").unlink()
    found = read(challenge)
    image, _ = written(phases(found)["ED"], tmp_path)
    assert image.dataobj[0, 0, :].tolist() == [3500, 4500]
    assert found.skipped == {"slice beyond a gap in the contours": 1}


def add_patient(root: Path) -> Path:
    """A second, damaged patient beside a good one."""
    shutil.copytree(root / "SC-HF-I-1", root / "SC-HYP-9")
    return root / "SC-HYP-9"


def test_a_patient_that_cannot_be_used_is_counted_with_its_reason_and_the_rest_goes_on(challenge: Path) -> None:
    second = add_patient(challenge)
    (second / "DICOM" / "IM-0001-0012.dcm").unlink()
    found = read(challenge)
    assert {case.patient for case in found.cases} == {"SC-HF-I-01"}
    assert found.skipped == {"no series has every contoured image": 1}


def test_two_series_that_both_fit_are_not_guessed_between(challenge: Path) -> None:
    second = add_patient(challenge)
    shutil.copytree(second / "DICOM", second / "OTHER")
    assert read(challenge).skipped == {"several series could carry the contours": 1}


def test_one_contoured_phase_alone_is_not_called_diastole(challenge: Path) -> None:
    second = add_patient(challenge)
    for place in range(1, made.LOCATIONS - 1):
        name = f"IM-0001-{made.number(place, made.SYSTOLE):04d}-icontour-manual.txt"
        (second / "contours-manual" / "IRCCI-expert" / name).unlink()
    assert read(challenge).skipped == {"contours at one heart phase alone": 1}


def test_a_damaged_image_is_counted_and_without_any_usable_patient_the_import_fails(challenge: Path) -> None:
    (challenge / "SC-HF-I-1" / "DICOM" / "IM-0001-0003.dcm").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read \\(1\\)"):
        read(challenge)


def test_no_patient_name_reaches_the_log(challenge: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_patient(challenge)
    with caplog.at_level(logging.DEBUG, logger="fedmedseg"):
        read(challenge)
    assert "SC-" not in caplog.text
    assert "MARKER" not in caplog.text


def test_a_wrong_folder_says_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    with pytest.raises(ConfigurationError, match=r"got holiday/.*cases\.csv.*IRCCI-expert"):
        read(tmp_path)
    with pytest.raises(ConfigurationError, match="got nothing at"):
        read(tmp_path / "absent")


def nifti_layout(root: Path, rows: str, header: str = "case,patient,group,phase") -> Path:
    for folder in ("images", "labels"):
        made.write_volume(root / folder / "A_ED.nii.gz", np.ones((2, 2, 2), np.uint8))
    (root / "cases.csv").write_text(f"{header}\n{rows}\n")
    return root


def test_the_nifti_layout_is_read_by_its_table(tmp_path: Path) -> None:
    case = read(nifti_layout(tmp_path, "A_ED,A,HF-I,ED")).cases[0]
    assert (case.name, case.patient, case.group, case.content.has_label) == ("A_ED", "A", "HF-I", True)


@pytest.mark.parametrize(
    ("rows", "header", "told"),
    [
        ("B_ED,B,N,ED", "case,patient,group,phase", "line 2"),
        ("A_ED,A,N,ED\nA_ED,A,N,ED", "case,patient,group,phase", "line 3"),
        ("A_ED,A", "case,patient", "group"),
        ("A_ED,,N,ED", "case,patient,group,phase", "line 2"),
    ],
)
def test_a_wrong_table_names_its_line_or_column(tmp_path: Path, rows: str, header: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        read(nifti_layout(tmp_path, rows, header))


def test_the_real_set_has_45_patients_in_four_groups() -> None:
    folder = os.environ.get("FEDMEDSEG_DATA")
    if not folder or not (Path(folder) / "sunnybrook").is_dir():
        pytest.skip("FEDMEDSEG_DATA with sunnybrook/ is not set")
    found = read(Path(folder) / "sunnybrook")
    assert found.groups == ["HF-I", "HF-NI", "HYP", "N"]
    assert len(found.cases) == 90
    assert len({case.patient for case in found.cases}) == 45
