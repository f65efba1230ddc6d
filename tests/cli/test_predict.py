"""`fedmedseg predict` on a folder: maps, volumes and function of what can be used, and reasons for what cannot."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_study import moved, tiny
from typer.testing import CliRunner

from fedmedseg.cli.main import app
from fedmedseg.cli.predict import _hearts
from fedmedseg.core import checkpoint
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.jobs import find_job, read_settings
from fedmedseg.data.images import Source
from fedmedseg.segmentation.models import save_model
from fedmedseg.segmentation.predicted_files import _figure, require_new
from fedmedseg.segmentation.prediction import SegmentationPredictor
from fedmedseg.segmentation.starts import initial_network
from fedmedseg.segviz.publication import blank, save_published

TINY = tiny("left ventricle", "wall", norm="instance")
EACH_ML = 1.5 * 2.0 * 8.0 / 1000.0
"""ml of a voxel of the images here."""


def call(*options: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["predict", *map(str, options)], env={"COLUMNS": "300"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


class Place:
    """A model with random weights, and a folder of two frames of one patient."""

    def __init__(self, root: Path) -> None:
        self.root, self.images, self.out = root, root / "images", root / "out"
        self.study = read_settings(find_job("fedavg"), [TINY])[1]
        network = initial_network(self.study)
        moved(network, by=0.4, seed=3)
        self.model = root / "personal.safetensors"
        self.network = network
        save_model(self.model, network.state_dict(), experiment=self.study, start="personal")
        self.images.mkdir()
        for name, seed in (("p1_ED", 1), ("p1_ES", 2)):
            self.image(name, seed)

    def image(self, name: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        voxels = rng.normal(size=(20, 18, 2)) + 3.0 * (rng.random((20, 18, 2)) > 0.7)
        nib.save(
            nib.Nifti1Image(voxels.astype(np.float32), np.diag([-1.5, 2.0, 8.0, 1.0])), self.images / f"{name}.nii.gz"
        )

    def rows(self, table: str) -> list[dict[str, str]]:
        with open(self.out / table, newline="") as stream:
            return list(csv.DictReader(stream))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    torch.set_num_threads(1)
    return Place(tmp_path)


def test_a_folder_gives_maps_figures_and_function_and_the_same_bytes_again(place: Place) -> None:
    (place.root / "phases.csv").write_text("patient,ed,es\nann,p1_ED.nii.gz,p1_ES\n")
    options = (place.model, place.images, place.out, "--phases", place.root / "phases.csv")
    code, said = call(*options)
    assert code == 0, said
    assert sorted(path.name for path in place.out.iterdir()) == [
        "function.csv", "p1_ED.json", "p1_ED.nii.gz", "p1_ES.json", "p1_ES.nii.gz", "volumes.csv",
    ]  # fmt: skip
    voxels = {}
    for name in ("p1_ED", "p1_ES"):
        made, image = nib.load(place.out / f"{name}.nii.gz"), nib.load(place.images / f"{name}.nii.gz")
        assert made.shape == image.shape
        assert np.array_equal(made.affine, image.affine)
        labels = np.asarray(made.dataobj)
        voxels[name] = int((labels == 1).sum())
        figures = json.loads((place.out / f"{name}.json").read_text())
        assert figures["volumes"]["left ventricle"]["voxels"] == voxels[name] > 0
        assert figures["volumes"]["wall"]["ml"] == pytest.approx(int((labels == 2).sum()) * EACH_ML)
        assert figures["labels"] == {f"{name}.nii.gz": {"1": "left ventricle", "2": "wall"}}
        assert figures["model"]["experiment"] == place.study.digest
    (heart,) = place.rows("function.csv")
    assert heart["patient"] == "ann"
    assert float(heart["diastolic_ml"]) == pytest.approx(voxels["p1_ED"] * EACH_ML)
    share = 100.0 * (voxels["p1_ED"] - voxels["p1_ES"]) / voxels["p1_ED"]
    assert float(heart["ejection_fraction_percent"]) == pytest.approx(share, rel=1e-4)
    assert f"{share:.1f}" in said
    assert [row["image"] for row in place.rows("volumes.csv")] == ["p1_ED"] * 2 + ["p1_ES"] * 2
    written = {path.name: path.read_bytes() for path in place.out.iterdir()}
    code, said = call(*options)
    assert code == 2
    assert "--force" in said
    assert call(*options, "--force")[0] == 0
    assert {path.name: path.read_bytes() for path in place.out.iterdir()} == written


def test_bad_files_are_told_at_the_end_and_the_rest_is_done(place: Place) -> None:
    (place.images / "broken.nii.gz").write_bytes(b"none")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 2, 2), np.float32), np.eye(4)), place.images / "cine.nii.gz")
    nib.save(
        nib.Nifti1Image(np.arange(32, dtype=np.float32).reshape(4, 4, 2), np.eye(4)), place.images / "small.nii.gz"
    )
    (place.images / "notes.txt").write_text("of mine")
    code, said = call(place.model, place.images, place.out, "--ed", "p1_ED", "--es", "broken")
    assert code == 1, said
    assert "(2 images); 1 file that is no image was passed over" in said
    table = said[said.index("not done") :]
    for name, reason in (
        ("broken", "no NIfTI file"),
        ("cine", "4 axes instead of 3"),
        ("small", "smaller than the crop"),
        ("patient 1", "no prediction of broken"),
    ):
        assert f"{name} {reason}" in table
    # as the terminal had it, in a terminal of any width
    assert {row["image"] for row in place.rows("failed.csv")} == {"broken", "cine", "small", "patient 1"}
    assert "4 axes instead of 3" in next(row["reason"] for row in place.rows("failed.csv") if row["image"] == "cine")
    assert (place.out / "p1_ES.nii.gz").is_file()
    assert not (place.out / "broken.nii.gz").exists()


def test_where_no_image_can_be_used_it_says_that_nothing_was_written(place: Place) -> None:
    for name in ("p1_ED", "p1_ES"):
        (place.images / f"{name}.nii.gz").write_bytes(b"none")
    code, said = call(place.model, place.images / "p1_ED.nii.gz", place.root / "map.nii.gz")
    assert code == 2, said
    assert "nothing was written not done" in said
    assert "written:" not in said
    assert not (place.root / "map.nii.gz").exists()
    code, said = call(place.model, place.images, place.out)
    assert code == 2, said
    assert f"nothing was written but the reasons: {place.out / 'failed.csv'}" in said
    assert [path.name for path in place.out.iterdir()] == ["failed.csv"]
    for name, seed in (("p1_ED", 1), ("p1_ES", 2)):
        place.image(name, seed)
    code, said = call(place.model, place.images, place.out)
    assert code == 0, "reasons alone are not in the way of the same call on mended images"
    assert not (place.out / "failed.csv").exists()
    code, said = call(place.model, place.images, place.out)
    assert (code, "--force" in said) == (2, True)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["out", "new/map.nii.gz"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_computed(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("fedmedseg.segmentation.predicting.predict_all", lambda *_, **__: pytest.fail("computed"))
    monkeypatch.setattr("fedmedseg.segmentation.predicted_files.os.fsync", full)
    before = set(place.root.rglob("*"))
    code, said = call(place.model, place.images / "p1_ED.nii.gz", place.root / name)
    assert code == 2, said
    assert f"OUT: got {place.root / name} (No space left on device). Expected files that can be written" in said
    assert set(place.root.rglob("*")) == before


def test_a_file_in_the_way_is_told_before_anything_is_computed(place: Place) -> None:
    code, said = call(place.model, place.images, place.model / "out")
    assert code == 2, said
    assert "safetensors/out (Not a directory)" in said


@pytest.mark.parametrize(
    ("where", "what"), [("data.label_files", "p1_ED.nii.gz"), ("segmentation.predicted_files", "p1_ED.json")]
)
def test_a_disk_that_fills_on_the_way_is_told_with_the_file(
    place: Place, monkeypatch: pytest.MonkeyPatch, where: str, what: str
) -> None:
    monkeypatch.setattr(f"fedmedseg.{where}.write_atomic", full)
    code, said = call(place.model, place.images, place.out)
    assert code == 2, said
    assert f"{place.out / what} (No space left on device)" in said


def test_what_an_earlier_call_left_does_not_stand_for_what_fails_now(place: Place) -> None:
    frames = ("--ed", "p1_ED", "--es", "p1_ES")
    assert call(place.model, place.images, place.out, *frames)[0] == 0
    (place.images / "p1_ED.nii.gz").write_bytes(b"none")
    assert call(place.model, place.images, place.out, "--force")[0] == 1
    assert sorted(path.name for path in place.out.iterdir()) == [
        "failed.csv", "p1_ES.json", "p1_ES.nii.gz", "volumes.csv",
    ]  # fmt: skip


def test_one_image_may_be_written_as_one_file(place: Place) -> None:
    code, said = call(place.model, place.images / "p1_ED.nii.gz", place.root / "map.nii.gz")
    assert code == 0, said
    assert "1/1 images" in said
    assert nib.load(place.root / "map.nii.gz").shape == (20, 18, 2)
    assert "left ventricle" in json.loads((place.root / "map.json").read_text())["volumes"]


def test_flips_change_the_map(place: Place) -> None:
    image = place.images / "p1_ED.nii.gz"
    assert call(place.model, image, place.root / "a.nii.gz")[0] == 0
    assert call(place.model, image, place.root / "b.nii.gz", "--flips")[0] == 0
    maps = [np.asarray(nib.load(place.root / f"{name}.nii.gz").dataobj) for name in "ab"]
    assert (maps[0] != maps[1]).any()
    assert json.loads((place.root / "b.json").read_text())["flips"] is True


def test_a_runs_shared_model_is_enough_where_it_is_a_whole_network(place: Place) -> None:
    """The same network from the server's file and from a site's gives the same map."""
    shared = place.root / "shared.safetensors"
    content = {
        "format": 1, "system": "fedavg", "study": place.study.study, "experiment": place.study.digest,
        "settings": place.study.model_dump(mode="json", exclude={"resume"}), "tensors": place.network.state_dict(),
    }  # fmt: skip
    checkpoint.save(shared, content)
    image = place.images / "p1_ED.nii.gz"
    assert call(shared, image, place.root / "a.nii.gz")[0] == 0
    assert call(place.model, image, place.root / "b.nii.gz")[0] == 0
    assert (place.root / "a.nii.gz").read_bytes() == (place.root / "b.nii.gz").read_bytes()
    first = next(iter(content["tensors"]))
    checkpoint.save(shared, content | {"tensors": {n: t for n, t in content["tensors"].items() if n != first}})
    code, said = call(shared, image, place.root / "c.nii.gz")
    assert code == 2
    assert f"without 1 of the network's {len(content['tensors'])} tensors, first {first}" in said
    checkpoint.save(shared, {name: value for name, value in content.items() if name != "settings"})
    code, said = call(shared, image, place.root / "c.nii.gz")
    assert code == 2
    assert "without the settings" in said


def test_a_published_head_is_refused_with_the_command_that_takes_it(place: Place) -> None:
    """It lies beside the shared trunk in the run's folder `models`, and is no network by itself."""
    head = place.root / "models" / "published" / "hospital-1.safetensors"
    experiment = read_settings(find_job("segviz"), [{"stages": {"publication": {"rounds": 1}}}])[1]
    save_published(head, blank(initial_network(experiment), experiment), experiment=experiment)
    code, said = call(head, place.images, place.out)
    assert code == 2
    assert "MODEL: got hospital-1.safetensors, the head and norms that a site published" in said
    assert "fedmedseg fuse predict IMAGE_OR_FOLDER OUT --models MODELS --experiment FILE" in said
    assert not place.out.exists()


def test_two_maps_of_one_heart_are_an_error_that_names_both(tmp_path: Path) -> None:
    class Conditioned:
        conditions = True

    sources = [Source(name=name, file=tmp_path / f"{name}.nii.gz") for name in ("a", "b", "c")]
    hearts = tmp_path / "hearts"
    hearts.mkdir()
    for name in ("a.nii.gz", "b.nii"):
        (hearts / name).touch()
    found = _hearts(hearts, sources, tmp_path, cast(Any, Conditioned()))
    assert found == {"a": hearts / "a.nii.gz", "b": hearts / "b.nii"}, "and c has none"
    (hearts / "a.nii").touch()
    with pytest.raises(
        ConfigurationError, match=r"--heart: got a\.nii\.gz and a\.nii\. Expected one map for the image a"
    ):
        _hearts(hearts, sources, tmp_path, cast(Any, Conditioned()))


def test_no_file_is_written_twice(tmp_path: Path) -> None:
    """Image a's map of calcification and image a_calc's map may have one name."""
    with pytest.raises(ConfigurationError, match=r"two images whose answers would both be a_calc.nii.gz"):
        require_new([tmp_path / "a_calc.nii.gz", tmp_path / "b", tmp_path / "a_calc.nii.gz"], force=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: [p.root / "none.safetensors", p.images, p.out], "MODEL: got no file"),
        (lambda p: [p.root, p.images, p.out], "fedmedseg fuse predict"),
        (lambda p: [p.images / "p1_ED.nii.gz", p.images, p.out], "MODEL: got a damaged file"),
        (lambda p: [p.model, p.root / "none", p.out], "nothing at"),
        (lambda p: [p.model, p.images, p.images / "out"], "inside the folder that is read"),
        (lambda p: [p.model, p.images, p.root / "x.nii.gz"], "a file, for 2 images"),
        (lambda p: [p.model, p.images / "p1_ED.nii.gz", p.images / "p1_ED.nii.gz", "--force"], "which is read"),
        (lambda p: [p.model, p.images, p.out, "--ed", "p1_ED"], "both frames"),
        (lambda p: [p.model, p.images, p.out, "--ed", "p1_ED", "--es", "p1_EX"], "write 'p1_E"),
        (lambda p: [p.model, p.images, p.out, "--ed", "p1_ED", "--es", "p1_ES", "--cavity", "x"], "ventricle, wall"),
        (lambda p: [p.model, p.images, p.out, "--cavity", "wall"], "--cavity: got 'wall'"),
        (lambda p: [p.model, p.images, p.out, "--network", "cnn"], "--network: got cnn"),
        (lambda p: [p.model, p.images, p.out, "--start", "scratch"], "--start: got scratch"),
        (lambda p: [p.model, p.images, p.out, "--force", "--resume"], "--force, --resume: got both"),
        (lambda p: [p.model, p.images, p.out, "--heart", p.images], "sees the image alone"),
        (lambda p: [p.model, p.images, p.out, "--device", "cuda"], "a GPU that torch can use"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_told_and_nothing_is_written(
    place: Place, change: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = set(place.root.rglob("*"))
    code, said = call(*change(place))
    assert code == 2, said
    assert words in said
    assert set(place.root.rglob("*")) == before


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12.3456789, "12.3457"),
        (2703812.7, "2703812.7"),
        (999999.7, "999999.7"),
        (1.2e-5, "0"),
        (100.0, "100"),
        (0.0, "0"),
    ],
)
def test_a_tables_figures_have_no_power_of_ten(value: float, text: str) -> None:
    assert _figure(value) == text


def test_a_whole_file_of_another_kind_is_not_called_damaged(place: Place) -> None:
    torch.save({"weight": torch.ones(2)}, place.root / "model.pt")
    code, said = call(place.root / "model.pt", place.images, place.out)
    assert (code, "MODEL: got a file that is not safetensors" in said) == (2, True)


def test_a_file_of_ones_own_that_is_called_as_the_reasons_are_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "failed.csv").write_text("student,mark\nme,4\n")
    with pytest.raises(ConfigurationError, match=r"failed\.csv, which is there"):
        require_new([tmp_path / "failed.csv", tmp_path / "volumes.csv"], force=False)
    (tmp_path / "failed.csv").write_text("image,reason\nx,y\n")
    require_new([tmp_path / "failed.csv", tmp_path / "volumes.csv"], force=False)


def test_an_ending_that_is_no_volumes_is_not_taken_for_a_folder(place: Place) -> None:
    for name, code in (("map.txt", 2), ("run.1", 0)):
        done, said = call(place.model, place.images / "p1_ED.nii.gz", place.root / name)
        assert (done, "which looks like a file" in said) == (code, code == 2), said
    (place.root / "map.txt").mkdir()
    assert call(place.model, place.images / "p1_ED.nii.gz", place.root / "map.txt")[0] == 0


def files(place: Place) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.out.iterdir()}


def test_an_interrupted_call_says_how_far_it_came_and_goes_on_to_the_same_bytes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (place.model, place.images, place.out, "--ed", "p1_ED", "--es", "p1_ES")
    assert call(*options)[0] == 0
    whole = files(place)
    shutil.rmtree(place.out)
    asked: list[str] = []
    answer = SegmentationPredictor.__call__

    def watched(self: SegmentationPredictor, image: Path, **more: Any) -> Any:
        asked.append(image.name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answer(self, image, **more)

    monkeypatch.setattr(SegmentationPredictor, "__call__", watched)
    code, said = call(*options)
    assert code == 130
    assert "interrupted: 1 of 2 images are done; --resume goes on from there" in said
    assert sorted(files(place)) == ["p1_ED.json", "p1_ED.nii.gz"]
    code, said = call(*options)
    assert code == 2
    assert "--resume" in said
    code, said = call(*options, "--resume")
    assert (code, "(2 images); 1 kept of an earlier call" in said, "anew" in said) == (0, True, False)
    assert asked == ["p1_ED.nii.gz", "p1_ES.nii.gz", "p1_ES.nii.gz"], "what was done is not done again"
    assert files(place) == whole


def test_a_replaced_models_tables_do_not_outlive_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted call that replaces answers leaves none of the old ones beside its own."""
    options = (place.model, place.images, place.out, "--ed", "p1_ED", "--es", "p1_ES")
    assert call(*options)[0] == 0
    assert {"volumes.csv", "function.csv"} < set(files(place))

    def interrupted(self: SegmentationPredictor, image: Path, **more: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(SegmentationPredictor, "__call__", interrupted)
    assert call(*options, "--force")[0] == 130
    assert files(place) == {}


def test_with_resume_a_table_of_before_is_gone_until_all_is_done(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (place.model, place.images, place.out)
    assert call(*options)[0] == 0
    (place.out / "p1_ES.json").unlink()

    def interrupted(self: SegmentationPredictor, image: Path, **more: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(SegmentationPredictor, "__call__", interrupted)
    assert call(*options, "--resume")[0] == 130
    assert sorted(files(place)) == ["p1_ED.json", "p1_ED.nii.gz"]


@pytest.mark.parametrize(
    "change", ["image", "flips", "model", "damaged", "deep", "map gone", "map empty", "map edited", "version"]
)
def test_an_earlier_answer_is_not_taken_for_another_question(
    place: Place, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    options = (place.model, place.images, place.out)
    assert call(*options)[0] == 0
    asked: list[str] = []
    answer = SegmentationPredictor.__call__

    def watched(self: SegmentationPredictor, image: Path, **more: Any) -> Any:
        asked.append(image.name)
        return answer(self, image, **more)

    monkeypatch.setattr(SegmentationPredictor, "__call__", watched)
    more: tuple[str, ...] = ()
    if change == "image":
        file = place.images / "p1_ED.nii.gz"
        image = nib.load(file)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), file)
    elif change == "flips":
        more = ("--flips",)
    elif change == "model":
        monkeypatch.setattr("fedmedseg.segmentation.prediction.content_sha256", lambda tensors: "ab" * 32)
    elif change == "damaged":
        (place.out / "p1_ED.json").write_text('{"notice"')
    elif change == "deep":
        (place.out / "p1_ED.json").write_text("[" * 100_000)
    elif change == "map empty":
        (place.out / "p1_ED.nii.gz").write_bytes(b"")
    elif change == "map edited":
        labels = nib.load(place.out / "p1_ED.nii.gz")
        nib.save(nib.Nifti1Image(np.asarray(labels.dataobj)[::-1], labels.affine), place.out / "p1_ED.nii.gz")
    elif change == "version":
        monkeypatch.setattr("fedmedseg.segmentation.predicted_files.__version__", "99")
    else:
        (place.out / "p1_ED.nii.gz").unlink()
    code, said = call(*options, "--resume", *more)
    assert code == 0
    assert "kept of an earlier call, " in said
    assert "done anew, since the earlier answer was to another question" in said
    both = ["p1_ED.nii.gz", "p1_ES.nii.gz"]
    assert asked == (both if change in ("flips", "model", "version") else both[:1])


def test_an_image_that_can_no_longer_be_used_loses_its_earlier_answer(place: Place) -> None:
    options = (place.model, place.images, place.out)
    assert call(*options)[0] == 0
    (place.images / "p1_ED.nii.gz").write_bytes(b"none")
    code, _ = call(*options, "--resume")
    assert code == 1
    assert "p1_ED.nii.gz" not in files(place)
    assert "p1_ES.nii.gz" in files(place)
