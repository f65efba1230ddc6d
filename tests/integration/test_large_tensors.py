"""Models whose tensors are fetched in pieces: the same bytes as inside messages, through processes and the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stand_in_job import stand_in_job

from fedmedseg.core.config import load_experiment
from fedmedseg.core.jobs import EXPERIMENT
from fedmedseg.core.large_tensors import LARGE, PIECE
from fedmedseg.fedata.plan import initial_shared

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

WIDE = {"network": {"feature_size": 96}, "stages": {"pretraining": {"rounds": 2}}}
"""An encoder of 86 MB, some of whose tensors are fetched whole, and some in pieces."""


def test_some_of_its_tensors_are_cut_and_some_are_not(tmp_path: Path) -> None:
    shared = initial_shared(load_experiment(stand_in_job(tmp_path / "job", WIDE) / EXPERIMENT))
    sizes = [tensor.numel() * tensor.element_size() for tensor in shared.values()]
    assert any(size > 2 * PIECE for size in sizes)
    assert any(LARGE <= size <= PIECE for size in sizes)
    assert any(size < LARGE for size in sizes)
    assert 80e6 < sum(sizes) < 90e6


def test_fetched_tensors_make_the_same_model_and_are_counted_alike(start: Callable[..., Any], tmp_path: Path) -> None:
    apart = start(tmp_path / "apart", **WIDE)
    inside = start(tmp_path / "inside", configuration={"large_tensor_download_chunk_size": 0}, **WIDE)
    for run in (apart, inside):
        assert run.outcome == "finished", run.reason
        assert "is not in the bytes of its round" not in run.log
    told = [
        [(one["shared_sha256"], one["accepted"], [one["sites"][site]["payload_up"] for site in sorted(one["sites"])])
         for one in run.rounds()]
        for run in (apart, inside)
    ]  # fmt: skip
    assert told[0] == told[1]
    assert len({one[0] for one in told[0]}) == 2


def test_a_site_that_fails_costs_nobody_else_where_tensors_are_fetched(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    run = start(
        tmp_path, sites=3, faults=[{"site": "site-2", "round": 1, "kind": "raise"}], federation={"quorum": 2}, **WIDE
    )
    assert run.outcome == "finished", run.reason
    assert [one["accepted"] for one in run.rounds()] == [["site-1", "site-2", "site-3"], ["site-1", "site-3"]]
