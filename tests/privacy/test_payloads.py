"""Six hostile payloads that the wire, a job archive and our own readers refuse: FLARE's guards are ours to watch."""

from __future__ import annotations

import io
import os
import pickle
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from encoded import another_process, arrived, sent
from nvflare.apis.dxo import DXO, DataKind
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.zip_utils import unzip_all_from_bytes

from fedmedseg.core import checkpoint
from fedmedseg.core.checkpoint import CheckpointError
from fedmedseg.core.personal import payloads, personalise
from fedmedseg.core.wire import WHOLE


class Bomb:
    """Touches a file wherever it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.target,)


@pytest.fixture
def harmed(tmp_path: Path) -> Path:
    """Exists once any payload has run."""
    return tmp_path / "harmed"


def message(body: bytes) -> bytes:
    """A FOBS message: marker 100, no datum type, length, then the body in msgpack."""
    return struct.pack(">BBQ", 100, 0, len(body)) + body


def naming(type_name: str, data: object, decomposer: str | None) -> bytes:
    return message(msgpack.packb({"__fobs_type__": type_name, "__fobs_data__": data, "__fobs_dc__": decomposer}))


GENERIC = "nvflare.fuel.utils.fobs.decomposer.DataClassDecomposer"


def test_the_message_format_here_is_flares_own() -> None:
    assert fobs.loads(message(msgpack.packb({"a": 1}))) == {"a": 1}
    assert fobs.dumps({"a": 1}) == message(msgpack.packb({"a": 1}))


def test_payload_1_pickled_bytes_are_no_message_and_stay_bytes_inside_one(harmed: Path) -> None:
    """Fault row 37."""
    pickled = pickle.dumps(Bomb(harmed))
    with pytest.raises((RuntimeError, ValueError)):
        fobs.loads(pickled)
    assert fobs.loads(fobs.dumps({"weights": pickled})) == {"weights": pickled}
    assert not harmed.exists()


@pytest.mark.parametrize(
    ("type_name", "data", "decomposer"),
    [
        ("os.system", "x", None),
        ("posix.mkdir", "x", None),
        ("subprocess.Popen", {"args": ["true"]}, GENERIC),
        ("builtins.eval", "1", GENERIC),
        ("os.system", "x", "pickle.Unpickler"),
        ("fedmedseg.core.state.SiteState", {"root": "x"}, GENERIC),
        ("pathlib.PosixPath", {}, "nvflare.fuel.utils.fobs.decomposer.EnumTypeDecomposer"),
    ],
)
def test_payload_2_a_message_cannot_name_a_class_that_was_not_registered(
    type_name: str, data: object, decomposer: str | None
) -> None:
    """Fault row 37."""
    with pytest.raises(ValueError, match=r"not allowed|must be registered"):
        fobs.loads(naming(type_name, data, decomposer))


def torch_bomb(target: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"w": Bomb(target)}, stream)
    return stream.getvalue()


def test_payload_3_a_torch_checkpoint_is_read_nowhere(harmed: Path, tmp_path: Path) -> None:
    """Fault row 37: neither as a tensor on the wire nor as a checkpoint on the disk."""
    content = torch_bomb(harmed)
    with pytest.raises(Exception, match=r"(?i)header|deserializ|invalid"):
        TensorDecomposer().native_recompose(content)
    file = tmp_path / "shared.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError):
        checkpoint.load(file)
    assert not harmed.exists()


def archive(name: str, content: str = "x", *, link: bool = False) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        packed.writestr("job/meta.json", "{}")
        info = zipfile.ZipInfo(name)
        if link:
            info.create_system = 3
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(info, content)
    return stream.getvalue()


@pytest.mark.parametrize(
    "packed",
    [
        pytest.param(archive("../escaped"), id="up"),
        pytest.param(archive("job/../../escaped"), id="down and up"),
        pytest.param(archive("/escaped"), id="absolute"),
        pytest.param(archive("job/app", "../..", link=True), id="a link"),
    ],
)
def test_payload_4_a_job_archive_cannot_write_outside_its_folder(tmp_path: Path, packed: bytes) -> None:
    """Fault row 37."""
    folder = tmp_path / "jobs" / "here"
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"(?i)unsafe|outside|symlink"):
        unzip_all_from_bytes(packed, str(folder))
    assert list(folder.iterdir()) == [], "nothing of such an archive is unpacked"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "jobs"]


def test_payload_5_an_object_with_a_reduce_method_does_not_come_back_as_itself(harmed: Path) -> None:
    """Fault row 37: the receiver has not registered the class, so its name is refused."""
    message_of_it = sent({"w": Bomb(harmed)})
    with another_process(), pytest.raises(ValueError, match="not allowed"):
        fobs.loads(message_of_it)
    assert not harmed.exists()


def test_payload_6_an_array_of_objects_is_neither_sent_nor_read(harmed: Path) -> None:
    """Fault row 37."""
    from nvflare.app_common.decomposers.numpy_decomposers import NumpyArrayDecomposer

    stream = io.BytesIO()
    np.save(stream, np.array([Bomb(harmed)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        NumpyArrayDecomposer().native_recompose(stream.getvalue())
    with pytest.raises(ValueError, match=r"allow_pickle|Object arrays"):
        NumpyArrayDecomposer().native_decompose(np.array([Bomb(harmed)], dtype=object))
    assert not harmed.exists()


def test_an_honest_reply_still_crosses_the_wire() -> None:
    tensors = {"a": torch.tensor([1.5, float("nan")]), "b": torch.ones(2, 2).bfloat16()}
    received = arrived(DXO(data_kind=DataKind.WEIGHT_DIFF, data=tensors, meta={"examples": 3}))
    assert checkpoint.content_sha256(received.data) == checkpoint.content_sha256(tensors)
    assert received.meta == {"examples": 3}


def test_a_sites_task_holds_its_own_model_and_no_trace_of_another_sites() -> None:
    """The bytes themselves are searched, as FLARE would send them, each around its own copy of one broadcast."""
    from nvflare.apis.shareable import make_copy

    generator = torch.Generator().manual_seed(3)
    models = {site: {"w": torch.randn(64, generator=generator)} for site in ("shared", "site-1", "site-2", "site-3")}
    shared = {**models.pop("shared"), "rest": torch.ones(3)}
    made = payloads(shared, models, WHOLE)
    broadcast = DXO(DataKind.WEIGHTS, data=dict(shared)).to_shareable()
    contents = {}
    for site in ("site-2", "site-1", "newcomer", "site-3"):
        data = make_copy(broadcast)
        if site in made:
            personalise(data, made[site])
        contents[site] = sent(data)
    traces = {site: tensors["w"].numpy().tobytes() for site, tensors in models.items()}
    for site, content in contents.items():
        assert [other for other, trace in traces.items() if trace in content] == ([site] if site in models else [])
        assert (shared["w"].numpy().tobytes() in content) is (site == "newcomer")
