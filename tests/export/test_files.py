"""Every format answers as the original does, says what it is, and leaves nothing where it fails."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import nibabel as nib
import numpy as np
import pytest
import torch
from tests.export.conftest import NETWORKS
from typer.testing import CliRunner

from fedmedseg.cli.main import app
from fedmedseg.core.errors import ConfigurationError, FedMedSegError
from fedmedseg.core.network_settings import NetworkSection
from fedmedseg.export import files, metadata
from fedmedseg.export.files import FILES, export
from fedmedseg.export.metadata import OFFICIAL, metadata_of, require_valid, shipped_schema
from fedmedseg.export.network import Exportable, exportable
from fedmedseg.segmentation.models import load_for_inference


@pytest.fixture
def source(model_file: Callable[..., Path]) -> Exportable:
    return exportable(load_for_inference(model_file()))


@pytest.fixture(params=NETWORKS)
def each(request: pytest.FixtureRequest, model_file: Callable[..., Path]) -> Exportable:
    """A small one of every network that the factory builds."""
    return exportable(load_for_inference(model_file(**NETWORKS[request.param])))


def test_every_network_of_the_factory_is_exported_here() -> None:
    known = {get_args(one.model_fields["name"].annotation)[0] for one in get_args(get_args(NetworkSection)[0])}
    assert {change.get("network", {"name": "unet"})["name"] for change in NETWORKS.values()} == known


def written(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_bundle_passes_monais_checks_and_its_weights_are_a_plain_state_dict(
    source: Exportable, tmp_path: Path
) -> None:
    pytest.importorskip("jsonschema", reason="MONAI's verify_metadata needs it: pip install 'fedmedseg[export]'")
    from monai.bundle import verify_metadata, verify_net_in_out

    out = tmp_path / "bundle"
    made = export(source, out, to="monai-bundle", licences="CC0 1.0")
    assert made.difference == 0.0
    assert written(out) == sorted(FILES["monai-bundle"])
    meta, config = str(out / "configs" / "metadata.json"), str(out / "configs" / "inference.json")
    verify_net_in_out("network_def", meta_file=meta, config_file=config, device="cpu")
    (tmp_path / "schema.json").write_text(json.dumps(shipped_schema()))
    verify_metadata(meta_file=meta, filepath=str(tmp_path / "schema.json"))
    weights = torch.load(out / "models" / "model.pt", weights_only=True)
    assert {name: tensor.shape for name, tensor in weights.items()} == {
        name: tensor.shape for name, tensor in source.network.state_dict().items()
    }
    content = json.loads(Path(meta).read_text())
    assert content["schema"] == OFFICIAL
    assert content["network_data_format"]["outputs"]["pred"]["channel_def"] == {
        "0": "background", "1": "disc", "2": "bar",
    }  # fmt: skip
    assert content["intended_use"] == "Research, not for diagnosis."
    assert content["data_license"] == "CC0 1.0"
    assert "CC0 1.0" in (out / "docs" / "license.txt").read_text()
    card = (out / "docs" / "README.md").read_text()
    assert "| sites that trained | Not given. |" in card
    assert "| 2 | bar |" in card
    assert "resampled to 1.5 mm x as scanned x as scanned" in card


def test_a_bundles_run_writes_what_predict_does(source: Exportable, tmp_path: Path) -> None:
    pytest.importorskip("jsonschema", reason="MONAI's verify_metadata needs it: pip install 'fedmedseg[export]'")
    from monai.bundle import run

    out = tmp_path / "bundle"
    export(source, out, to="monai-bundle")
    (tmp_path / "images").mkdir()
    voxels = np.random.default_rng(1).normal(size=(20, 18, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(voxels, np.diag([-1.5, 2.0, 8.0, 1.0])), tmp_path / "images" / "x.nii.gz")
    (tmp_path / "predicted").mkdir()
    (tmp_path / "predicted" / "failed.csv").write_text("image,reason\nof an earlier call,bad\n")
    # what `python -m monai.bundle run` calls, with the options that the card tells
    run(
        config_file=str(out / "configs" / "inference.json"),
        bundle_root=str(out),
        dataset_dir=str(tmp_path / "images"),
        output_dir=str(tmp_path / "predicted"),
    )
    by_command = tmp_path / "by_command"
    done = CliRunner().invoke(
        app, ["predict", str(tmp_path / "personal.safetensors"), str(tmp_path / "images"), str(by_command)]
    )
    assert done.exit_code == 0, done.output
    assert len(np.unique(np.asarray(nib.load(by_command / "x.nii.gz").dataobj))) > 1
    assert written(tmp_path / "predicted") == ["volumes.csv", "x.json", "x.nii.gz"]
    for name in written(by_command):
        assert (tmp_path / "predicted" / name).read_bytes() == (by_command / name).read_bytes()


def test_metadata_that_do_not_follow_a_schema_are_refused(source: Exportable, tmp_path: Path) -> None:
    pytest.importorskip("jsonschema", reason="MONAI's verify_metadata needs it: pip install 'fedmedseg[export]'")
    content = metadata_of(source, facts=None, licences=None)
    file = tmp_path / "metadata.json"
    file.write_text(json.dumps(content))
    require_valid(file)
    for name in ("version", "task", "network_data_format"):
        file.write_text(json.dumps({key: value for key, value in content.items() if key != name}))
        with pytest.raises(FedMedSegError, match="bundle specification"):
            require_valid(file)
    content["network_data_format"]["inputs"]["image"]["num_channels"] = "one"
    file.write_text(json.dumps(content))
    with pytest.raises(FedMedSegError, match="bundle specification"):
        require_valid(file)
    theirs = tmp_path / "schema.json"
    theirs.write_text(json.dumps({"type": "object", "required": ["what nobody has"]}))
    with pytest.raises(FedMedSegError, match=r"schema\.json"):
        export(source, tmp_path / "bundle", to="monai-bundle", schema=theirs)
    assert not (tmp_path / "bundle").exists()
    theirs.write_text("none")
    with pytest.raises(ConfigurationError, match="--schema"):
        export(source, tmp_path / "bundle", to="monai-bundle", schema=theirs)


@pytest.mark.parametrize(
    "each",
    [pytest.param(one, marks=pytest.mark.slow if one in ("swin_unetr", "unetr") else ()) for one in NETWORKS],
    indirect=True,
)
def test_onnx_answers_as_torch_and_says_what_it_is(each: Exportable, tmp_path: Path) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'fedmedseg[export]'")
    import onnxruntime

    made = export(each, tmp_path / "onnx", to="onnx")
    assert made.difference < 1e-5
    assert written(tmp_path / "onnx") == sorted(FILES["onnx"])
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"image": each.example(9).numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, each.network(each.example(9)).numpy(), atol=1e-4)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["label_classes"]) == {"0": "background", "1": "disc", "2": "bar"}
    assert told["intended_use"] == "Research, not for diagnosis."


def test_torchscript_answers_as_torch_and_says_what_it_is(each: Exportable, tmp_path: Path) -> None:
    from monai.data import load_net_with_metadata

    made = export(each, tmp_path / "ts", to="torchscript")
    assert made.difference < 1e-5
    assert written(tmp_path / "ts") == sorted(FILES["torchscript"])
    network, told, _ = load_net_with_metadata(str(tmp_path / "ts" / "model.ts"))
    assert told["label_classes"]["1"] == "disc"
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(each.example(9)), each.network(each.example(9)))


class Moody(torch.nn.Module):
    """Answers otherwise where it is given anything but ``usual``: a trace knows one way alone."""

    def __init__(self, network: torch.nn.Module, usual: torch.Tensor) -> None:
        super().__init__()
        self.network, self.usual = network, usual

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images)
        return logits if torch.equal(images, self.usual) else logits.flip(1)


def test_what_answers_otherwise_is_not_kept(source: Exportable, tmp_path: Path) -> None:
    moody = replace(source, network=Moody(source.network, source.example()).eval())
    with pytest.raises(FedMedSegError, match=r"model\.ts: got probabilities that differ by"):
        export(moody, tmp_path / "ts", to="torchscript")
    assert not (tmp_path / "ts").exists()


@pytest.mark.parametrize("before", [("a", "b/c"), ("a",), ()], ids=["all there", "one there", "none there"])
def test_files_are_replaced_all_or_none(
    before: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, made, out = ("a", "b/c"), tmp_path / "made", tmp_path / "out"
    for folder, content, those in ((made, "new", names), (out, "old", before)):
        for name in those:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
    real, left = os.replace, 0

    def failing(*places: Path) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*places)

    monkeypatch.setattr(files.os, "replace", failing)
    for left in range(1, len(names) + len(before) + 1):  # noqa: B007 - counted down by ``failing``
        with pytest.raises(ConfigurationError, match=r"out \(No space left on device\)\. Expected a folder"):
            files.place(made, out, names)
        assert written(out) == sorted(before)
        assert all((out / name).read_text() == "old" for name in before)
    files.place(made, out, names)
    assert written(out) == list(names)
    assert all((out / name).read_text() == "new" for name in names)


def test_a_missing_package_is_named_with_what_installs_it(
    source: Exportable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"needs onnx, .*pip install 'fedmedseg\[export\]'"):
        export(source, tmp_path / "x", to="onnx")
    with pytest.raises(ConfigurationError, match=r"needs jsonschema, "):
        export(source, tmp_path / "x", to="monai-bundle")
    assert not (tmp_path / "x").exists()


def test_files_that_are_there_are_kept_unless_told(source: Exportable, tmp_path: Path) -> None:
    (tmp_path / "ts").mkdir()
    (tmp_path / "ts" / "model.ts").write_text("mine")
    with pytest.raises(ConfigurationError, match="--force"):
        export(source, tmp_path / "ts", to="torchscript")
    assert written(tmp_path / "ts") == ["model.ts"]
    export(source, tmp_path / "ts", to="torchscript", force=True)
    assert (tmp_path / "ts" / "model.ts").read_bytes()[:2] == b"PK"
    with pytest.raises(ConfigurationError, match="a folder"):
        export(source, tmp_path / "ts" / "model.ts", to="torchscript")
    (tmp_path / "other" / "model.ts").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"model\.ts, which is there"):
        export(source, tmp_path / "other", to="torchscript", force=True)


def test_a_folder_holds_one_format(source: Exportable, tmp_path: Path) -> None:
    export(source, tmp_path / "x", to="torchscript")
    before = written(tmp_path / "x")
    for force in (False, True):
        with pytest.raises(ConfigurationError, match="as torchscript"):
            export(source, tmp_path / "x", to="monai-bundle", force=force)
    assert written(tmp_path / "x") == before
    export(source, tmp_path / "x", to="torchscript", force=True)
    assert written(tmp_path / "x") == before
