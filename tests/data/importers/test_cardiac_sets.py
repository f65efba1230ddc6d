"""ACDC, M&Ms and EMIDEC in their public layouts: which files are read, and that every label order ends in one map."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.core.jobs import find_job, find_preset, read_settings
from fedmedseg.core.schema import read_yaml
from fedmedseg.data.datalist import read_datalist
from fedmedseg.data.importers import create
from fedmedseg.data.importers.base import Collection, SourceCase
from fedmedseg.data.site import open_site
from fedmedseg.data.views import site_view

README = Path(__file__).parents[3] / "jobs" / "fedcrld" / "README.md"
BLOCK = re.compile(r"```\n(.*?)```", re.DOTALL)

AFFINE = np.diag([1.5, 1.5, 9.0, 1.0])
TRUTH = {"left_ventricle": 1, "myocardium": 2, "right_ventricle": 3}


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)


def labelled(left: int, wall: int, right: int) -> np.ndarray:
    """Ten voxels of the left ventricle, twenty of the wall, thirty of the right ventricle."""
    label = np.zeros(8 * 8 * 2, dtype=np.uint8)
    label[:10], label[10:30], label[30:60] = left, wall, right
    return label.reshape(8, 8, 2)


def read(name: str, source: Path) -> Collection:
    return create(name).read(source, tick=lambda done, of: None)


def written(case: SourceCase, folder: Path) -> tuple[nib.Nifti1Image, dict[int, int]]:
    """The image, and how many voxels of each label, as a site gets them."""
    image, label = folder / f"i{case.suffix}", folder / f"l{case.suffix}"
    case.content.write(image, label, link=False)
    values, counts = np.unique(np.asanyarray(nib.load(label).dataobj), return_counts=True)
    assert np.allclose(nib.load(label).affine, AFFINE)
    return nib.load(image), {int(v): int(n) for v, n in zip(values, counts, strict=True) if v}


@pytest.fixture
def acdc(tmp_path: Path) -> Path:
    root = tmp_path / "ACDC"
    for place, patient, group in (("training", 1, "DCM"), ("training", 2, "NOR"), ("testing", 101, "DCM")):
        folder = root / place / f"patient{patient:03d}"
        for frame in (1, 12):
            image = np.full((8, 8, 2), 100 * patient + frame, dtype=np.int16)
            save(folder / f"patient{patient:03d}_frame{frame:02d}.nii.gz", image)
            save(folder / f"patient{patient:03d}_frame{frame:02d}_gt.nii.gz", labelled(left=3, wall=2, right=1))
        save(folder / f"patient{patient:03d}_4d.nii.gz", np.zeros((8, 8, 2, 3), dtype=np.int16))
        (folder / "Info.cfg").write_text(f"ED: 1\nES: 12\nGroup: {group}\nHeight: 180.0\nNbFrame: 30\n")
    return root


@pytest.fixture
def mnms(tmp_path: Path) -> Path:
    root = tmp_path / "OpenDataset"
    rows = ["Index,External code,VendorName,Vendor,Centre,ED,ES"]
    for place, code, centre, ed, es in (
        ("Training/Labeled", "A0S9V9", 1, 0, 2),
        ("Validation", "A1D0Q7", 2, 3, 1),
        ("Testing", "A1E9Q1", 2, 0, 1),
    ):
        image = np.stack([np.full((8, 8, 2), 10 * centre + frame, dtype=np.int16) for frame in range(4)], axis=-1)
        label = np.zeros((8, 8, 2, 4), dtype=np.uint8)
        label[..., ed] = label[..., es] = labelled(left=1, wall=2, right=3)
        save(root / place / code / f"{code}_sa.nii.gz", image)
        save(root / place / code / f"{code}_sa_gt.nii.gz", label)
        rows.append(f"0,{code},Siemens,A,{centre},{ed},{es}")
    image = np.zeros((8, 8, 2, 4), dtype=np.int16)
    save(root / "Training" / "Unlabeled" / "B0H7V0" / "B0H7V0_sa.nii.gz", image)
    rows += ["0,B0H7V0,GE,C,3,1,2", "0,Z9Z9Z9,GE,C,3,1,2"]
    (root / "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def emidec(tmp_path: Path) -> Path:
    root = tmp_path / "emidec-dataset-1.0.1"
    for name in ("Case_N006", "Case_P001", "Case_P002"):
        save(root / name / "Images" / f"{name}.nii.gz", np.full((8, 8, 2), 7, dtype=np.int16))
        if name != "Case_P002":
            label = labelled(left=1, wall=2, right=3)
            label[7, 7, 1] = 4
            save(root / name / "Contours" / f"{name}.nii.gz", label)
    (root / "Case N006.txt").write_text("clinical")
    return root


def test_acdc_has_two_frames_per_patient_in_groups_by_diagnosis(acdc: Path) -> None:
    found = read("acdc", acdc)
    assert len(found.cases) == 6
    assert found.groups == ["DCM", "NOR"]
    assert {case.patient for case in found.cases} == {"patient001", "patient002", "patient101"}
    assert not any("4d" in case.name for case in found.cases)
    assert (found.role, dict(found.labels)) == ("cmr", {number: name for name, number in TRUTH.items()})
    assert len(read("acdc", acdc / "training").cases) == 4


def test_mnms_has_end_diastole_and_end_systole_in_groups_by_centre(mnms: Path, tmp_path: Path) -> None:
    found = read("mnms", mnms)
    assert [case.name for case in found.cases[:2]] == ["A0S9V9_ed", "A0S9V9_es"]
    assert found.groups == ["centre-1", "centre-2", "centre-3"]
    assert found.skipped == {"patient of the table without images": 1}
    assert {case.patient: case.content.has_label for case in found.cases}["B0H7V0"] is False
    image, _ = written(found.cases[1], tmp_path)
    assert image.shape == (8, 8, 2)
    assert float(np.asanyarray(image.dataobj)[0, 0, 0]) == 12, "frame 2 of centre 1"
    assert found.cases[0].content.volume_mm3() == pytest.approx(8 * 8 * 2 * 1.5 * 1.5 * 9.0)


def test_emidec_keeps_its_four_labels_under_the_role_of_late_enhancement(emidec: Path, tmp_path: Path) -> None:
    found = read("emidec", emidec)
    assert (found.role, list(found.labels.values())) == (
        "lge",
        ["left_ventricle", "myocardium", "infarct", "no_reflow"],
    )
    assert found.groups == ["emidec"]
    assert [case.content.has_label for case in found.cases] == [True, True, False]
    assert written(found.cases[0], tmp_path)[1] == {1: 10, 2: 20, 3: 30, 4: 1}


def test_acdc_and_mnms_end_in_one_label_map(acdc: Path, mnms: Path, tmp_path: Path) -> None:
    """ACDC numbers the right ventricle 1 and the left 3, M&Ms the reverse."""
    for name, source in (("acdc", acdc), ("mnms", mnms)):
        found = read(name, source)
        assert written(found.cases[0], tmp_path)[1] == {1: 10, 2: 20, 3: 30}, name


@pytest.mark.parametrize(("name", "told"), [("acdc", "patient001"), ("mnms", "opendataset"), ("emidec", "Case_N006")])
def test_another_folder_is_refused_with_the_layout(name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigurationError, match=told):
        read(name, tmp_path)


def test_a_value_that_the_set_does_not_have_is_an_error(acdc: Path, tmp_path: Path) -> None:
    path = acdc / "training" / "patient001" / "patient001_frame01_gt.nii.gz"
    save(path, labelled(left=3, wall=2, right=7))
    with pytest.raises(DataError, match="with the value 7"):
        written(read("acdc", acdc).cases[0], tmp_path)


def test_a_table_without_its_columns_or_with_a_frame_beyond_the_series_is_an_error(mnms: Path, tmp_path: Path) -> None:
    table = next(mnms.glob("*.csv"))
    text = table.read_text()
    table.write_text(text.replace("A0S9V9,Siemens,A,1,0,2", "A0S9V9,Siemens,A,1,9,2"))
    with pytest.raises(DataError, match="a frame that the series has"):
        written(read("mnms", mnms).cases[0], tmp_path)
    table.write_text(text.replace("A0S9V9,Siemens,A,1,0,2", "A0S9V9,Siemens,A,1,,2"))
    with pytest.raises(ConfigurationError, match="line 2"):
        read("mnms", mnms)
    table.write_text(text.replace("Centre", "Center"))
    with pytest.raises(ConfigurationError, match="also Centre"):
        read("mnms", mnms)


def test_sites_are_written_from_all_three(
    acdc: Path, mnms: Path, emidec: Path, tmp_path: Path, import_set: Callable[..., Path]
) -> None:
    """Through the command, to data lists and site files that a study of two label maps takes."""
    # the third centre of this M&Ms has no label: only sites that are asked for are written
    two = ("--sites", "centre-2=centre-2")
    for name, source, site, role, options in (
        ("acdc", acdc, "nor", "cmr", ()),
        ("mnms", mnms, "centre-2", "cmr", two),
        ("emidec", emidec, "emidec", "lge", ()),
    ):
        out = import_set(name, source, tmp_path / f"out-{name}", *options)
        assert (out / "sites" / f"{site}.yaml").is_file()
        assert role in (out / "sites" / f"{site}.yaml").read_text()
        assert (out / site / "datalist.json").is_file()
    # as the job's README puts them together
    script = next(block for block in BLOCK.findall(README.read_text()) if block.startswith("mv "))
    moves = "\n".join(line for line in script.splitlines() if line.startswith("mv ")).replace("runs/", "out-")
    subprocess.run(["bash", "-e", "-c", moves], cwd=tmp_path, check=True)
    experiment = read_settings(find_job("fedcrld"), [read_yaml(find_preset("fedcrld", "paper"))])[1]
    local, workspace = tmp_path / "out-mnms", tmp_path / "w"
    for name, role, classes in (("centre-2", "cmr", 4), ("emidec", "lge", 5)):
        site = open_site(experiment, name=name, local=local, workspace=workspace, simulated=True)
        view = site_view(experiment, site.datasets, preferred=site.prefers)
        assert (view.data.role, view.data.classes) == (role, classes)
        listed = read_datalist(site.data_list(role), salt=site.salt)["training"]
        assert listed
        assert all(file.is_file() for case in listed for file in (case.image, case.label) if file is not None)


@pytest.fixture
def import_set() -> Callable[..., Path]:
    """import_set(name, source, out, *options): `fedmedseg data import`, everything for training."""
    from typer.testing import CliRunner

    from fedmedseg.cli.data import data_app

    def run(name: str, source: Path, out: Path, *options: str) -> Path:
        call = ["import", name, str(source), "--out", str(out), "--split", "1,0,0", *options]
        result = CliRunner().invoke(data_app, call)
        assert result.exit_code == 0, result.output
        return out

    return run
