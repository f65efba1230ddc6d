"""Checkpoints: what comes back is what was saved, and a crash at any moment leaves something whole."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from fedmedseg.core import checkpoint
from fedmedseg.core.atomic import previous
from fedmedseg.core.checkpoint import CheckpointError, content_crc32, content_sha256

OLD, NEW = {"step": 1, "w": torch.tensor([1.0, 2.0])}, {"step": 2, "w": torch.tensor([3.0, 4.0])}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "site" / "teacher.safetensors"


@pytest.fixture
def two_generations(file: Path) -> Path:
    checkpoint.save(file, OLD)
    checkpoint.save(file, NEW)
    return file


def same(left: Any, right: Any) -> bool:
    """Equal trees: bytes and types of tensors, kinds of keys and leaves; a tuple comes back as a list."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and content_sha256({"t": left}) == content_sha256({"t": right})
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and [(type(key), key) for key in left] == [(type(key), key) for key in right]
            and all(same(left[key], right[key]) for key in left)
        )
    if isinstance(left, list | tuple):
        return isinstance(right, list) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and repr(left) == repr(right)


@pytest.mark.parametrize(
    "tree",
    [
        {},
        [],
        None,
        3,
        {"a": [1, 2.5, "x", True, None, []], "nan": float("nan"), "inf": float("-inf"), "tiny": 5e-324},
        {1: "whole", "1": "text", 0: {2: torch.ones(2)}},
        {"bf16": torch.tensor([1.5, -0.0, 3e38]).bfloat16(), "half": torch.ones(3).half()},
        {"bool": torch.tensor([True, False]), "bytes": torch.arange(256).to(torch.uint8), "int": torch.tensor(2**62)},
        {"nan": torch.tensor([float("nan"), float("-inf"), -0.0, 1e-45])},
        {"scalar": torch.tensor(1.25), "empty": torch.zeros(0, 3), "view": torch.arange(12.0).view(3, 4).T[1:]},
        {"a/b": torch.tensor([1.0]), "a": {"b": torch.tensor([2.0])}},
        {1: torch.tensor([1.0]), "1": torch.tensor([2.0]), "1'": torch.tensor([3.0])},
        {"$tensor": "/a", "$items": [1], "a": torch.ones(1)},
        {"Verlauf/Übung": "größer", "newline": "a\nb"},
    ],
)
def test_a_tree_comes_back_bit_for_bit(file: Path, tree: Any) -> None:
    checkpoint.save(file, tree)
    assert same(tree, checkpoint.load(file))


def test_equal_trees_are_equal_bytes(tmp_path: Path) -> None:
    """safetensors writes what stands beside the tensors in another order every time."""
    tree = {'é "x"\\ \n': torch.ones(3), "b": {"c.d": torch.zeros(2, 2)}, "text": "ü \u2028 \x7f"}
    for number in range(12):
        checkpoint.save(tmp_path / f"{number}.safetensors", tree)
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1
    found = checkpoint.load(tmp_path / "0.safetensors")
    assert found["text"] == tree["text"]
    assert torch.equal(found['é "x"\\ \n'], torch.ones(3))


def test_tensors_that_share_memory_come_back_as_their_own(file: Path) -> None:
    base = torch.arange(6.0)
    checkpoint.save(file, {"whole": base, "part": base[2:4], "again": base})
    loaded = checkpoint.load(file)
    assert loaded is not None
    loaded["whole"].zero_()
    assert loaded["part"].tolist() == [2.0, 3.0]
    assert loaded["again"].tolist() == base.tolist()


def test_an_optimizer_continues_exactly_from_its_checkpoint(file: Path) -> None:
    def run(steps: int, model: torch.nn.Linear, optimizer: torch.optim.Optimizer) -> None:
        for index in range(steps):
            optimizer.zero_grad()
            model(torch.full((1, 3), float(index + 1))).square().sum().backward()
            optimizer.step()

    def fresh() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        groups = [{"params": [model.weight], "rate_factor": 0.1}, {"params": [model.bias]}]
        return model, torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))

    model, optimizer = fresh()
    run(3, model, optimizer)
    checkpoint.save(file, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    run(2, model, optimizer)
    again, restored = fresh()
    saved = checkpoint.load(file)
    assert saved is not None
    again.load_state_dict(saved["model"])
    restored.load_state_dict(saved["optimizer"])
    assert [group["lr"] for group in restored.param_groups] == [0.01, 0.01]
    run(2, again, restored)
    assert content_sha256(again.state_dict()) == content_sha256(model.state_dict())


@pytest.mark.parametrize("leaf", [object(), {1, 2}, b"bytes", 1 + 2j, Path("x")])
def test_what_is_neither_tensor_nor_plain_is_refused_before_anything_is_written(file: Path, leaf: object) -> None:
    with pytest.raises(TypeError, match=type(leaf).__name__):
        checkpoint.save(file, {"a": [leaf]})
    assert not file.parent.exists()


def test_nothing_saved_is_nothing_and_not_an_error(file: Path) -> None:
    assert checkpoint.load(file) is None


def test_one_generation_is_kept(two_generations: Path) -> None:
    assert same(NEW, checkpoint.load(two_generations))
    assert same(OLD, checkpoint.load(previous(two_generations)))
    assert sorted(path.name for path in two_generations.parent.iterdir()) == [
        "teacher.safetensors",
        "teacher.safetensors.previous",
    ]


def broken_ways(content: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "half a length": content[:4],
        "header only": content[:8] + content[8 : 8 + int.from_bytes(content[:8], "little")],
        "truncated": content[:-1],
        "half": content[: len(content) // 2],
        "longer": content + b"\0",
        "flipped in the body": content[:-1] + bytes([content[-1] ^ 1]),
        "flipped in the text": content.replace(b"step", b"stop"),
        "another file": b"\x89PNG\r\n" + content,
        "huge header": (2**60).to_bytes(8, "little") + content[8:],
    }


@pytest.mark.parametrize("way", broken_ways(b"x" * 20))
def test_a_damaged_file_gives_way_to_the_generation_before_with_a_warning(
    two_generations: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault row 26."""
    two_generations.write_bytes(broken_ways(two_generations.read_bytes())[way])
    assert same(OLD, checkpoint.load(two_generations))
    assert "teacher.safetensors is damaged" in caplog.text
    assert str(two_generations.parent) not in caplog.text, "a log line holds no path"


@pytest.mark.parametrize("claimed", [2**62, 2**40, 99 * 2**20])
def test_a_header_that_claims_more_than_the_file_holds_takes_no_memory(file: Path, claimed: int) -> None:
    """Fault row 37: the first eight bytes say how long the header is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(claimed.to_bytes(8, "little") + b"{}" * 20)
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        checkpoint.load(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_no_flipped_bit_is_ever_loaded(two_generations: Path) -> None:
    """Fault row 26: one bit of every byte of the file, header, text and tensors alike."""
    whole = two_generations.read_bytes()
    for index in range(len(whole)):
        two_generations.write_bytes(whole[:index] + bytes([whole[index] ^ (1 << index % 8)]) + whole[index + 1 :])
        loaded = checkpoint.load(two_generations)
        # flips in the names of the format's own fields may read as the same content; never as another
        assert same(OLD, loaded) or same(NEW, loaded), index


def test_two_damaged_generations_are_an_error_that_says_what_to_do(two_generations: Path) -> None:
    """Fault row 26."""
    for path in (two_generations, previous(two_generations)):
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"2 damaged generation.*remove the file") as caught:
        checkpoint.load(two_generations)
    assert caught.value.public == "DISK: teacher.safetensors"


@pytest.mark.parametrize("failing", [1, 2])
def test_a_crash_between_writing_and_renaming_loses_the_new_generation_only(
    two_generations: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """Fault row 26: the process dies before the first or before the second of the two renames."""
    calls = 0
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(two_generations, {"step": 3, "w": torch.zeros(2)})
    monkeypatch.undo()
    assert same(NEW, checkpoint.load(two_generations))
    checkpoint.save(two_generations, {"step": 4})
    assert checkpoint.load(two_generations) == {"step": 4}


@pytest.mark.parametrize("where", ["write", "fsync", "open"])
def test_a_full_disk_leaves_the_old_files_whole_and_no_litter(
    two_generations: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Fault row 27."""

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    def partly(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"0123456789")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def on_disk() -> dict[str, bytes]:
        return {path.name: hashlib.sha256(path.read_bytes()).digest() for path in two_generations.parent.iterdir()}

    before = on_disk()
    if where == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        name, fault = ("open", full) if where == "open" else ("save_file", partly)
        monkeypatch.setattr(checkpoint, name, fault, raising=False)
    with pytest.raises(OSError, match="No space") as caught:
        checkpoint.save(two_generations, {"step": 3})
    assert caught.value.errno == errno.ENOSPC
    assert before == {
        path.name: hashlib.sha256(path.read_bytes()).digest() for path in two_generations.parent.iterdir()
    }


def test_what_the_system_refuses_is_told_as_its_own_error(two_generations: Path) -> None:
    """Here a real refusal: no file of this process may grow beyond 4096 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is compared
            checkpoint.save(two_generations, {"w": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert same(NEW, checkpoint.load(two_generations))


def test_a_checkpoint_has_the_mode_of_any_other_file_of_its_process(two_generations: Path, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    checkpoint.save(two_generations, {"w": torch.zeros(2)})
    assert two_generations.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_file_of_an_earlier_version_is_named_as_one(file: Path) -> None:
    file.parent.mkdir()
    save_file({"w": torch.zeros(2)}, file, metadata={"tree": "{}", "sha256": "ab" * 32})
    for read in (checkpoint.load, checkpoint.load_file):
        with pytest.raises(CheckpointError, match="an earlier version"):
            read(file)


@pytest.mark.parametrize("digest_of", [content_sha256, content_crc32])
def test_equal_models_have_equal_digests_and_others_do_not(digest_of: Callable[[Any], str]) -> None:
    model = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2, 3)}
    digest = digest_of(model)
    assert digest == digest_of({"b": torch.zeros(3, 2).T, "a": torch.arange(1.0, 3.0)})
    for other in (
        {**model, "a": torch.tensor([1.0, 2.0000002])},
        {**model, "b": torch.zeros(3, 2)},
        {**model, "a": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        {"a": model["a"], "c": model["b"]},
        {"a": model["a"]},
        {**model, "b": -torch.zeros(2, 3)},
    ):
        assert digest_of(other) != digest


def test_the_checksum_is_that_of_names_shapes_types_and_bytes() -> None:
    assert (
        content_crc32({"a": torch.tensor([1], dtype=torch.uint8)})
        == f"{zlib.crc32(b'a|(1,)|torch.uint8|' + bytes([1])):08x}"
    )


def test_tensors_are_written_from_their_own_memory_and_copied_only_where_they_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.arange(6.0)
    tree = {"whole": whole, "part": whole[2:4], "again": whole, "turned": torch.arange(4.0).reshape(2, 2).T}
    given: dict[str, torch.Tensor] = {}
    real = checkpoint.save_file
    monkeypatch.setattr(
        checkpoint, "save_file", lambda tensors, path, **more: given.update(tensors) or real(tensors, path, **more)
    )
    checkpoint.save(tmp_path / "x", tree)
    assert given["/whole"].data_ptr() == whole.data_ptr()
    assert given["/again"].data_ptr() != whole.data_ptr()
    found = checkpoint.load(tmp_path / "x")
    assert all(torch.equal(found[name], tensor) for name, tensor in tree.items())
