"""Which tensors lie in a message and which are fetched."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from nvflare.app_opt.pt.lazy_tensor_dict import LazyTensorDict
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.fobs.decomposers import via_downloader
from nvflare.fuel.utils.fobs.decomposers.via_downloader import EncKey, EncType
from safetensors.torch import save_file

from fedmedseg.core.large_tensors import LARGE, PIECE, LargeTensorDecomposer
from fedmedseg.core.spilled import FetchedPieces, SpilledTensors

SMALL, BIG = torch.arange(LARGE // 4 - 1, dtype=torch.float32), torch.arange(LARGE // 4, dtype=torch.float32)


def packed(tensor: torch.Tensor) -> dict[str, Any]:
    """As FLARE packs it in a process that others can ask."""
    context = {fobs.FOBSContextKey.CELL: object()}
    manager = SimpleNamespace(fobs_ctx=context, register_post_cb=MagicMock())
    return LargeTensorDecomposer().decompose(tensor, manager)


def test_a_small_tensor_lies_in_its_message() -> None:
    made = packed(SMALL)
    assert made[EncKey.TYPE] == EncType.NATIVE
    assert torch.equal(LargeTensorDecomposer().recompose(made, MagicMock()), SMALL)


def test_a_large_tensor_is_fetched_whatever_flares_own_setting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, int] = {}

    def read(name: str, default: int) -> int:
        asked[name] = default
        return {"tensor_download_chunk_size": 0}.get(name, default)

    monkeypatch.setattr(via_downloader.acu, "get_int_var", read)
    assert packed(BIG)[EncKey.TYPE] == EncType.REF
    assert asked == {"large_tensor_download_chunk_size": 2 * 2**20}


def test_a_setting_of_ours_puts_it_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(via_downloader.acu, "get_int_var", lambda name, default: 0)
    made = packed(BIG)
    assert made[EncKey.TYPE] == EncType.NATIVE
    assert torch.equal(LargeTensorDecomposer().recompose(made, MagicMock()), BIG)


def test_what_nobody_can_ask_for_lies_in_its_message() -> None:
    """So are bytes counted: ``core.traffic`` has no cell."""
    manager = SimpleNamespace(fobs_ctx={}, register_post_cb=MagicMock())
    assert LargeTensorDecomposer().decompose(BIG, manager)[EncKey.TYPE] == EncType.NATIVE


HUGE = torch.arange(2 * PIECE // 4 + 6, dtype=torch.float32).reshape(2, -1)
"""Two pieces and a little more."""


def sending() -> SimpleNamespace:
    """Of one message, in a process that others can ask."""
    return SimpleNamespace(fobs_ctx={fobs.FOBSContextKey.CELL: object()}, register_post_cb=MagicMock())


def receiving(sender: SimpleNamespace) -> SimpleNamespace:
    """Of that message, where it has arrived and what it names was fetched into memory."""
    decomposer = LargeTensorDecomposer()
    items = {
        name: tensor.clone() for name, tensor in sender.fobs_ctx[decomposer.decompose_ctx_key].target_items.items()
    }
    return SimpleNamespace(fobs_ctx={decomposer.items_key: items})


def on_the_disk(sender: SimpleNamespace, folder: Path) -> SimpleNamespace:
    """The same, where it was fetched to the disk."""
    manager, decomposer = receiving(sender), LargeTensorDecomposer()
    folder.mkdir()
    places = {}
    for name, tensor in manager.fobs_ctx[decomposer.items_key].items():
        save_file({name: tensor}, folder / name)
        places[name] = (str(folder / name), name)
    manager.fobs_ctx[decomposer.items_key] = LazyTensorDict(places, str(folder))
    return manager


def test_a_huge_tensor_is_fetched_in_pieces_of_which_none_is_large() -> None:
    sender = sending()
    made = LargeTensorDecomposer().decompose(HUGE, sender)
    pieces = sender.fobs_ctx[LargeTensorDecomposer().decompose_ctx_key].target_items
    assert list(pieces) == made[EncKey.DATA]
    assert [piece.numel() * 4 for piece in pieces.values()] == [PIECE, PIECE, 24]
    assert pieces["T0"].data_ptr() == HUGE.data_ptr(), "cut without a copy"


@pytest.mark.parametrize(
    "given", [HUGE, HUGE.T, HUGE.bfloat16().repeat(1, 2), torch.zeros(2 * PIECE, dtype=torch.uint8)]
)
def test_pieces_become_the_same_tensor(given: torch.Tensor, tmp_path: Path) -> None:
    sender, one = sending(), LargeTensorDecomposer()
    made = one.decompose(given, sender)
    for manager in (receiving(sender), on_the_disk(sender, tmp_path / "f")):
        found = LargeTensorDecomposer().recompose(made, manager)
        if isinstance(found, FetchedPieces):
            found = found.materialize()
        assert found.dtype == given.dtype
        assert torch.equal(found, given)


def test_one_tensor_in_two_places_is_sent_once_and_is_one_again(tmp_path: Path) -> None:
    sender, one = sending(), LargeTensorDecomposer()
    first, second = (one.decompose(HUGE, sender) for _ in range(2))
    assert first == second
    manager = receiving(sender)
    assert len(manager.fobs_ctx[one.items_key]) == 3
    assert one.recompose(first, manager) is one.recompose(second, manager)
    assert manager.fobs_ctx[one.items_key] == {}, "pieces are not held beside their whole"


def test_what_was_fetched_in_pieces_is_kept_piece_by_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sender, one, read = sending(), LargeTensorDecomposer(), []
    made = one.decompose(HUGE, sender)
    found = one.recompose(made, on_the_disk(sender, tmp_path / "f"))
    assert isinstance(found, FetchedPieces)
    monkeypatch.setattr(FetchedPieces, "materialize", lambda self: read.append(self))
    kept = SpilledTensors({"w": found}, tmp_path)
    assert torch.equal(kept["w"], HUGE)
    assert read == [], "the whole is never in memory"


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [3, 7]},
        {"shape": [-1]},
        {"shape": "2"},
        {"shape": None},
        {"shape": [2.0]},
        {EncKey.DATA: []},
        {EncKey.DATA: ["T0"]},
        {EncKey.DATA: ["T0", "T1", "T9"]},
        {EncKey.DATA: ["T0", "T0", "T1"]},
        {EncKey.DATA: "T0"},
        {EncKey.DATA: [0]},
    ],
    ids=str,
)
def test_pieces_that_make_no_such_tensor_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    """However it was fetched; the server keeps no reply with them."""
    sender, one = sending(), LargeTensorDecomposer()
    made = one.decompose(HUGE, sender) | change
    with pytest.raises((RuntimeError, KeyError)):
        one.recompose(made, receiving(sender))
    with pytest.raises((RuntimeError, ValueError)):
        SpilledTensors({"w": one.recompose(made, on_the_disk(sender, tmp_path / "f"))}, tmp_path)


def test_pieces_of_several_types_are_refused(tmp_path: Path) -> None:
    sender, one = sending(), LargeTensorDecomposer()
    made = one.decompose(HUGE, sender)
    items = sender.fobs_ctx[one.decompose_ctx_key].target_items
    items["T1"] = items["T1"].view(torch.int32)
    with pytest.raises(ValueError, match="w: pieces that make no tensor of shape"):
        SpilledTensors({"w": one.recompose(made, on_the_disk(sender, tmp_path / "f"))}, tmp_path)


def test_a_setting_of_ours_and_a_process_without_others_put_a_huge_one_inside_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = SimpleNamespace(fobs_ctx={}, register_post_cb=MagicMock())
    made = [LargeTensorDecomposer().decompose(HUGE, alone)]
    monkeypatch.setattr(via_downloader.acu, "get_int_var", lambda name, default: 0)
    made.append(packed(HUGE))
    for one in made:
        assert one[EncKey.TYPE] == EncType.NATIVE
        assert torch.equal(LargeTensorDecomposer().recompose(one, MagicMock()), HUGE)
