"""A site offers the GPUs it has, and starts where it has none."""

from __future__ import annotations

import logging

import pytest
from nvflare.apis.fl_context import FLContext
from nvflare.app_common.resource_managers import gpu_resource_manager
from nvflare.app_common.resource_managers.gpu_resource_manager import GPUResourceManager

from fedmedseg.provisioning import gpu
from fedmedseg.provisioning.gpu import AvailableGPUManager


def machine(monkeypatch: pytest.MonkeyPatch, *gib: int) -> None:
    """A machine with GPUs of so many GiB."""
    for module in (gpu, gpu_resource_manager):
        monkeypatch.setattr(module, "get_host_gpu_ids", lambda: list(range(len(gib))))
    monkeypatch.setattr(gpu_resource_manager, "get_host_gpu_memory_total", lambda: [one * 1024 for one in gib])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def offered(manager: GPUResourceManager) -> list[int]:
    return sorted(manager.resources)


def test_flares_own_manager_does_not_start_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the class is for; should this pass one day, it can go."""
    machine(monkeypatch)
    with pytest.raises(ValueError, match="exceeds available GPUs"):
        GPUResourceManager(1, 16)


@pytest.mark.parametrize(
    ("gib", "asked", "memory", "expected"),
    [
        ((24, 24), 2, 16, [0, 1]),
        ((24, 24), 1, 16, [0]),
        ((24,), 2, 16, [0]),
        ((), 1, 16, []),
        ((8,), 1, 16, []),
        ((24,), 0, 0, []),
    ],
)
def test_as_many_as_entered_and_present(
    monkeypatch: pytest.MonkeyPatch, gib: tuple[int, ...], asked: int, memory: float, expected: list[int]
) -> None:
    machine(monkeypatch, *gib)
    assert offered(AvailableGPUManager(asked, memory)) == expected


def test_what_is_not_offered_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    machine(monkeypatch)
    with caplog.at_level(logging.WARNING):
        AvailableGPUManager(2, 16)
    assert "2 GPUs offered, 0 found: jobs that ask for none run on the CPU" in caplog.text


def test_without_a_gpu_jobs_that_ask_for_one_are_declined_and_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    manager = AvailableGPUManager(1, 16)
    assert manager._check_required_resource_available({})
    assert not manager._check_required_resource_available({"num_of_gpus": 1, "mem_per_gpu_in_GiB": 1})


def test_a_second_job_that_asks_for_the_gpu_waits_until_the_first_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault row 46; what `fedmedseg job --gpu-memory 16` asks for."""
    machine(monkeypatch, 24)
    manager, fl_ctx = AvailableGPUManager(1, 16), FLContext()
    asked = {"num_of_gpus": 1, "mem_per_gpu_in_GiB": 16.0}
    enough, token = manager.check_resources(asked, fl_ctx)
    assert enough
    held = manager.allocate_resources(asked, token, fl_ctx)
    assert list(held) == [0]
    assert manager.check_resources(asked, fl_ctx) == (False, "")
    assert manager.check_resources({}, fl_ctx)[0], "a job that asks for none runs beside it"
    manager.free_resources(held, token, fl_ctx)
    assert manager.check_resources(asked, fl_ctx)[0]


def test_a_driver_that_does_not_answer_counts_as_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[int]:
        raise Exception("Failed to call nvidia-smi")

    machine(monkeypatch)
    monkeypatch.setattr(gpu, "get_host_gpu_ids", broken)
    assert offered(AvailableGPUManager(1, 16)) == []


def test_an_entry_that_makes_no_sense_is_still_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 24)
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        AvailableGPUManager(-1, 16)
