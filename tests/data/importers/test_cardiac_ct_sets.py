"""ImageCAS, TotalSegmentator and DICOM series: which files are read, and that what lies beside them finds its case."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.data.datalist import read_datalist
from fedmedseg.data.importers import create
from fedmedseg.data.importers.assignment import assign_by_number
from fedmedseg.data.importers.beside import STRUCTURES
from fedmedseg.data.importers.sites import write_sites
from fedmedseg.data.tasks import tasks_of

AFFINE = np.diag([-0.5, 0.5, 1.0, 1.0])
LABELS = {1: "calcification", 2: "coronaries"}
DATA = Path(os.environ.get("FEDMEDSEG_DATA", "absent")) / "ct"


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def read(name, source, **options):
    return create(name, **options).read(source, tick=lambda done, of: None)


def volume(*voxels):
    array = np.zeros((6, 5, 4), dtype=np.uint8)
    for place, value in voxels:
        array[place] = value
    return array


@pytest.fixture
def imagecas(tmp_path):
    root = tmp_path / "ImageCAS"
    for number in (1, 2, 10, 201, 202):
        folder = root / ("1-200" if number <= 200 else "201-400")
        save(folder / f"{number}.img.nii.gz", np.full((6, 5, 4), number, dtype=np.int16))
        if number != 202:
            save(folder / f"{number}.label.nii.gz", volume(((1, 1, 1), 1)))
    return root


def test_imagecas_is_read_in_its_order_with_the_tree_under_the_studys_number(imagecas, tmp_path):
    found = read("imagecas", imagecas)
    assert [case.name for case in found.cases] == ["case_1", "case_2", "case_10", "case_201", "case_202"]
    assert found.labels == {2: "coronaries"}
    assert [case.annotated for case in found.cases] == [True] * 4 + [False]
    found.cases[0].content.write(tmp_path / "i.nii.gz", tmp_path / "l.nii.gz", link=False)
    assert np.unique(nib.load(tmp_path / "l.nii.gz").dataobj).tolist() == [0, 2]
    other = read("imagecas", imagecas, label_map="1=1")
    assert other.labels == {1: "coronaries"}


def test_points_and_hearts_beside_imagecas_reach_the_data_list(imagecas, tmp_path):
    save(tmp_path / "hearts" / "1.nii.gz", volume(((2, 2, 2), 7)))
    for number, name in enumerate(STRUCTURES, start=1):
        save(tmp_path / "hearts" / "case_202" / f"{name}.nii.gz", volume(((0, 0, number % 4), 1)))
    (tmp_path / "points").mkdir()
    points = {"RCC": [-1, 1, 1], "LCC": [-1, 1, 1], "ACC": [-1, 1, 1], "RCO": None, "LCO": [-1, 1, 1]}
    (tmp_path / "points" / "case_202.json").write_text(json.dumps(points))
    found = read("imagecas", imagecas, hearts=tmp_path / "hearts", landmarks=tmp_path / "points")
    plan = assign_by_number(found, 1, by="random", seed=1)
    shares = (0.6, 0.2, 0.2, 0.0)
    write_sites(plan, out=tmp_path / "out", role="cardiac_ct", name="x", labels=found.labels, shares=shares, seed=1)
    sections = read_datalist(tmp_path / "out" / "site-1" / "datalist.json", salt="salt and pepper")
    tasks = {case.patient: tasks_of(case, LABELS) for cases in sections.values() for case in cases}
    assert tasks["case_1"] == ("coronaries", "heart")
    assert tasks["case_2"] == ("coronaries",)
    assert tasks["case_202"] == ("hps", "heart")
    (heart,) = (case.heart for cases in sections.values() for case in cases if case.patient == "case_202")
    values = np.asarray(nib.load(heart).dataobj)
    assert values[0, 0].tolist() == [4, 5, 6, 7]  # later structures over earlier ones


@pytest.mark.parametrize(("option", "name"), [("hearts", "7.nii.gz"), ("landmarks", "case_7.json")])
def test_what_belongs_to_no_case_is_refused(imagecas, tmp_path, option, name):
    folder = tmp_path / "beside"
    if option == "hearts":
        save(folder / name, volume())
    else:
        folder.mkdir()
        (folder / name).write_text("{}")
    with pytest.raises(ConfigurationError, match="belong to no case"):
        read("imagecas", imagecas, **{option: folder})


def test_hearts_of_another_task_and_damaged_points_are_refused(imagecas, tmp_path):
    save(tmp_path / "hearts" / "1.nii.gz", volume(((2, 2, 2), 51)))
    found = read("imagecas", imagecas, hearts=tmp_path / "hearts")
    with pytest.raises(DataError, match="heartchambers_highres"):
        found.cases[0].heart.write(tmp_path / "h.nii.gz")
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "1.json").write_text('{"RCC": [1, 2]}')
    with pytest.raises(DataError, match="three coordinates"):
        read("imagecas", imagecas, landmarks=tmp_path / "points")


def test_masks_on_two_grids_are_no_heart(tmp_path, imagecas):
    save(tmp_path / "hearts" / "1" / f"{STRUCTURES[0]}.nii.gz", volume())
    save(tmp_path / "hearts" / "1" / f"{STRUCTURES[1]}.nii.gz", volume(), 2 * AFFINE)
    found = read("imagecas", imagecas, hearts=tmp_path / "hearts")
    with pytest.raises(DataError, match="several grids"):
        found.cases[0].heart.write(tmp_path / "h.nii.gz")


def test_another_layout_says_what_was_expected(tmp_path):
    for name in ("imagecas", "totalsegmentator", "ct_dicom"):
        with pytest.raises(ConfigurationError, match="Expected"):
            read(name, tmp_path)


def test_totalsegmentators_set_gives_scans_with_the_heart_and_leaves_the_others_out(tmp_path):
    root = tmp_path / "set"
    for number, shown in ((0, True), (1, False), (2, None)):
        save(root / f"s{number:04d}" / "ct.nii.gz", np.full((6, 5, 4), number, dtype=np.int16))
        for place, name in enumerate(STRUCTURES if shown is not None else ("liver",)):
            mask = volume(((place % 6, 0, 0), 1)) if shown else volume()
            save(root / f"s{number:04d}" / "segmentations" / f"{name}.nii.gz", mask)
    found = read("totalsegmentator", root)
    assert [case.name for case in found.cases] == ["s0000"]
    assert found.skipped == {"the scan does not show the heart": 1, "no mask of the heart's structures": 1}
    plan = assign_by_number(found, 1, by="random", seed=1)
    write_sites(plan, out=tmp_path / "out", role="cardiac_ct", name="x", labels={}, shares=(0.6, 0.2, 0.2, 0.0), seed=1)
    sections = read_datalist(tmp_path / "out" / "site-1" / "datalist.json", salt="salt and pepper")
    # nothing of it is annotated: all of it is for training without labels
    assert [tasks_of(case, LABELS) for case in sections["unlabeled"]] == [("heart",)]
    assert not sections["training"]


def slices(folder, *, count=10, modality="CT", series="1.2.3", order=lambda index: index, skip=(), number=1):
    """A series of ``count`` slices of 4 columns and 3 rows, 2 mm apart, whose pixels tell their slice and column."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in (i for i in range(count) if i not in skip):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        image.PatientName, image.PatientID, image.Modality = "MARKER^NAME", "MARKER", modality
        image.SeriesInstanceUID, image.SeriesNumber, image.InstanceNumber = series, number, order(index) + 1
        image.Rows, image.Columns, image.PixelSpacing, image.SliceThickness = 3, 4, [0.5, 0.75], 2.0
        image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10.0, -20.0, 30.0 + 2 * index]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation = 15, 0
        image.RescaleSlope, image.RescaleIntercept = 1, -1024
        pixels = 1024 + 10 * index + np.zeros((3, 1), int) + np.arange(4)
        image.PixelData = pixels.astype("<u2").tobytes()
        pydicom.dcmwrite(folder / f"{series}-{index}", image, enforce_file_format=True)


@pytest.mark.parametrize("order", [lambda index: index, lambda index: 50 - index])
def test_a_series_becomes_hounsfield_units_where_the_headers_place_them(tmp_path, order):
    slices(tmp_path / "dicom" / "p1", order=order)
    (case,) = read("ct_dicom", tmp_path / "dicom").cases
    assert (case.name, case.patient, case.annotated) == ("p1", "p1", False)
    case.content.write(tmp_path / "i.nii.gz", None, link=False)
    image = nib.load(tmp_path / "i.nii.gz")
    voxels = np.asarray(image.dataobj)
    assert voxels.shape == (4, 3, 10)
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(voxels[:, 0, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(voxels[2, 1], 10 * np.arange(10) + 2)
    # DICOM's x and y point left and back
    np.testing.assert_allclose(image.affine @ [1, 2, 3, 1], [10 - 0.75, 20 - 2 * 0.5, 36, 1])
    assert case.content.volume_mm3() == pytest.approx(4 * 0.75 * 3 * 0.5 * 10 * 2)


def test_nothing_of_a_patient_is_taken_from_the_headers(tmp_path):
    slices(tmp_path / "dicom" / "p1")
    (case,) = read("ct_dicom", tmp_path / "dicom").cases
    case.content.write(tmp_path / "i.nii", None, link=False)
    assert b"MARKER" not in (tmp_path / "i.nii").read_bytes()


def test_each_series_of_a_patient_is_a_case_and_what_is_none_is_counted(tmp_path):
    slices(tmp_path / "dicom" / "p1", series="1.2.9", number=2)
    slices(tmp_path / "dicom" / "p1", series="1.2.5", number=1, count=12)
    slices(tmp_path / "dicom" / "p1" / "scout", series="1.2.6", count=2)
    slices(tmp_path / "dicom" / "p2", series="1.2.7", skip=(4,))
    slices(tmp_path / "dicom" / "p3", series="1.2.8", order=lambda index: (7 * index) % 10)
    slices(tmp_path / "dicom" / "p4", series="1.2.10", modality="MR", count=3)
    (tmp_path / "dicom" / "p4" / "notes.txt").write_text("none")
    found = read("ct_dicom", tmp_path / "dicom")
    assert [(case.name, len(case.content.slices)) for case in found.cases] == [("p1-1", 12), ("p1-2", 10)]
    assert found.skipped == {
        "series of fewer than 8 slices": 1,
        "series that is no even stack of slices": 2,
        "DICOM file of another modality than CT": 3,
        "no DICOM file": 1,
    }


def test_a_label_drawn_on_the_series_is_turned_to_its_grid_and_never_resampled(tmp_path):
    for patient in ("p1", "p2"):
        slices(tmp_path / "dicom" / patient)
    label = np.zeros((4, 3, 10), dtype=np.uint8)
    label[3, 0, 1] = 1
    stated = np.array([[-0.75, 0, 0, 10], [0, -0.5, 0, 20], [0, 0, 2, 30], [0, 0, 0, 1.0]])
    flipped = nib.Nifti1Image(label, stated).as_reoriented(np.array([[0, -1], [1, -1], [2, 1]]))
    (tmp_path / "labels").mkdir()
    nib.save(flipped, tmp_path / "labels" / "p1.nii.gz")
    first, second = read("ct_dicom", tmp_path / "dicom", labels=tmp_path / "labels").cases
    assert (first.annotated, second.annotated, first.annotated_labels) == (True, False, (1,))
    first.content.write(tmp_path / "i.nii.gz", tmp_path / "l.nii.gz", link=False)
    written = nib.load(tmp_path / "l.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), label)
    np.testing.assert_allclose(written.affine, stated)
    save(tmp_path / "labels" / "p2.nii.gz", label, np.diag([1, 1, 1, 1.0]))
    _, second = read("ct_dicom", tmp_path / "dicom", labels=tmp_path / "labels").cases
    with pytest.raises(DataError, match="the image's grid"):
        second.content.write(tmp_path / "i2.nii.gz", tmp_path / "l2.nii.gz", link=False)


@pytest.mark.skipif(not (DATA / "dicom_series").is_dir(), reason="FEDMEDSEG_DATA names no folder with ct/dicom_series")
def test_a_scanners_series_lies_under_the_labels_that_were_made_of_it(tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "dicom_series.nii.gz").symlink_to(DATA / "dicom_totalseg_labels.nii.gz")
    (case,) = read("ct_dicom", DATA / "dicom_series", labels=labels).cases
    case.content.write(tmp_path / "i.nii.gz", tmp_path / "l.nii.gz", link=False)
    image, label = (np.asarray(nib.load(tmp_path / f"{name}.nii.gz").dataobj) for name in "il")
    assert image.shape == label.shape == (512, 512, 20)
    assert image.min() == -1024
    # TotalSegmentator's numbers: spleen 1, liver 5, ribs 92 to 115
    for organ in (1, 5):
        assert np.percentile(image[label == organ], 5) > 20
    ribs = {value: float(np.median(image[label == value])) for value in range(92, 116) if (label == value).any()}
    assert len(ribs) >= 10
    assert min(ribs.values()) > 130, ribs


@pytest.mark.skipif(not (DATA / "aorta").is_dir(), reason="FEDMEDSEG_DATA names no folder with ct/aorta")
def test_the_landmark_masks_of_a_real_angiography_become_points_that_spheres_find_again(tmp_path):
    from fedmedseg.data.landmarks import check_landmarks, to_voxel, to_world
    from fedmedseg.data.preprocessing import native_grid
    from fedmedseg.data.spheres import decode_spheres, draw_spheres

    grid = native_grid(DATA / "aorta" / "image.nii.gz")
    names = ("annulus_proper", "sinotubular_junction")
    masks = [np.asarray(nib.load(DATA / "aorta" / f"{name}.nii.gz").dataobj) > 0 for name in names]
    centres = np.array([np.argwhere(mask).mean(axis=0) for mask in masks])
    world = to_world(centres, grid.affine)
    # any two of the seven names will do to take the file through the gate
    path = tmp_path / "points.json"
    path.write_text(json.dumps({name: place.tolist() for name, place in zip(("RCC", "LCC"), world, strict=True)}))
    check_landmarks(path, grid)
    back = to_world(decode_spheres(draw_spheres(to_voxel(world, grid.affine), grid.shape, radius=3.0), 2), grid.affine)
    assert np.linalg.norm(back - world, axis=1).max() < 0.3 * max(grid.spacing)
    assert 5 < np.linalg.norm(world[0] - world[1]) < 60
