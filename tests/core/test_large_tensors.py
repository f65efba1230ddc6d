"""Which tensors lie in a message and which are fetched."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.fobs.decomposers import via_downloader
from nvflare.fuel.utils.fobs.decomposers.via_downloader import EncKey, EncType

from fedmedseg.core.large_tensors import LARGE, LargeTensorDecomposer

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
