"""Which tasks a case annotates, a site's cases of one task, and points and structures on the study's grid."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.errors import ConfigurationError, DataError, Reason
from fedmedseg.data.checks import HEART_STRUCTURES
from fedmedseg.data.datalist import Case, read_datalist
from fedmedseg.data.preprocessing import FIXED, normalise
from fedmedseg.data.spheres import decode_spheres
from fedmedseg.data.tasks import TASKS, TaskVolumes, counts_by_task, task_of, tasks_of

LABELS = {1: "calcification", 2: "coronaries"}
# turned, flipped and anisotropic: nothing is right by accident
AFFINE = np.array([[0, -1.5, 0, 40.0], [2.0, 0, 0, -30.0], [0, 0, 1.0, 5.0], [0, 0, 0, 1.0]])
PLACES = {"RCC": [6, 7, 8], "LCC": [14, 7, 8], "NCC": [10, 13, 9], "RCA": [6, 5, 14], "LCA": [14, 5, 14]}
CT = {"modality": "ct", "labels": LABELS, "intensity": "heart_crop"}


def world(voxel):
    return (AFFINE[:3, :3] @ voxel + AFFINE[:3, 3]).tolist()


def points(hospital, name, landmarks):
    (hospital.root / "files" / name).write_text(json.dumps(landmarks))
    return f"files/{name}"


@pytest.fixture
def clinic(hospital):
    """One case with all hinge points and calcium, one with four points, one with the septum, one with coronaries."""
    hps = {name: world(voxel) for name, voxel in PLACES.items()}
    some = dict(list(hps.items())[:4])
    ms = {"MS1": world([9, 9, 6]), "MS2": None}
    cases = [hospital.case(f"p{i}", seed=i, shape=(26, 26, 26), affine=AFFINE) for i in range(4)]
    heart = np.zeros((20, 20, 20), dtype=np.uint8)
    heart[4:16, 4:16, 4:16] = 5
    training = [
        cases[0] | {"landmarks": points(hospital, "a.json", hps), "annotated_labels": [1, 2]},
        {"image": cases[1]["image"], "patient": "p1", "landmarks": points(hospital, "b.json", some)},
        {"image": cases[2]["image"], "patient": "p2", "landmarks": points(hospital, "c.json", hps | ms)},
    ]
    hidden = {"label": cases[3]["label"], "landmarks": points(hospital, "d.json", hps)}
    map_of = hospital.nifti("heart.nii.gz", heart, AFFINE)
    # what stands in unlabeled is unlabelled, although its list names a label and points
    unlabeled = [{"image": cases[3]["image"], "patient": "p3", "heart": map_of, **hidden}]
    hospital.datalist(training=training, unlabeled=unlabeled)
    return hospital


def test_tasks_are_those_of_the_study_in_its_order():
    assert {key: task.classes for key, task in TASKS.items()} == {
        "hps": 6,
        "ms": 3,
        "calc": 2,
        "coronaries": 2,
        "heart": 8,
    }
    assert len(TASKS["heart"].names) == HEART_STRUCTURES


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ConfigurationError, match="'hps'"):
        task_of("hp")


def test_a_mask_counts_where_the_number_of_its_name_is_annotated():
    case = Case(image=Path("i"), label=Path("l"), patient="", annotated_labels=None, key="")
    assert tasks_of(case, LABELS) == ("calc", "coronaries")
    assert tasks_of(case, {1: "coronaries"}) == ("coronaries",)
    assert tasks_of(replace(case, annotated_labels=(2,)), LABELS) == ("coronaries",)
    assert tasks_of(replace(case, label=None), LABELS) == ()
    assert tasks_of(replace(case, heart=Path("h")), {}) == ("heart",)


def test_every_case_is_counted_under_what_it_annotates_and_four_of_five_points_are_no_task(clinic):
    experiment = clinic.experiment(**CT)
    assert counts_by_task(clinic.site(), experiment) == {"hps": 2, "ms": 1, "calc": 1, "coronaries": 1, "heart": 0}
    assert counts_by_task(clinic.site(), experiment, "scans")["heart"] == 1
    assert sum(counts_by_task(clinic.site(), experiment, "unlabeled").values()) == 1


def test_an_entry_with_points_needs_no_label_and_marks_no_structure(clinic):
    first, second, _ = read_datalist(clinic.root / "datalist.json", salt="salt and pepper")["training"]
    assert first.annotated_labels == (1, 2)
    assert (second.label, second.annotated_labels) == (None, ())


def test_scans_are_training_and_unlabeled_cases_with_what_they_have(clinic):
    scans = clinic.volumes("scans", **CT)
    assert [case.patient for case in scans.cases] == ["p0", "p1", "p2", "p3"]
    assert scans.label(0) is not None
    assert scans.landmarks(0)["RCC"] == tuple(world([6, 7, 8]))
    assert scans.landmarks(3) == {}
    bare = clinic.volumes("unlabeled", **CT)
    assert [bare.label(i) for i in range(4)] == [None] * 4
    assert [bare.landmarks(i) for i in range(4)] == [{}] * 4
    assert bare.heart(3) is not None


@pytest.mark.parametrize("spacing", [(None, None, None), (1.0, 1.0, 1.0)])
def test_points_survive_turning_resampling_and_padding(clinic, spacing):
    """The sphere is where the point is in mm, whatever was done to the grid."""
    found = TaskVolumes(volumes=clinic.volumes(**CT, spacing=spacing, crop=(32, 32, 32)), task="hps")
    assert found.patients == ["p0", "p2"]
    truth = found.truth(0)
    np.testing.assert_allclose(truth, [world(PLACES[name]) for name in TASKS["hps"].names])
    label = found.label(0)
    assert label.shape == found.image(0).shape[1:]
    voxels = found.volumes.to_voxel(found.indices[0], truth)
    np.testing.assert_allclose(found.to_world(0, voxels), truth)
    for number, (x, y, z) in enumerate(np.rint(voxels).astype(int), start=1):
        assert label[x, y, z] == number
    if spacing[0] == 1.0:
        small = TaskVolumes(volumes=found.volumes, task="hps", radius=2.0)
        back = small.to_world(0, decode_spheres(small.label(0), 5))
        assert np.linalg.norm(back - truth, axis=1).max() < 0.3


def test_a_point_that_is_not_in_the_scan_is_no_class_and_moves_no_other(clinic):
    found = TaskVolumes(volumes=clinic.volumes(**CT), task="ms", radius=2.0)
    assert np.isnan(found.truth(0)[1]).all()
    assert set(np.unique(found.label(0))) == {0, 1}
    assert set(found.points(0)) == {1}


def test_masks_are_one_task_each_with_label_one(clinic):
    volumes = clinic.volumes(**CT)
    for number, task in ((1, "calc"), (2, "coronaries")):
        found = TaskVolumes(volumes=volumes, task=task)
        np.testing.assert_array_equal(found.label(0), volumes.label(0) == number)
        np.testing.assert_array_equal(found.native_label(0), volumes.native_label(0) == number)


def test_a_site_without_the_task_is_told_so_by_name(clinic):
    clinic.datalist(training=[clinic.case("p9", seed=9, annotated_labels=[1, 2])])
    with pytest.raises(DataError, match="task 'ms'") as caught:
        TaskVolumes(volumes=clinic.volumes(**CT), task="ms")
    assert caught.value.reason is Reason.NO_CASES
    assert "MS1, MS2" in str(caught.value)


def test_a_mask_that_the_label_map_does_not_know_is_refused(clinic):
    with pytest.raises(ConfigurationError, match="coronaries"):
        TaskVolumes(volumes=clinic.volumes(**CT | {"labels": {1: "calcification", 2: "stent"}}), task="coronaries")


def test_the_hearts_map_may_lie_on_another_grid_and_is_background_where_it_does_not_reach(clinic):
    heart = np.full((6, 6, 6), 3, dtype=np.uint8)
    affine = np.array([[2.0, 0, 0, 18], [0, 2.0, 0, -18], [0, 0, 2.0, 10], [0, 0, 0, 1.0]])
    case = clinic.case("p0", affine=AFFINE)
    clinic.datalist(training=[{**case, "heart": clinic.nifti("other.nii.gz", heart, affine)}])
    volumes = clinic.volumes(**CT)
    prepared = volumes.heart(0)
    assert prepared.shape == volumes.image(0).shape[1:]
    assert set(np.unique(prepared)) == {0, 3}
    inside = volumes.to_world(0, np.argwhere(prepared == 3))
    assert (inside >= np.array([18, -18, 10]) - 1.01).all()
    assert (inside <= np.array([28, -8, 20]) + 1.01).all()
    outside = volumes.to_world(0, np.argwhere(prepared == 0))
    assert ((outside < [17.1, -18.9, 9.1]) | (outside > [28.9, -7.1, 20.9])).any(axis=1).all()


def test_the_hearts_structures_are_a_task_on_the_images_own_grid_too(clinic):
    found = TaskVolumes(volumes=clinic.volumes("scans", **CT), task="heart")
    native = found.native_label(0)
    assert native.shape == nib.load(clinic.root / "files" / "p3_3.nii.gz").shape
    expected = np.zeros((26, 26, 26), dtype=np.uint8)
    expected[4:16, 4:16, 4:16] = 5
    np.testing.assert_array_equal(native, expected)
    assert int((found.label(0) == 5).sum()) == 12**3


def test_axial_slices_follow_the_axis_that_leads_to_the_head(clinic):
    assert clinic.volumes(**CT).slice_axis(0) == 2
    sagittal = AFFINE[:, [2, 0, 1, 3]]
    clinic.datalist(training=[clinic.case("p0", affine=sagittal)])
    volumes = clinic.volumes(**CT)
    assert volumes.slice_axis(0) == 0
    assert volumes.native_spacing(0) == (1.0, 2.0, 1.5)
    np.testing.assert_array_equal(
        volumes.native_image(0), np.asarray(nib.load(clinic.root / "files" / "p0_0.nii.gz").dataobj)
    )


@pytest.mark.parametrize(
    ("landmarks", "heart", "reason"),
    [
        ({"RCC": [500, 0, 0]}, None, "landmark outside the image"),
        ({"XYZ": [0, 0, 0]}, None, "landmark with an unknown name"),
        (None, 8, "heart label values outside 0..7"),
    ],
)
def test_the_gate_sets_aside_what_cannot_be_true(clinic, landmarks, heart, reason):
    case = clinic.case("p0", affine=AFFINE)
    if landmarks:
        case["landmarks"] = points(clinic, "bad.json", landmarks)
    if heart:
        case["heart"] = clinic.nifti("bad.nii.gz", np.full((20, 20, 20), heart, dtype=np.uint8), AFFINE)
    clinic.datalist(training=[case, clinic.case("p1", seed=1)])
    assert list(clinic.volumes(**CT).quarantined.values()) == [reason]


def test_a_landmark_file_corrected_in_place_is_checked_again(clinic):
    case = clinic.case("p0", affine=AFFINE) | {"landmarks": points(clinic, "x.json", {"RCC": [500, 0, 0]})}
    clinic.datalist(training=[case, clinic.case("p1", seed=1)])
    assert len(clinic.volumes(**CT)) == 1
    points(clinic, "x.json", {"RCC": world([6, 7, 8])})
    assert len(clinic.volumes(**CT)) == 2


def test_a_further_heart_map_is_prepared_and_not_taken_from_the_cache(clinic):
    heart = np.ones((20, 20, 20), dtype=np.uint8)
    case = clinic.case("p0", affine=AFFINE)
    for value in (1, 2):
        clinic.datalist(training=[{**case, "heart": clinic.nifti(f"h{value}.nii.gz", value * heart, AFFINE)}])
        assert set(np.unique(clinic.volumes(**CT).heart(0))) == {value}


@pytest.mark.parametrize(
    ("name", "hu", "expected"),
    [
        ("heart_crop", 373.769, 0.0),
        ("heart_crop", -1000, (-42 - 373.769) / 166.805),
        ("heart_crop", 3000, (878 - 373.769) / 166.805),
        ("whole_scan", -2000, (-1024 + 439.613) / 520.983),
        ("whole_scan", 0, 439.613 / 520.983),
    ],
)
def test_fixed_intensities_by_hand(hospital, name, hu, expected):
    data = hospital.experiment(**CT | {"intensity": name}).data
    scored, tissue = normalise(np.full((2, 2, 2), hu, dtype=np.float32), data)
    np.testing.assert_allclose(scored, expected, atol=1e-5)
    low = {"heart_crop": -42.0, "whole_scan": -500.0}[name]
    assert tissue == pytest.approx((low - FIXED[name].mean) / FIXED[name].deviation)


def test_every_case_is_scaled_alike_and_the_prepared_volume_comes_from_the_same_constants(clinic):
    volumes = clinic.volumes(**CT)
    raw = np.asarray(nib.load(clinic.root / "files" / "p0_0.nii.gz").dataobj, dtype=np.float32)
    expected, _ = normalise(raw, volumes.experiment.data)
    # turned, not changed
    np.testing.assert_allclose(np.sort(volumes.image(0).ravel()), np.sort(expected.ravel()), atol=1e-6)


@pytest.mark.parametrize(("modality", "intensity"), [("mr", "heart_crop"), ("ct", "capped")])
def test_intensities_of_the_other_modality_are_refused(hospital, modality, intensity):
    with pytest.raises(ValueError, match=f"with modality {modality}"):
        DataSection.model_validate(
            {
                "role": "brain",
                "modality": modality,
                "spatial_dims": 3,
                "labels": {1: "a"},
                "crop": (8, 8, 8),
                "intensity": intensity,
            }
        )
