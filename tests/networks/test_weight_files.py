"""Weight files are read for their tensors alone: nothing in them runs, and damage is told."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedmedseg.core import checkpoint
from fedmedseg.core.atomic import file_sha256
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.networks.weight_files import read_tensors


def test_nested_dictionaries_become_dotted_names(tmp_path: Path) -> None:
    content = {
        "epoch": 3,
        "args": {"lr": 1e-3, "name": "x"},
        "state_dict": OrderedDict({"module.a": torch.nn.Parameter(torch.ones(2))}),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1.0}]},
    }
    torch.save(content, tmp_path / "a.pt")
    tensors = read_tensors(tmp_path / "a.pt")
    assert tensors.keys() == {"state_dict.module.a", "optimizer.state.0.exp_avg"}
    assert tensors["state_dict.module.a"].tolist() == [1.0, 1.0]
    assert not tensors["state_dict.module.a"].requires_grad


def test_the_older_format_of_pytorch_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert read_tensors(tmp_path / "a.pth")["a"].tolist() == [1.0, 1.0]


def test_safetensors_are_read_whatever_the_file_is_called(tmp_path: Path) -> None:
    save_file({"a.b": torch.ones(2)}, tmp_path / "weights.bin")
    assert read_tensors(tmp_path / "weights.bin")["a.b"].tolist() == [1.0, 1.0]


def test_our_own_checkpoints_are_read(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "s.safetensors", {"format": 1, "tensors": {"a/b": torch.ones(2)}})
    assert read_tensors(tmp_path / "s.safetensors").keys() == {"tensors.a/b"}


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("newer", [True, False])
def test_a_file_with_an_object_in_it_is_refused_and_the_object_never_runs(tmp_path: Path, newer: bool) -> None:
    trap = tmp_path / "trap"
    torch.save(
        {"state_dict": {"a": torch.ones(1)}, "args": Trap(trap)},
        tmp_path / "a.pt",
        _use_new_zipfile_serialization=newer,
    )
    with pytest.raises(ConfigurationError, match=r"a.pt: got a file that needs posix\.mkdir .*state dict alone"):
        read_tensors(tmp_path / "a.pt")
    assert not trap.exists()


@pytest.mark.parametrize("keep", [0, 4, 60])
@pytest.mark.parametrize("kind", ["torch", "safetensors", "own"])
def test_a_damaged_file_is_told(tmp_path: Path, kind: str, keep: int) -> None:
    file, tensors = tmp_path / "a.pt", {"a": torch.arange(64.0)}
    if kind == "torch":
        torch.save(tensors, file)
    elif kind == "safetensors":
        save_file(tensors, file)
    else:
        checkpoint.save(file, tensors)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ConfigurationError, match=r"a\.pt"):
        read_tensors(file)


def test_a_changed_checkpoint_of_ours_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    checkpoint.save(file, {"a": torch.arange(64.0)})
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match="damaged"):
        read_tensors(file)


def test_a_missing_file_a_folder_and_a_file_without_tensors_are_told(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pt")
    with pytest.raises(ConfigurationError, match="no tensors"):
        read_tensors(tmp_path / "a.pt")
    with pytest.raises(ConfigurationError, match="No such file"):
        read_tensors(tmp_path / "b.pt")
    with pytest.raises(ConfigurationError, match="got a folder, a pipe or a device"):
        read_tensors(tmp_path)


def test_two_tensors_under_one_dotted_name_are_refused(tmp_path: Path) -> None:
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, tmp_path / "a.pt")
    with pytest.raises(ConfigurationError, match=r"two tensors called a\.b"):
        read_tensors(tmp_path / "a.pt")


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
