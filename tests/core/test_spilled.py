"""Replies on the disk: the same bytes back, nothing left behind, and one tensor in memory at a time."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.app_opt.pt.lazy_tensor_dict import LazyTensorDict
from safetensors.torch import save_file

from fedmedseg.core import aggregator as aggregation
from fedmedseg.core.aggregator import SharedKeysAggregator
from fedmedseg.core.averaging import weighted_mean
from fedmedseg.core.federation_settings import RobustSection
from fedmedseg.core.large_tensors import LARGE
from fedmedseg.core.robust import clipped, combined, survey
from fedmedseg.core.spilled import DerivedTensors, SpilledTensors, holds_fetched
from fedmedseg.core.traffic import encoded_bytes
from fedmedseg.core.wire import tensor_bytes

ODD = {
    "matrix": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
    "scalar": torch.tensor(-0.0),
    "none": torch.zeros(0, 4),
    "half": torch.tensor([1.5, float("nan")], dtype=torch.float16),
    "bytes": torch.tensor([0, 255], dtype=torch.uint8),
    "counts": torch.tensor([2**40, -1], dtype=torch.int64),
}


def test_every_tensor_comes_back_with_its_bytes_shape_and_dtype(tmp_path: Path) -> None:
    spilled = SpilledTensors(ODD, tmp_path)
    assert list(spilled) == list(ODD)
    assert len(spilled) == 6
    for name, tensor in ODD.items():
        again = spilled[name]
        assert (again.shape, again.dtype) == (tensor.shape, tensor.dtype)
        assert again.numpy().tobytes() == tensor.contiguous().numpy().tobytes()


def test_what_is_read_is_a_copy(tmp_path: Path) -> None:
    spilled = SpilledTensors({"a": torch.ones(2)}, tmp_path)
    spilled["a"].zero_()
    assert torch.equal(spilled["a"], torch.ones(2))


def test_the_file_has_no_name_and_its_room_is_given_back(tmp_path: Path) -> None:
    """Nobody finds a site's update on the disk, also not after a kill."""
    spilled = SpilledTensors(ODD, tmp_path)
    handle = spilled._file.fileno()
    assert list(tmp_path.iterdir()) == []
    opened = Path(f"/proc/self/fd/{handle}")
    if opened.exists():
        assert str(tmp_path) in str(opened.readlink())
        del spilled
        gc.collect()
        assert not opened.exists() or str(tmp_path) not in str(opened.readlink())


def test_a_missing_tensor_and_a_missing_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        SpilledTensors(ODD, tmp_path)["unheard of"]
    with pytest.raises(OSError, match="nowhere"):
        SpilledTensors(ODD, tmp_path / "nowhere")


def test_a_file_that_was_cut_is_an_error(tmp_path: Path) -> None:
    spilled = SpilledTensors({"a": torch.ones(4), "b": torch.ones(4)}, tmp_path)
    spilled._file.truncate(20)
    assert torch.equal(spilled["a"], torch.ones(4))
    with pytest.raises(OSError, match="ends within b"):
        spilled["b"]


def test_derived_tensors_are_a_part_and_made_when_asked_for() -> None:
    made = []

    def double(tensor: torch.Tensor) -> torch.Tensor:
        made.append(float(tensor))
        return 2 * tensor

    derived = DerivedTensors({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, ["b"], double)
    assert list(derived) == ["b"]
    assert len(derived) == 1
    assert "a" not in derived
    with pytest.raises(KeyError):
        derived["a"]
    assert made == []
    assert float(derived["b"]) == 4.0
    assert made == [2.0]


def test_to_ask_for_a_name_reads_and_makes_nothing(tmp_path: Path) -> None:
    spilled = SpilledTensors({"a": torch.ones(4)}, tmp_path)
    spilled._file.truncate(0)
    derived = DerivedTensors(spilled, ["a"])
    for tensors in (spilled, derived):
        assert "a" in tensors
        assert "b" not in tensors


def replies(sites: int) -> dict[str, dict[str, torch.Tensor]]:
    draws = torch.Generator().manual_seed(1)
    return {f"s{n}": {name: torch.randn(9, 5, generator=draws) for name in "ab"} for n in range(sites)}


@pytest.mark.parametrize("rule", ["mean", "clip", "trimmed_mean", "median", "krum"])
def test_every_rule_makes_the_same_of_replies_on_the_disk(rule: str, tmp_path: Path) -> None:
    given = replies(5)
    spilled = {site: SpilledTensors(tensors, tmp_path) for site, tensors in given.items()}

    def made(of: dict) -> dict[str, torch.Tensor]:
        if rule == "mean":
            return weighted_mean(of, dict.fromkeys(of, 0.2))
        if rule == "clip":
            found = survey(of, ["a", "b"])
            short = {s: clipped(of[s], norm=found.norms[s], limit=found.median_norm) for s in of}
            return weighted_mean(short, dict.fromkeys(of, 0.2))
        return combined(of, RobustSection(rule=rule, faulty=1))

    expected, found = made(given), made(spilled)
    assert all(torch.equal(expected[name], found[name]) for name in "ab")


@pytest.mark.parametrize("rule", ["mean", "clip", "median"])
def test_one_tensor_of_every_site_is_in_memory_at_a_time(rule: str, tmp_path: Path) -> None:
    """Of 20 tensors of three sites; what is read lies in Python's own memory, which can be traced."""
    size = 4 * 10_000
    tensors = {f"t{number}": torch.ones(10_000) for number in range(20)}
    given = {f"s{n}": SpilledTensors(tensors, tmp_path) for n in range(3)}
    made = {site: clipped(one, norm=2.0, limit=1.0) for site, one in given.items()} if rule == "clip" else given
    tracemalloc.start()
    try:
        if rule == "median":
            combined(made, RobustSection(rule="median"))
        else:
            weighted_mean(made, dict.fromkeys(made, 1 / 3))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size < most < 8 * size


@pytest.fixture
def send_to(context: Callable, reply_to: Callable, round_of: Callable) -> Callable[..., SharedKeysAggregator]:
    """send_to(): an aggregator with two replies in it."""

    def call() -> SharedKeysAggregator:
        made = SharedKeysAggregator()
        made.open_round(round_of())
        for site, value in (("site-1", 0.1), ("site-2", 0.7)):
            data = {"a": torch.full((2,), value), "b": torch.full((2, 2), value / 2)}
            assert made.accept(reply_to(made.round, data, examples=4), context("server", peer=site))
        return made

    return call


def test_large_replies_wait_on_the_disk_and_make_the_same(
    send_to: Callable, context: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = send_to()
    assert isinstance(in_memory.contributions["site-1"].differences, dict)
    monkeypatch.setattr(aggregation, "FROM_BYTES", 24)
    on_disk = send_to()
    for site, kept in on_disk.contributions.items():
        assert isinstance(kept.differences, SpilledTensors)
        assert kept.nbytes == in_memory.contributions[site].nbytes == 24
        assert tensor_bytes(kept.differences) == 24
    results = [from_shareable(made.aggregate(context("server"))).data for made in (in_memory, on_disk)]
    assert all(torch.equal(results[0][name], results[1][name]) for name in "ab")
    assert in_memory.notes == on_disk.notes


def test_a_large_reply_frees_what_messages_left_behind(
    send_to: Callable, monkeypatch: pytest.MonkeyPatch, reply_to: Callable, context: Callable
) -> None:
    """FLARE's streams hold each other, and with them the messages; a small reply is not worth a collection."""

    class Stream:
        def __init__(self) -> None:
            self.other = self

    made, data = send_to(), {"a": torch.zeros(2), "b": torch.zeros(2, 2)}
    gc.disable()
    try:
        for site, size, freed in (("site-3", 25, False), ("site-4", 24, True)):
            monkeypatch.setattr(aggregation, "FROM_BYTES", size)
            left = weakref.ref(Stream())
            assert made.accept(reply_to(made.round, data, examples=4), context("server", peer=site))
            assert (left() is None) == freed
    finally:
        gc.enable()


def test_a_full_disk_costs_that_reply_alone(
    send_to: Callable, monkeypatch: pytest.MonkeyPatch, reply_to: Callable, context: Callable
) -> None:
    """The site may be asked again; the reason is told without a path."""
    made = send_to()
    monkeypatch.setattr(aggregation, "FROM_BYTES", 0)
    monkeypatch.setattr(SpilledTensors, "__init__", _full)
    data = {"a": torch.zeros(2), "b": torch.zeros(2, 2)}
    assert not made.accept(reply_to(made.round, data, examples=4), context("server", peer="site-3"))
    assert made.rejections == {"site-3": "DISK: the server could not keep it (OSError)"}
    assert sorted(made.contributions) == ["site-1", "site-2"]


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device: /secret")


def fetched(tensors: dict[str, torch.Tensor], folder: Path) -> dict[str, Any]:
    """As FLARE leaves a reply's large tensors: files with names, and what stands for each."""
    folder.mkdir()
    save_file(tensors, folder / "piece")
    there = LazyTensorDict({name: (str(folder / "piece"), name) for name in tensors}, str(folder))
    return {name: there.make_lazy_ref(name) for name in tensors}


def test_what_flare_has_fetched_moves_into_a_file_without_a_name(tmp_path: Path) -> None:
    given = {"a": torch.randn(3, 4), "b": torch.arange(5)}
    reply = {**fetched(given, tmp_path / "flare"), "c": torch.ones(2)}
    assert holds_fetched(reply)
    kept = SpilledTensors(reply, tmp_path)
    reply.clear()
    assert not (tmp_path / "flare").exists(), "FLARE's go with what stands for them"
    assert list(tmp_path.iterdir()) == []
    assert kept.nbytes == 48 + 40 + 8
    assert all(torch.equal(kept[name], tensor) for name, tensor in {**given, "c": torch.ones(2)}.items())


@pytest.mark.parametrize("entries", [{"a": torch.ones(2)}, {}, None, [1]])
def test_other_replies_hold_nothing_that_was_fetched(entries: object) -> None:
    assert not holds_fetched(entries)


def test_a_fetched_reply_is_judged_and_counted_like_any_other(
    send_to: Callable, reply_to: Callable, context: Callable, tmp_path: Path
) -> None:
    made, data = send_to(), {"a": torch.full((2,), 0.5), "b": torch.full((2, 2), 0.5)}
    for site, tensors in (("site-3", data), ("site-4", fetched(data, tmp_path / "flare"))):
        assert made.accept(reply_to(made.round, tensors, examples=4), context("server", peer=site)), made.rejections
    plain, kept = (made.contributions[site] for site in ("site-3", "site-4"))
    assert isinstance(kept.differences, SpilledTensors)
    assert (kept.nbytes, kept.norms) == (plain.nbytes, plain.norms)
    wrong = fetched({"a": torch.full((2,), float("nan")), "b": data["b"]}, tmp_path / "wrong")
    assert not made.accept(reply_to(made.round, wrong, examples=4), context("server", peer="site-5"))
    assert made.rejections["site-5"] == "NOT_FINITE: a holds NaN or infinity"
    gone = fetched(data, tmp_path / "gone")
    (tmp_path / "gone" / "piece").unlink()
    assert not made.accept(reply_to(made.round, gone, examples=4), context("server", peer="site-6"))
    assert made.rejections["site-6"].startswith(("UNREADABLE", "DISK"))


def test_a_fetched_tensor_is_counted_like_one_inside_without_being_read(tmp_path: Path) -> None:
    large = {"w": torch.zeros(LARGE // 4)}
    inside, apart = (
        DXO(DataKind.WEIGHT_DIFF, data=data).to_shareable() for data in (large, fetched(large, tmp_path / "f"))
    )
    assert encoded_bytes(apart) == encoded_bytes(inside)
