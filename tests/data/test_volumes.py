"""Volumes: preprocessing, the cache, patients, and the way back to the file's own grid."""

import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.data import volumes as module
from fedmedseg.data.volumes import choose_patients

Hospital = Any
REAL = os.environ.get("FEDMEDSEG_DATA")


def one_hot(label: np.ndarray, classes: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(label.astype(np.int64)), classes).permute(3, 0, 1, 2).float()


def dice(one: np.ndarray, other: np.ndarray, value: int) -> float:
    a, b = one == value, other == value
    return 2.0 * float((a & b).sum()) / float(a.sum() + b.sum())


def count_preparations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []
    prepare = module.prepare_image

    def counted(case: Any, data: Any) -> Any:
        done.append(case.patient)
        return prepare(case, data)

    monkeypatch.setattr(module, "prepare_image", counted)
    return done


def affine_for(codes: str, spacing: tuple[float, float, float]) -> np.ndarray:
    affine = np.zeros((4, 4))
    for axis, (world, sign) in enumerate(nib.orientations.axcodes2ornt(codes)):
        affine[int(world), axis] = sign * spacing[axis]
    affine[:, 3] = (11.0, -7.0, 3.0, 1.0)
    return affine


def test_shapes_types_and_spacing(hospital: Hospital) -> None:
    hospital.datalist(training=[hospital.case("p", shape=(24, 20, 18), affine=np.diag([1.0, 1.0, 2.0, 1.0]))])
    volumes = hospital.volumes(spacing=(None, None, 1.0))
    image, label = volumes.image(0), volumes.label(0)
    assert image.shape == (1, 24, 20, 36)
    assert image.dtype == np.float32
    assert label.shape == (24, 20, 36)
    assert label.dtype == np.uint8
    assert volumes.spacing(0) == pytest.approx((1.0, 1.0, 1.0))
    assert volumes.native_spacing(0) == pytest.approx((1.0, 1.0, 2.0))
    assert volumes.native_label(0).shape == (24, 20, 18)
    assert not image.flags.writeable


def test_mr_foreground_has_mean_zero_and_deviation_one(hospital: Hospital) -> None:
    hospital.datalist(training=[hospital.case("p")])
    volumes = hospital.volumes()
    image = volumes.image(0)[0]
    body = image[image > volumes.tissue(0)]
    # the body is everything but the border voxels of the first two axes
    assert body.size == 18 * 18 * 20
    assert body.mean() == pytest.approx(0.0, abs=1e-4)
    assert body.std() == pytest.approx(1.0, abs=1e-4)
    assert np.abs(image).max() <= 5.0


def test_mr_extremes_are_clipped(hospital: Hospital) -> None:
    image, label = hospital.scan()
    image[10, 10, 10] = 30000
    entry = {"image": hospital.nifti("i.nii.gz", image), "label": hospital.nifti("l.nii.gz", label)}
    hospital.datalist(training=[entry])
    assert hospital.volumes().image(0).max() == 5.0


def test_an_image_of_nearly_equal_voxels_is_normalised(hospital: Hospital) -> None:
    image = np.full((20, 20, 20), 7, dtype=np.int16)
    image[0, 0, 0], image[0, 0, 1] = 0, 8
    hospital.datalist(unlabeled=[{"image": hospital.nifti("i.nii.gz", image)}])
    assert np.isfinite(hospital.volumes("unlabeled").image(0)).all()


def test_ct_maps_the_window_to_one(hospital: Hospital) -> None:
    image = np.full((16, 16, 16), -1000, dtype=np.int16)
    image[0], image[1], image[2] = -100, 0, 500
    hospital.datalist(unlabeled=[{"image": hospital.nifti("ct.nii.gz", image)}])
    volumes = hospital.volumes("unlabeled", modality="ct", window=(-100.0, 100.0))
    normalised = volumes.image(0)[0]
    assert [float(normalised[place, 0, 0]) for place in range(4)] == [0.0, 0.5, 1.0, 0.0]
    # tissue is above the window's low end
    assert volumes.slice_tissue(0) == pytest.approx(np.full(16, 2 / 16))
    assert volumes.label(0) is None
    assert volumes.points(0) == {}


def test_ct_tissue_excludes_lung_in_a_wide_window(hospital: Hospital) -> None:
    image = np.full((16, 16, 16), -800, dtype=np.int16)
    image[:4] = 0
    hospital.datalist(unlabeled=[{"image": hospital.nifti("ct.nii.gz", image)}])
    volumes = hospital.volumes("unlabeled", modality="ct", window=(-1000.0, 1000.0))
    assert volumes.tissue(0) == pytest.approx(0.25)
    assert volumes.slice_tissue(0) == pytest.approx(np.full(16, 0.25))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_way_back_is_exact_without_resampling(hospital: Hospital, codes: str, dims: int) -> None:
    affine = affine_for(codes, (1.0, 1.0, 3.0))
    hospital.datalist(training=[hospital.case("p", shape=(24, 20, 18), affine=affine)])
    volumes = hospital.volumes(spatial_dims=dims, crop=(16, 16, 16)[:dims])
    back = volumes.to_native(0, one_hot(volumes.label(0), 3))
    assert back.shape == (3, 24, 20, 18)
    assert np.array_equal(back.argmax(0).numpy(), volumes.native_label(0))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_way_back_is_close_with_resampling(hospital: Hospital, codes: str, dims: int) -> None:
    affine = affine_for(codes, (1.0, 1.3, 3.0))
    hospital.datalist(training=[hospital.case("p", shape=(48, 40, 30), affine=affine)])
    spacing = (1.4, 1.1, None if dims == 2 else 2.0)
    volumes = hospital.volumes(spatial_dims=dims, crop=(16, 16, 16)[:dims], spacing=spacing)
    back = volumes.to_native(0, one_hot(volumes.label(0), 3)).argmax(0).numpy()
    native = volumes.native_label(0)
    assert back.shape == native.shape
    assert dice(back, native, 1) > 0.9
    assert dice(back, native, 2) > 0.9


def test_an_oblique_short_axis_stack_comes_back(hospital: Hospital) -> None:
    tilt = np.array([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0], [-0.8, 0.0, 0.6]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.diag([1.25, 1.25, 8.0])
    hospital.datalist(training=[hospital.case("p", shape=(48, 40, 6), affine=affine)])
    volumes = hospital.volumes(spatial_dims=2, crop=(32, 32), spacing=(1.5, 1.5, None))
    assert volumes.image(0).shape == (1, 40, 33, 6)
    back = volumes.to_native(0, one_hot(volumes.label(0), 3)).argmax(0).numpy()
    assert dice(back, volumes.native_label(0), 1) > 0.9


def test_the_way_back_undoes_the_padding(hospital: Hospital) -> None:
    hospital.datalist(training=[hospital.case("p", shape=(13, 16, 20))])
    volumes = hospital.volumes()
    assert volumes.image(0).shape == (1, 16, 16, 20)
    assert volumes.image(0)[0, 0].max() == volumes.image(0).min(), "the padding is as dark as the darkest voxel"
    back = volumes.to_native(0, one_hot(volumes.label(0), 3)).argmax(0).numpy()
    assert np.array_equal(back, volumes.native_label(0))


def test_half_precision_probabilities_come_back(hospital: Hospital) -> None:
    hospital.datalist(training=[hospital.case("p")])
    volumes = hospital.volumes(spacing=(1.5, 1.5, 1.5), crop=(16, 16, 16))
    back = volumes.to_native(0, one_hot(volumes.label(0), 3).half())
    assert back.dtype == torch.float32
    assert back.sum(0).numpy() == pytest.approx(np.ones((20, 20, 20)), abs=1e-3)


def test_a_volume_far_smaller_than_the_crop_is_set_aside(hospital: Hospital) -> None:
    small, large = hospital.case("small", shape=(11, 20, 20), seed=1), hospital.case("large", seed=2)
    hospital.datalist(training=[small, large])
    for _ in range(2):
        volumes = hospital.volumes()
        assert [case.patient for case in volumes.cases] == ["large"]
        assert list(volumes.quarantined.values()) == ["smaller than the crop"]


def test_a_crop_larger_than_every_volume_is_an_error_with_sizes(hospital: Hospital) -> None:
    hospital.datalist(training=[hospital.case("a", seed=1), hospital.case("b", seed=2, shape=(18, 20, 20))])
    with pytest.raises(DataError, match=r"data\.crop: got \(32, 32, 32\).* 2 volumes has \(18, 20, 20\)"):
        hospital.volumes(crop=(32, 32, 32))


def test_a_second_opening_prepares_nothing(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    done = count_preparations(monkeypatch)
    hospital.datalist(training=[hospital.case("a", seed=1), hospital.case("b", seed=2)])
    first = hospital.volumes()
    second = hospital.volumes()
    assert done == ["a", "b"]
    assert np.array_equal(first.image(1), second.image(1))
    assert isinstance(second.image(0).base, np.memmap)
    # pretraining reads the same images: labels do not make them different
    hospital.volumes("unlabeled")
    assert done == ["a", "b"]
    # another spacing is another volume
    hospital.volumes(spacing=(0.9, 0.9, 0.9))
    assert done == ["a", "b", "a", "b"]


def test_a_fresh_process_loads_no_transforms(hospital: Hospital) -> None:
    hospital.datalist(training=[hospital.case("a")])
    first = hospital.volumes()
    script = (
        "import sys, json, numpy as np\n"
        "from pathlib import Path\n"
        "from fedmedseg.core.config import Experiment\n"
        "from fedmedseg.data.site import Site\n"
        "from fedmedseg.data.volumes import Volumes\n"
        f"root = Path({str(hospital.root)!r})\n"
        "site = Site(name='site-1', state_root=root, cache=root / 'cache', models=root, device='cpu',\n"
        "            datasets={'brain': root / 'datalist.json'}, salt='pepper and salt', simulated=True)\n"
        f"experiment = Experiment.model_validate(json.loads({hospital.experiment().model_dump_json()!r}))\n"
        "volumes = Volumes(site=site, experiment=experiment, section='training')\n"
        "print(float(np.abs(volumes.image(0)).sum()), 'monai' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    total, loaded = result.stdout.split()
    assert loaded == "False"
    assert float(total) == pytest.approx(float(np.abs(first.image(0)).sum()))


def test_a_damaged_entry_is_made_again(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    done = count_preparations(monkeypatch)
    hospital.datalist(training=[hospital.case("a")])
    expected = np.array(hospital.volumes().image(0))
    (file,) = (hospital.root / "cache").rglob("image.npy")
    file.write_bytes(file.read_bytes()[:1000])
    assert np.array_equal(hospital.volumes().image(0), expected)
    assert done == ["a", "a"]


def test_a_full_disk_means_memory_and_one_warning(hospital: Hospital, caplog: pytest.LogCaptureFixture) -> None:
    hospital.datalist(training=[hospital.case("a", seed=1), hospital.case("b", seed=2)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # no file may grow beyond 16 KB: a prepared volume has 32 KB
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, hard))
    try:
        volumes = hospital.volumes()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [message for message in caplog.messages if "cache" in message] == [
        "the cache cannot be written (EFBIG); work goes on in memory without it"
    ]
    assert len(volumes) == 2
    assert volumes.image(1).shape == (1, 20, 20, 20)
    assert set(volumes.points(1)) == {1, 2}
    assert not list((hospital.root / "cache").rglob("image.npy"))
    assert not list((hospital.root / "cache").rglob("*.tmp"))


def test_points_lie_on_their_structure(hospital: Hospital) -> None:
    hospital.datalist(training=[hospital.case("p", shape=(40, 40, 40))])
    volumes = hospital.volumes()
    label = volumes.label(0)
    points = volumes.points(0)
    assert set(points) == {1, 2}
    # structure 1 has 10 x 20 x 32 = 6400 voxels, structure 2 has 3200: both more than are kept
    assert [len(points[value]) for value in (1, 2)] == [1024, 1024]
    for value, places in points.items():
        assert (label[tuple(places.T)] == value).all()
        assert len({tuple(place) for place in places.tolist()}) == len(places)


def test_unlabeled_takes_training_images_but_nobody_held_out(
    hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    def image(name: str, seed: int) -> str:
        return hospital.nifti(f"{name}.nii.gz", hospital.scan(seed=seed)[0])

    train = hospital.case("train", seed=1)
    hospital.datalist(
        training=[train],
        validation=[hospital.case("val", seed=2)],
        test=[hospital.case("test", seed=3)],
        unlabeled=[
            {"image": image("free", 4), "patient": "free"},
            {"image": image("other", 5), "patient": "test"},
            {"image": train["image"], "patient": "train"},
        ],
    )
    volumes = hospital.volumes("unlabeled")
    assert volumes.patients == ["free", "train"]
    assert len(volumes) == 2
    assert volumes.label(1) is None
    assert "1 volumes left out" in caplog.text


def test_an_empty_training_label_does_not_bar_its_image_from_pretraining(hospital: Hospital) -> None:
    entry = hospital.case("p")
    entry["label"] = hospital.nifti("l.nii.gz", np.zeros((20, 20, 20), dtype=np.uint8))
    hospital.datalist(training=[entry])
    assert len(hospital.volumes("unlabeled")) == 1


def test_fraction_counts_patients_and_is_nested(hospital: Hospital) -> None:
    entries = [hospital.case(f"p{n}", seed=2 * n + phase) for n in range(4) for phase in range(2)]
    hospital.datalist(training=entries)
    kept = {}
    for fraction in (0.1, 0.26, 0.5, 1.0):
        volumes = hospital.volumes(fraction=fraction)
        kept[fraction] = set(volumes.patients)
        assert len(volumes) == 2 * len(volumes.patients)
    assert [len(patients) for patients in kept.values()] == [1, 2, 2, 4]
    assert kept[0.1] < kept[0.26] == kept[0.5] < kept[1.0]


def test_a_fraction_may_leave_fewer_than_min_cases(hospital: Hospital) -> None:
    hospital.datalist(training=[hospital.case(f"p{n}", seed=n) for n in range(3)])
    assert len(hospital.volumes(fraction=0.1, site=hospital.site(min_cases=3))) == 1


def test_choosing_patients_rounds_up_and_depends_on_the_seed() -> None:
    patients = [f"p{n:02d}" for n in range(30)]
    assert len(choose_patients(patients, 0.1, 1)) == 3
    assert len(choose_patients(patients, 0.101, 1)) == 4
    assert choose_patients(patients, 0.5, 1) == choose_patients(patients[::-1], 0.5, 1)
    assert len(choose_patients(patients, 1.0, 1, 2)) == 2
    assert choose_patients(patients, 1.0, 1, 2) < choose_patients(patients, 1.0, 1, 4)
    assert choose_patients(patients, 1.0, 1, 99) == set(patients)
    assert choose_patients(patients, 0.5, 1) != choose_patients(patients, 0.5, 2)


def test_a_role_the_site_lacks_is_named_with_those_it_has(hospital: Hospital) -> None:
    hospital.datalist(training=[hospital.case("p")])
    with pytest.raises(ConfigurationError, match="the roles brain in the site file"):
        hospital.volumes(role="cardiac_ct")


def test_fraction_must_be_a_share(hospital: Hospital) -> None:
    with pytest.raises(ValueError, match="fraction"):
        hospital.volumes(fraction=0.0)


@pytest.mark.skipif(REAL is None, reason="FEDMEDSEG_DATA is not set")
def test_sunnybrook_volumes_come_back(hospital: Hospital, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    root = Path(REAL or "") / "sunnybrook"
    names = sorted(path.name for path in (root / "images").glob("*.nii.gz"))[:6]
    entries = [
        {"image": str(root / "images" / name), "label": str(root / "labels" / name), "patient": name.split("_E")[0]}
        for name in names
    ]
    hospital.datalist(training=entries)
    volumes = hospital.volumes(spatial_dims=2, crop=(96, 96), labels={1: "cavity"}, spacing=(1.5, 1.5, None))
    assert len(volumes) == 6
    assert len(volumes.patients) == 3
    for index in range(6):
        back = volumes.to_native(index, one_hot(volumes.label(index), 2)).argmax(0).numpy()
        assert dice(back, volumes.native_label(index), 1) > 0.95
        assert volumes.spacing(index) == pytest.approx((1.5, 1.5, volumes.native_spacing(index)[2]))
    assert "SC-" not in caplog.text


@pytest.mark.skipif(REAL is None, reason="FEDMEDSEG_DATA is not set")
def test_hippocampus_volumes_come_back(hospital: Hospital) -> None:
    root = Path(REAL or "") / "hippocampus"
    names = sorted(path.name for path in (root / "images").glob("*.nii.gz"))[:5]
    entries = [{"image": str(root / "images" / name), "label": str(root / "labels" / name)} for name in names]
    hospital.datalist(training=entries)
    volumes = hospital.volumes(crop=(32, 32, 32))
    assert len(volumes) == 5
    for index in range(5):
        back = volumes.to_native(index, one_hot(volumes.label(index), 3)).argmax(0).numpy()
        assert np.array_equal(back, volumes.native_label(index))


def test_records_in_the_cache_name_no_patient(hospital: Hospital) -> None:
    hospital.datalist(training=[hospital.case("JANE_DOE")])
    hospital.volumes()
    files = [path for path in (hospital.root / "cache").rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert "DOE" not in path.name
        assert b"DOE" not in path.read_bytes()
        if path.suffix == ".json":
            json.loads(path.read_text())


def test_a_label_that_vanishes_is_told_by_key_in_the_sites_log_and_without_it_to_the_server(
    hospital: Hospital, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault row 44: what an error makes public is a code and a field, never a case."""
    entry = hospital.case("JANE_DOE")
    hospital.datalist(test=[entry])
    volumes = hospital.volumes("test")
    (hospital.root / entry["label"]).unlink()
    with pytest.raises(DataError) as caught:
        volumes.native_label(0)
    assert caught.value.public == "UNREADABLE: label"
    assert volumes.cases[0].key in caplog.text
    assert "JANE_DOE" not in caplog.text
