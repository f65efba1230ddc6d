"""Every fault of a file: set aside with its reason, before it can harm."""

import gzip
import tracemalloc
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from fedmedseg.core.errors import DataError, Reason
from fedmedseg.data import checks

# byte offsets in a NIfTI-1 header
DIM, PIXDIM, VOX_OFFSET, SROW = 40, 76, 108, 280

Hospital = Any
Entry = dict[str, Any]
BAD: dict[str, tuple[str, Callable[[Hospital, Entry], Entry]]] = {}


def fault(reason: str) -> Callable[[Callable[[Hospital, Entry], Entry]], Callable[[Hospital, Entry], Entry]]:
    """Register a way to spoil a healthy entry and the reason it must be set aside for."""

    def register(spoil: Callable[[Hospital, Entry], Entry]) -> Callable[[Hospital, Entry], Entry]:
        BAD[spoil.__name__] = (reason, spoil)
        return spoil

    return register


@fault("damaged compressed file")
def truncated_gz(hospital: Hospital, entry: Entry) -> Entry:
    content = (hospital.root / entry["image"]).read_bytes()
    (hospital.root / "files/bad.nii.gz").write_bytes(content[: len(content) * 2 // 3])
    return {**entry, "image": "files/bad.nii.gz"}


@fault("file of the label: damaged compressed file")
def truncated_label(hospital: Hospital, entry: Entry) -> Entry:
    content = (hospital.root / entry["label"]).read_bytes()
    (hospital.root / "files/bad.nii.gz").write_bytes(content[: len(content) * 2 // 3])
    return {**entry, "label": "files/bad.nii.gz"}


@fault("damaged compressed file")
def bit_flip_that_only_the_checksum_shows(hospital: Hospital, entry: Entry) -> Entry:
    raw = gzip.decompress((hospital.root / entry["image"]).read_bytes())
    stored = bytearray(gzip.compress(raw, compresslevel=0))
    stored[len(stored) // 2] ^= 0x10
    bad = hospital.root / "files/bad.nii.gz"
    bad.write_bytes(bytes(stored))
    assert nib.load(bad).get_fdata().shape == (20, 20, 20), "the reader itself notices nothing"
    return {**entry, "image": "files/bad.nii.gz"}


@fault("no NIfTI file")
def not_nifti(hospital: Hospital, entry: Entry) -> Entry:
    (hospital.root / "files/bad.nii.gz").write_bytes(gzip.compress(b"hello" * 1000))
    return {**entry, "image": "files/bad.nii.gz"}


@fault("no NIfTI file")
def empty_file(hospital: Hospital, entry: Entry) -> Entry:
    (hospital.root / "files/bad.nii.gz").write_bytes(b"")
    return {**entry, "image": "files/bad.nii.gz"}


@fault("header that cannot be read")
def voxels_nowhere(hospital: Hospital, entry: Entry) -> Entry:
    offset = np.array([np.nan], dtype="<f4")
    return {**entry, "image": hospital.patched("bad.nii.gz", entry["image"], VOX_OFFSET, offset)}


@fault("file cut off")
def voxels_beyond_any_file(hospital: Hospital, entry: Entry) -> Entry:
    offset = np.array([1e30], dtype="<f4")
    return {**entry, "image": hospital.patched("bad.nii.gz", entry["image"], VOX_OFFSET, offset)}


@fault("no NIfTI file")
def negative_axis(hospital: Hospital, entry: Entry) -> Entry:
    return {**entry, "image": hospital.patched("bad.nii.gz", entry["image"], DIM, np.array([3, -20, 20], dtype="<i2"))}


@fault("larger than the memory budget")
def header_bomb(hospital: Hospital, entry: Entry) -> Entry:
    dims = np.array([3, 20000, 20000, 20000], dtype="<i2")
    return {**entry, "image": hospital.patched("bad.nii.gz", entry["image"], DIM, dims)}


@fault("file cut off")
def fewer_voxels_than_announced(hospital: Hospital, entry: Entry) -> Entry:
    dims = np.array([3, 20, 20, 40], dtype="<i2")
    image = hospital.patched("bad.nii.gz", entry["image"], DIM, dims)
    return {**entry, "image": image, "label": hospital.patched("bad_label.nii.gz", entry["label"], DIM, dims)}


@fault("more compressed data than the header announces")
def gzip_bomb(hospital: Hospital, entry: Entry) -> Entry:
    raw = gzip.decompress((hospital.root / entry["image"]).read_bytes())
    (hospital.root / "files/bad.nii.gz").write_bytes(gzip.compress(raw + bytes(20_000_000), compresslevel=1))
    return {**entry, "image": "files/bad.nii.gz"}


@fault("voxels that are not finite")
def nan_voxels(hospital: Hospital, entry: Entry) -> Entry:
    image = hospital.scan()[0].astype(np.float32)
    image[3, 4, 5] = np.nan
    return {**entry, "image": hospital.nifti("bad.nii.gz", image)}


@fault("voxels that are not finite")
def doubles_beyond_float32(hospital: Hospital, entry: Entry) -> Entry:
    image = hospital.scan()[0].astype(np.float64)
    image[3, 4, 5] = 1e300
    return {**entry, "image": hospital.nifti("bad.nii.gz", image)}


@fault("image without contrast")
def constant_image(hospital: Hospital, entry: Entry) -> Entry:
    return {**entry, "image": hospital.nifti("bad.nii.gz", np.full((20, 20, 20), 7, dtype=np.int16))}


@fault("affine whose determinant is zero")
def zero_affine(hospital: Hospital, entry: Entry) -> Entry:
    return {**entry, "image": hospital.patched("bad.nii.gz", entry["image"], SROW, np.zeros(12, dtype="<f4"))}


@fault("affine whose determinant is zero")
def two_axes_alike(hospital: Hospital, entry: Entry) -> Entry:
    rows = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]], dtype="<f4")
    return {**entry, "image": hospital.patched("bad.nii.gz", entry["image"], SROW, rows)}


@fault("affine that is not finite")
def nan_affine(hospital: Hospital, entry: Entry) -> Entry:
    return {**entry, "image": hospital.patched("bad.nii.gz", entry["image"], SROW, np.array([np.nan], dtype="<f4"))}


@fault("spacing that is not finite")
def nan_spacing(hospital: Hospital, entry: Entry) -> Entry:
    pixdim = np.array([1, np.nan, 1, 1], dtype="<f4")
    return {**entry, "image": hospital.patched("bad.nii.gz", entry["image"], PIXDIM, pixdim)}


@fault("spacing outside 0.01..50.0 mm")
def huge_spacing(hospital: Hospital, entry: Entry) -> Entry:
    return {**entry, "image": hospital.nifti("bad.nii.gz", hospital.scan()[0], np.diag([1, 1, 80.0, 1]))}


@fault("4 axes instead of 3")
def four_dimensions(hospital: Hospital, entry: Entry) -> Entry:
    return {**entry, "image": hospital.nifti("bad.nii.gz", np.zeros((20, 20, 20, 2), dtype=np.int16))}


@fault("2 axes instead of 3")
def two_dimensions(hospital: Hospital, entry: Entry) -> Entry:
    return {**entry, "image": hospital.nifti("bad.nii.gz", np.zeros((20, 20), dtype=np.int16))}


@fault("voxels that are not plain numbers (colour or complex)")
def colour(hospital: Hospital, entry: Entry) -> Entry:
    pixels = np.zeros((20, 20, 20), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    return {**entry, "image": hospital.nifti("bad.nii.gz", pixels)}


@fault("voxels that are not plain numbers (colour or complex)")
def complex_numbers(hospital: Hospital, entry: Entry) -> Entry:
    return {**entry, "image": hospital.nifti("bad.nii.gz", np.ones((20, 20, 20), dtype=np.complex64))}


@fault("label values outside 0..2")
def label_out_of_range(hospital: Hospital, entry: Entry) -> Entry:
    label = hospital.scan()[1]
    label[0, 0, 0] = 3
    return {**entry, "label": hospital.nifti("bad.nii.gz", label)}


@fault("label values outside 0..2")
def negative_label(hospital: Hospital, entry: Entry) -> Entry:
    label = hospital.scan()[1].astype(np.int16)
    label[0, 0, 0] = -1
    return {**entry, "label": hospital.nifti("bad.nii.gz", label)}


@fault("label values that are not whole numbers")
def fractional_label(hospital: Hospital, entry: Entry) -> Entry:
    return {**entry, "label": hospital.nifti("bad.nii.gz", hospital.scan()[1].astype(np.float32) * 0.5)}


@fault("label voxels that are not finite")
def nan_label(hospital: Hospital, entry: Entry) -> Entry:
    label = hospital.scan()[1].astype(np.float32)
    label[0, 0, 0] = np.nan
    return {**entry, "label": hospital.nifti("bad.nii.gz", label)}


@fault("image and label differ in shape")
def other_shape(hospital: Hospital, entry: Entry) -> Entry:
    return {**entry, "label": hospital.nifti("bad.nii.gz", hospital.scan((20, 20, 21))[1])}


@fault("image and label differ in affine")
def other_affine(hospital: Hospital, entry: Entry) -> Entry:
    affine = np.eye(4)
    affine[0, 3] = 0.5
    return {**entry, "label": hospital.nifti("bad.nii.gz", hospital.scan()[1], affine)}


@fault("empty label")
def empty_mask(hospital: Hospital, entry: Entry) -> Entry:
    return {**entry, "label": hospital.nifti("bad.nii.gz", np.zeros((20, 20, 20), dtype=np.uint8))}


@fault("label values that annotated_labels leaves out")
def more_than_declared(hospital: Hospital, entry: Entry) -> Entry:
    return {**entry, "annotated_labels": [1]}


@fault("annotated_labels outside 1..2")
def unknown_annotation(hospital: Hospital, entry: Entry) -> Entry:
    return {**entry, "annotated_labels": [1, 2, 9]}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_case_is_set_aside_and_the_rest_goes_on(hospital: Hospital, name: str) -> None:
    reason, spoil = BAD[name]
    good = hospital.case("good", seed=1)
    bad = spoil(hospital, hospital.case("bad", seed=2))
    hospital.datalist(training=[good, bad])
    volumes = hospital.volumes()
    assert [case.patient for case in volumes.cases] == ["good"]
    assert list(volumes.quarantined.values()) == [reason]


def test_a_header_bomb_allocates_nothing(hospital: Hospital) -> None:
    entry = header_bomb(hospital, hospital.case("bad"))
    hospital.datalist(unlabeled=[{"image": entry["image"]}])
    tracemalloc.start()
    with pytest.raises(DataError) as caught:
        hospital.volumes("unlabeled")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.reason is Reason.NO_CASES
    assert peak < 20e6


def test_the_budget_counts_resampled_voxels_too(hospital: Hospital) -> None:
    # 20 voxels of 4 mm make 160 of 0.5 mm: 160^3 x 4 bytes are 15.6 MiB
    hospital.datalist(training=[hospital.case("p", affine=np.diag([4.0, 4.0, 4.0, 1.0]))])
    with pytest.raises(DataError, match="larger than the memory budget after resampling"):
        hospital.volumes(site=hospital.site(volume_budget_mb=15), spacing=(0.5, 0.5, 0.5))


def test_sheared_and_slightly_rounded_affines_pass(hospital: Hospital) -> None:
    affine = np.array([[1, 0.2, 0, 5], [0, 1, 0.1, 6], [0, 0, 2, 7], [0, 0, 0, 1.0]])
    entry = hospital.case("p", affine=affine)
    entry["label"] = hospital.nifti("l.nii.gz", hospital.scan()[1], affine + 1e-4 * (affine != 0))
    hospital.datalist(training=[entry])
    assert len(hospital.volumes()) == 1


@pytest.mark.parametrize("declared", [{"allow_empty": True}, {"annotated_labels": []}])
def test_an_empty_label_passes_where_it_is_declared(hospital: Hospital, declared: dict[str, Any]) -> None:
    hospital.datalist(training=[{**empty_mask(hospital, hospital.case("p")), **declared}])
    assert len(hospital.volumes()) == 1


def test_whole_numbers_stored_as_floats_pass(hospital: Hospital) -> None:
    entry = hospital.case("p")
    entry["label"] = hospital.nifti("l.nii.gz", hospital.scan()[1].astype(np.float32))
    hospital.datalist(training=[entry])
    assert hospital.volumes().native_label(0).dtype == np.uint8


def test_min_cases_is_the_limit_for_training(hospital: Hospital) -> None:
    good = [hospital.case(name, seed=seed) for seed, name in enumerate("ab")]
    hospital.datalist(training=[*good, empty_mask(hospital, hospital.case("bad", seed=9))], validation=[])
    assert len(hospital.volumes(site=hospital.site(min_cases=2))) == 2
    with pytest.raises(DataError, match=r"2 usable of 3 listed cases; set aside: empty label \(1\)") as caught:
        hospital.volumes(site=hospital.site(min_cases=3))
    assert caught.value.reason is Reason.NO_CASES
    with pytest.raises(DataError) as caught:
        hospital.volumes("validation")
    assert caught.value.reason is Reason.NO_CASES


def test_results_are_remembered_until_a_file_changes(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = hospital.case("p")
    bad = empty_mask(hospital, hospital.case("bad", seed=3))
    hospital.datalist(training=[entry, bad])
    seen: list[str] = []
    inspect = checks.inspect

    def counted(case: Any, **settings: Any) -> None:
        seen.append(case.patient)
        inspect(case, **settings)

    monkeypatch.setattr(checks, "inspect", counted)
    hospital.volumes()
    hospital.volumes()
    assert seen == ["bad", "p"]
    hospital.nifti("bad.nii.gz", hospital.scan(seed=3)[1])
    assert len(hospital.volumes()) == 2
    assert seen == ["bad", "p", "bad"]
    hospital.volumes(labels={1: "one", 2: "two"})
    assert seen[3:] == ["bad", "p"]


def test_no_name_reaches_the_log(hospital: Hospital, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    good = hospital.case("JANE_DOE_1948", seed=1)
    bad = truncated_gz(hospital, hospital.case("JOHN_DOE_1950", seed=2))
    (hospital.root / bad["image"]).rename(hospital.root / "files/JOHN_DOE.nii.gz")
    small = hospital.case("JIM_DOE", seed=3, shape=(8, 20, 20))
    hospital.datalist(
        training=[good, small, {**bad, "image": "files/JOHN_DOE.nii.gz"}],
        test=[hospital.case("JILL_DOE", seed=4)],
        unlabeled=[{"image": hospital.nifti("JILL_DOE_2.nii.gz", hospital.scan()[0]), "patient": "JILL_DOE"}],
    )
    volumes = hospital.volumes()
    hospital.volumes("unlabeled")
    assert sorted(volumes.quarantined.values()) == ["damaged compressed file", "smaller than the crop"]
    assert volumes.cases[0].key
    assert "set aside" in caplog.text
    assert "DOE" not in caplog.text
    assert str(hospital.root) not in caplog.text
