"""The encoder that a job carries: named by its digest, checked tensor by tensor, laid over the initial model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedmedseg.core import checkpoint
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.core.encoder_file import ENCODER_FILE, is_encoder, load_encoder, save_encoder, with_encoder
from fedmedseg.core.errors import ConfigurationError

INITIAL = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2, 2)}
Study = Callable[..., Experiment]


def named(study: Study, digest: str | None) -> Experiment:
    return study(network={"name": "unetr", "pretrained": digest})


def test_what_is_saved_is_loaded_with_where_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / ENCODER_FILE
    digest = save_encoder(file, INITIAL, source_sha256="f" * 64)
    assert digest == content_sha256(load_encoder(file)) == content_sha256(INITIAL)
    assert checkpoint.load_file(file)["source_sha256"] == "f" * 64


def test_a_second_encoder_leaves_nothing_of_the_first(tmp_path: Path) -> None:
    save_encoder(tmp_path / "e.safetensors", INITIAL, source_sha256="")
    save_encoder(tmp_path / "e.safetensors", {"a": torch.zeros(2)}, source_sha256="")
    assert [path.name for path in tmp_path.iterdir()] == ["e.safetensors"]


def test_a_study_that_names_none_gets_the_very_tensors_it_had(study: Study, tmp_path: Path) -> None:
    assert with_encoder(INITIAL, study(), tmp_path) is INITIAL


def test_the_encoder_is_laid_over_and_the_rest_stays(study: Study, tmp_path: Path) -> None:
    digest = save_encoder(tmp_path / ENCODER_FILE, {"a": torch.tensor([5.0, 6.0])}, source_sha256="")
    result = with_encoder(INITIAL, named(study, digest), tmp_path)
    assert result["a"].tolist() == [5.0, 6.0]
    assert result["b"] is INITIAL["b"]
    assert list(result) == list(INITIAL)
    assert INITIAL["a"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"c": torch.zeros(2)}, "1 tensor.* that this study does not share, first c"),
        ({"a": torch.zeros(3)}, r"a is \(3,\), declared \(2,\)"),
        ({"a": torch.zeros(2, dtype=torch.float64)}, "a is torch.float64"),
        ({"a": torch.tensor([1.0, float("nan")])}, "a holds NaN or infinity"),
        ({}, "no tensors"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    study: Study, tmp_path: Path, tensors: dict[str, torch.Tensor], words: str
) -> None:
    digest = save_encoder(tmp_path / ENCODER_FILE, tensors, source_sha256="")
    with pytest.raises(ConfigurationError, match=words):
        with_encoder(INITIAL, named(study, digest), tmp_path)


def test_a_missing_a_damaged_and_another_file_are_refused(study: Study, tmp_path: Path) -> None:
    file = tmp_path / ENCODER_FILE
    experiment = named(study, content_sha256(INITIAL))
    with pytest.raises(ConfigurationError, match=r"network.pretrained: got no file.*--encoder FILE"):
        with_encoder(INITIAL, experiment, tmp_path)
    save_encoder(file, {"a": torch.zeros(2)}, source_sha256="")
    with pytest.raises(ConfigurationError, match=r"named in experiment\.yaml"):
        with_encoder(INITIAL, experiment, tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ConfigurationError, match="a damaged file"):
        with_encoder(INITIAL, experiment, tmp_path)
    checkpoint.save(file, {"format": 1, "tensors": dict(INITIAL)})
    assert not is_encoder(file)
    with pytest.raises(ConfigurationError, match="holds no encoder"):
        with_encoder(INITIAL, experiment, tmp_path)


@pytest.mark.parametrize("digest", ["x" * 64, "A" * 64, "ab", 7])
def test_a_name_that_is_no_digest_is_refused(study: Study, digest: object) -> None:
    with pytest.raises(ConfigurationError, match=r"network\.pretrained"):
        named(study, digest)  # type: ignore[arg-type]
