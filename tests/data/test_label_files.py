"""Label maps lie where their image lies, to the last bit, whatever its header says; and nothing else of it is kept."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.data.label_files import write_label_map

TURNED = np.array([[0.0, -0.9, 0.3, 12.5], [1.1, 0.0, 0.1, -7.25], [0.2, 0.4, 4.7, 100.125], [0.0, 0.0, 0.0, 1.0]])


def rotation() -> np.ndarray:
    turn = np.deg2rad(25.0)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    return matrix @ np.diag([-0.7, 1.3, 8.0, 1.0])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "image.nii.gz"


def write(image: Path, affine: np.ndarray, *, sform: int = 2, qform: int = 0) -> None:
    made = nib.Nifti1Image(np.zeros((5, 4, 3), np.int16), affine)
    made.header.set_sform(affine if sform else None, code=sform)
    made.header.set_qform(affine if qform else None, code=qform)
    made.header["descrip"], made.header["db_name"] = b"DOE^JOHN", b"DOE"
    made.header["aux_file"], made.header["intent_name"] = b"DOE", b"DOE"
    made.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"DOE^JOHN 1950"))
    nib.save(made, image)


@pytest.mark.parametrize(
    ("affine", "sform", "qform"),
    [
        (TURNED, 2, 0),
        (TURNED, 1, 0),
        (np.diag([-2.0, -1.0, 3.0, 1.0]), 0, 1),
        (rotation(), 0, 1),
        (rotation(), 4, 1),
    ],
)
def test_shape_and_affine_come_back_to_the_last_bit(image: Path, affine: np.ndarray, sform: int, qform: int) -> None:
    write(image, affine, sform=sform, qform=qform)
    out = image.with_name("map.nii.gz")
    write_label_map(out, np.ones((5, 4, 3), np.uint8), image)
    read, source = nib.load(out), nib.load(image)
    assert read.shape == source.shape
    assert np.array_equal(read.affine, source.affine)
    for of in ("get_sform", "get_qform"):
        assert int(getattr(read, of)(coded=True)[1]) == int(getattr(source, of)(coded=True)[1])
    assert read.header.get_zooms() == source.header.get_zooms()
    assert read.get_data_dtype() == np.uint8


def test_nothing_that_somebody_wrote_into_the_header_is_kept(image: Path) -> None:
    write(image, TURNED)
    assert b"DOE" in gzip.decompress(image.read_bytes())
    out = image.with_name("map.nii")
    write_label_map(out, np.zeros((5, 4, 3), np.uint8), image)
    assert b"DOE" not in out.read_bytes()


def test_the_same_labels_are_the_same_bytes_at_another_time_under_another_name(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(image, TURNED)
    labels = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
    write_label_map(image.with_name("a.nii.gz"), labels, image)
    later = time.time() + 1e6
    monkeypatch.setattr(time, "time", lambda: later)
    write_label_map(image.with_name("b.nii.gz"), labels, image)
    written = image.with_name("a.nii.gz").read_bytes()
    assert image.with_name("b.nii.gz").read_bytes() == written
    assert written[4:8] == bytes(4), "no time in the gzip header"
    assert written[3] == 0, "and no name"


def test_numbers_above_255_take_two_bytes_and_others_are_refused(image: Path) -> None:
    write(image, TURNED)
    out = image.with_name("map.nii.gz")
    labels = np.zeros((5, 4, 3), np.int32)
    labels[0, 0, 0] = 300
    write_label_map(out, labels, image)
    assert nib.load(out).get_data_dtype() == np.uint16
    assert np.array_equal(np.asarray(nib.load(out).dataobj), labels)
    for wrong in (labels - 1, labels * 1000):
        with pytest.raises(DataError, match="0 to 65535"):
            write_label_map(out, wrong, image)
    with pytest.raises(DataError, match="shape"):
        write_label_map(out, labels[1:], image)
    with pytest.raises(ConfigurationError, match=r"map.nii.gz \((File exists|Not a directory)\)"):
        write_label_map(image / "map.nii.gz", labels, image)
