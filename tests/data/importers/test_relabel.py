"""Label maps: what is merged, what is joined, what is refused, and that a hard-linked source stays as it was."""

from __future__ import annotations

import doctest
import json
import re
import shlex
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.data.importers import create, relabel
from fedmedseg.data.importers.base import FilePair
from fedmedseg.data.importers.btcv import BTCVImporter
from fedmedseg.data.importers.decathlon import DecathlonImporter
from fedmedseg.data.importers.kits19 import KiTS19Importer
from fedmedseg.data.importers.relabel import Relabelled, parse_label_map, target_names

README = Path(__file__).parents[3] / "jobs" / "segviz" / "README.md"
BLOCK = re.compile(r"```\n(.*?)```", re.DOTALL)
AFFINE = np.diag([0.8, 0.8, 2.0, 1.0])


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


LABEL = np.arange(8, dtype=np.float64).reshape(2, 2, 2)


def test_a_map_is_read_from_pairs() -> None:
    assert doctest.testmod(relabel).failed == 0
    assert parse_label_map("6=1,1=2") == {6: 1, 1: 2}


@pytest.mark.parametrize("text", ["", "1", "1=", "1=0", "0=1", "1=2,1=3", "a=b", "1=255", "1=2;2=2", "1=2,"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--label-map"):
        parse_label_map(text)


def test_a_new_number_is_named_after_the_lowest_old_one() -> None:
    assert target_names({2: 4, 1: 4, 3: 1}, {1: "kidney", 2: "tumour", 3: "liver"}) == {1: "liver", 4: "kidney"}


@pytest.mark.parametrize("link", [False, True])
def test_labels_are_mapped_and_the_source_stays_as_it_was(tmp_path: Path, link: bool) -> None:
    label = np.minimum(LABEL, 2)
    save(tmp_path / "i.nii.gz", LABEL.astype(np.int16))
    save(tmp_path / "l.nii.gz", label)
    before = (tmp_path / "l.nii.gz").read_bytes()
    content = Relabelled(content=FilePair(image=tmp_path / "i.nii.gz", label=tmp_path / "l.nii.gz"), table={1: 4, 2: 4})
    content.write(tmp_path / "oi.nii.gz", tmp_path / "ol.nii.gz", link=link)
    assert (tmp_path / "l.nii.gz").read_bytes() == before
    written = voxels(tmp_path / "ol.nii.gz")
    assert written.dtype == np.uint8
    np.testing.assert_array_equal(written, 4 * (label > 0))
    np.testing.assert_allclose(nib.load(tmp_path / "ol.nii.gz").affine, AFFINE, atol=1e-6)
    np.testing.assert_array_equal(voxels(tmp_path / "oi.nii.gz"), LABEL)


def test_a_number_outside_the_map_is_refused_or_dropped(tmp_path: Path) -> None:
    save(tmp_path / "i.nii.gz", LABEL.astype(np.int16))
    save(tmp_path / "l.nii.gz", LABEL.astype(np.uint8))
    pair = FilePair(image=tmp_path / "i.nii.gz", label=tmp_path / "l.nii.gz")
    with pytest.raises(DataError, match="with label 2"):
        Relabelled(content=pair, table={1: 1}).write(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", link=False)
    dropping = Relabelled(content=pair, table={6: 1, 7: 2}, drop_others=True)
    dropping.write(tmp_path / "a.nii.gz", tmp_path / "c.nii.gz", link=False)
    assert voxels(tmp_path / "c.nii.gz").ravel().tolist() == [0, 0, 0, 0, 0, 0, 1, 2]


def test_a_decathlon_task_merges_tumours_and_says_what_it_marks(task, tmp_path: Path) -> None:
    root = task(labelled=2, unlabelled=1)
    found = DecathlonImporter(label_map="1=3,2=3").read(root, tick=lambda done, of: None)
    assert found.labels == {3: "anterior"}
    assert {case.annotated_labels for case in found.cases} == {(3,)}
    case = found.cases[0]
    case.content.write(tmp_path / "i.nii.gz", tmp_path / "l.nii.gz", link=False)
    assert set(np.unique(voxels(tmp_path / "l.nii.gz"))) == {0, 3}
    plain = DecathlonImporter().read(root, tick=lambda done, of: None)
    assert {one.annotated_labels for one in plain.cases} == {None}


@pytest.mark.parametrize("nested", [False, True])
def test_kits19_joins_kidney_and_tumour(tmp_path: Path, nested: bool) -> None:
    root = tmp_path / "data" if nested else tmp_path
    for number, labelled in ((0, True), (1, True), (210, False)):
        folder = root / f"case_{number:05d}"
        save(folder / "imaging.nii.gz", LABEL.astype(np.int16))
        if labelled:
            save(folder / "segmentation.nii.gz", np.minimum(LABEL, 2).astype(np.uint8))
    found = KiTS19Importer(label_map="1=4,2=4").read(tmp_path, tick=lambda done, of: None)
    assert [case.name for case in found.cases] == ["case_00000", "case_00001", "case_00210"]
    assert [case.content.has_label for case in found.cases] == [True, True, False]
    assert found.labels == {4: "kidneys"}
    assert found.cases[0].annotated_labels == (4,)
    found.cases[0].content.write(tmp_path / "i.nii.gz", tmp_path / "l.nii.gz", link=False)
    assert set(np.unique(voxels(tmp_path / "l.nii.gz"))) == {0, 4}
    assert KiTS19Importer().read(tmp_path, tick=lambda done, of: None).labels == {1: "kidneys"}


def test_btcv_reads_four_organs_and_joins_the_kidneys(tmp_path: Path) -> None:
    label = np.arange(16, dtype=np.uint8).reshape(4, 2, 2) % 14
    for number in (1, 2):
        save(tmp_path / "img" / f"img{number:04d}.nii.gz", label.astype(np.int16))
    save(tmp_path / "label" / "label0001.nii.gz", label)
    found = BTCVImporter().read(tmp_path, tick=lambda done, of: None)
    assert found.labels == {1: "liver", 2: "spleen", 3: "pancreas", 4: "kidneys"}
    assert [(case.name, case.content.has_label) for case in found.cases] == [("case_0001", True), ("case_0002", False)]
    found.cases[0].content.write(tmp_path / "i.nii.gz", tmp_path / "l.nii.gz", link=False)
    written = voxels(tmp_path / "l.nii.gz")
    for old, new in ((1, 2), (2, 4), (3, 4), (6, 1), (11, 3), (4, 0), (13, 0)):
        assert set(written[label == old]) == {new}
    assert BTCVImporter(label_map="4=1").read(tmp_path, tick=lambda done, of: None).labels == {1: "gallbladder"}


def test_other_layouts_are_told_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="case_00000"):
        KiTS19Importer().read(tmp_path, tick=lambda done, of: None)
    with pytest.raises(ConfigurationError, match="img0001"):
        BTCVImporter().read(tmp_path, tick=lambda done, of: None)
    save(tmp_path / "img" / "img0001.nii.gz", LABEL.astype(np.int16))
    save(tmp_path / "label" / "label0009.nii.gz", LABEL.astype(np.uint8))
    with pytest.raises(ConfigurationError, match=r"1 label\(s\) without an image"):
        BTCVImporter().read(tmp_path, tick=lambda done, of: None)


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """The public sets of SegViz's README where it looks for them, five cases each."""
    label = np.zeros((16, 16, 16), dtype=np.uint8)
    label[:8], label[8:10] = 1, 2
    image = label.astype(np.int16) * 50
    for folder, names in (
        ("Task03_Liver", ("liver", "cancer")),
        ("Task07_Pancreas", ("pancreas", "cancer")),
        ("Task09_Spleen", ("spleen",)),
    ):
        entries = []
        for number in range(5):
            entry = {"image": f"imagesTr/{number}.nii.gz", "label": f"labelsTr/{number}.nii.gz"}
            save(tmp_path / folder / entry["image"], image)
            save(tmp_path / folder / entry["label"], np.minimum(label, len(names)))
            entries.append(entry)
        labels = {str(value): name for value, name in enumerate(("background", *names))}
        content = {"name": folder, "labels": labels, "modality": {"0": "CT"}, "training": entries, "test": []}
        (tmp_path / folder / "dataset.json").write_text(json.dumps(content))
    for number in range(5):
        save(tmp_path / "kits19" / "data" / f"case_{number:05d}" / "imaging.nii.gz", image)
        save(tmp_path / "kits19" / "data" / f"case_{number:05d}" / "segmentation.nii.gz", label)
        save(tmp_path / "RawData" / "Training" / "img" / f"img{number:04d}.nii.gz", image)
        save(tmp_path / "RawData" / "Training" / "label" / f"label{number:04d}.nii.gz", label)
    return tmp_path


def test_the_commands_of_the_readme_make_four_sites_of_one_organ_each_and_an_outside_one(
    downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from fedmedseg.cli.main import app
    from fedmedseg.core.jobs import find_job, read_settings
    from fedmedseg.data.site import open_site
    from fedmedseg.segviz.external import labelled_cases
    from fedmedseg.segviz.organs import organs_of

    imports, moves = (block for block in BLOCK.findall(README.read_text()) if "runs/liver" in block or "mv " in block)
    monkeypatch.chdir(downloads)
    for line in imports.splitlines():
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, (line, result.output)
    shell = "\n".join(line for line in moves.splitlines() if not line.startswith("fedmedseg"))
    subprocess.run(["bash", "-e", "-c", shell], check=True)

    small = {"data": {"spacing": [None] * 3, "crop": [16, 16, 16], "phantom": None}}
    study = read_settings(find_job("segviz"), [small])[1]
    local = downloads / "runs" / "abdomen"
    assert sorted(file.stem for file in (local / "sites").iterdir()) == ["kidneys", "liver", "pancreas", "spleen"]
    for number, organ in study.data.labels.items():
        site = open_site(study, name=organ, local=local, workspace=downloads / "w", simulated=True)
        assert organs_of(site, study) == (number,)
    outside = downloads / "runs" / "external" / "site-1" / "datalist.json"
    assert len(labelled_cases(outside, data=study.data, budget_mb=64)[0]) == 5


def test_an_importer_without_a_map_says_so() -> None:
    with pytest.raises(ConfigurationError, match="--label-map: got importer 'sunnybrook'"):
        create("sunnybrook", label_map="1=1")
