"""`fedmedseg encoder` says what of a weight file fits, writes it, and fails where too little does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedmedseg.cli.main import app
from fedmedseg.core.encoder_file import load_encoder
from fedmedseg.core.jobs import find_job, read_settings
from fedmedseg.networks.factory import build_segmentation


def call(*options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["encoder", *options], env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(4)
    model = build_segmentation(read_settings(find_job("fedata"), [])[1])
    state = {f"module.{name}": tensor for name, tensor in model.swinViT.state_dict().items()}
    file = tmp_path / "theirs.pt"
    torch.save({"state_dict": state | {"module.head.weight": torch.ones(3)}}, file)
    return file


def test_a_report_counts_every_kind_and_writes_nothing(tmp_path: Path, weights: Path) -> None:
    before = set(tmp_path.iterdir())
    code, said = call("report", str(weights), "--job", "fedata")
    assert code == 0
    for words in ("theirs.pt for swin_unetr", "matched 115", "other shape 0", "missing 0", "not pretrained here 11"):
        assert words in said
    assert "unused 1 state_dict.module.head.weight" in said
    assert "100.0% of the encoder, under state_dict.module." in said
    assert set(tmp_path.iterdir()) == before


def test_what_is_imported_is_what_the_file_held(tmp_path: Path, weights: Path) -> None:
    out = tmp_path / "encoder.safetensors"
    code, said = call("import", str(weights), "--job", "fedata", "--out", str(out))
    assert code == 0, said
    theirs = torch.load(weights, weights_only=True)["state_dict"]
    tensors = load_encoder(out)
    assert len(tensors) == 115
    assert all(torch.equal(tensor, theirs[name.replace("swinViT.", "module.")]) for name, tensor in tensors.items())
    code, said = call("import", str(weights), "--job", "fedata", "--out", str(out))
    assert code == 2
    assert "--force" in said
    code, said = call("import", str(weights), "--job", "fedata", "--out", str(tmp_path / "encoder.pt"))
    assert (code, "--out: got encoder.pt. Expected a file that ends with .safetensors" in said) == (2, True)
    assert call("import", str(weights), "--job", "fedata", "--out", str(out), "--force")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"theirs.pt", "encoder.safetensors"}


def test_too_little_ends_with_an_error_after_the_report(tmp_path: Path, weights: Path) -> None:
    """The window of the file's network is 4: with 3, the bias table of each of the 8 blocks has another shape."""
    out = tmp_path / "encoder.safetensors"
    other = ["--job", "fedata", "--set", "network.window=3", "--out", str(out)]
    code, said = call("import", str(weights), *other)
    assert code == 2
    for words in ("matched 107", "other shape 8", "93.0% of the encoder", "(49, 3) in the file, (25, 3) in this study"):
        assert words in said
    assert not out.exists()
    code, said = call("import", str(weights), *other, "--min-matched", "0.93")
    assert code == 0, said
    assert len(load_encoder(out)) == 107


def test_a_part_that_was_imported_on_purpose_goes_into_a_job(tmp_path: Path, weights: Path) -> None:
    out = tmp_path / "encoder.safetensors"
    other = ["--set", "network.window=3"]
    assert call("import", str(weights), "--job", "fedata", *other, "--min-matched", "0.9", "--out", str(out))[0] == 0
    options = ["job", "fedata", "--min-clients", "2", "--encoder", str(out)]
    with_it = CliRunner().invoke(app, [*options, *other, "--out", str(tmp_path / "o")])
    assert with_it.exit_code == 0, with_it.output
    assert "107 of 115 encoder tensors" in " ".join(with_it.output.split())
    elsewhere = CliRunner().invoke(app, [*options, "--set", "network.feature_size=24", "--out", str(tmp_path / "p")])
    assert elsewhere.exit_code == 2
    raw = [*options[:-1], str(weights), *other, "--out", str(tmp_path / "q")]
    assert CliRunner().invoke(app, raw).exit_code == 2, "a raw file has to fit whole"


def test_the_shipped_study_is_meant_where_no_job_is_named(tmp_path: Path, weights: Path) -> None:
    named, bare = call("report", str(weights), "--job", "fedata"), call("report", str(weights))
    assert bare == named
    assert bare[0] == 0
    out = tmp_path / "encoder.safetensors"
    assert call("import", str(weights), "--out", str(out))[0] == 0
    assert len(load_encoder(out)) == 115
    code, said = call("report", str(weights), "--preset", "paper")
    assert code == 2, "the small study's encoder is not that of the preset"
    assert "of fedata-paper" in said
    assert "lower --min-matched" in said


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        code, said = call("report", str(tmp_path / name))
        assert code == 2
        assert f"{name}: got a folder, a pipe or a device. Expected a regular weight file" in said


@pytest.mark.parametrize("least", ["0", "1.5", "-1"])
def test_a_share_that_means_nothing_is_refused(weights: Path, least: str) -> None:
    code, said = call("report", str(weights), "--job", "fedata", "--min-matched", least)
    assert code == 2
    assert "--min-matched" in said


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no weights at all, but some text")
    for name in ("notes.txt", "missing.pt"):
        code, said = call("report", str(tmp_path / name), "--job", "fedata")
        assert code == 2
        assert name in said
