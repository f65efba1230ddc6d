"""The GPUs a site offers to jobs: those its entry names, as far as the machine has them."""

from __future__ import annotations

import logging

from nvflare.app_common.resource_managers.gpu_resource_manager import GPUResourceManager
from nvflare.fuel.utils.gpu_utils import get_host_gpu_ids

logger = logging.getLogger(__name__)


class AvailableGPUManager(GPUResourceManager):
    """FLARE's GPU manager that starts on a machine with fewer GPUs than its entry says, down to none.

    FLARE's own refuses to start the site then. Here the site takes part on its CPU in every job that does not ask it
    for a GPU (`fedmedseg job --gpu` writes that into the job's meta file), and does not start those that do.

    Args:
        num_of_gpus: GPUs the site's entry offers.
        mem_per_gpu_in_GiB: GiB of each.
        expiration_period: seconds a reservation is held.
    """

    def __init__(self, num_of_gpus: int, mem_per_gpu_in_GiB: float, expiration_period: float = 300) -> None:
        found = _present()
        usable = min(num_of_gpus, found)
        if usable < num_of_gpus:
            logger.warning("%d GPUs offered, %d found: %s", num_of_gpus, found, _consequence(usable))
        try:
            super().__init__(usable, mem_per_gpu_in_GiB, expiration_period=expiration_period)
        except ValueError as error:
            if usable <= 0:
                raise
            # too little memory on one of them, or hidden by CUDA_VISIBLE_DEVICES
            logger.warning("GPUs cannot be offered as entered (%s): %s", error, _consequence(0))
            super().__init__(0, mem_per_gpu_in_GiB, expiration_period=expiration_period)


def _present() -> int:
    """GPUs of this machine; a driver that does not answer counts as none."""
    try:
        return len(get_host_gpu_ids())
    except Exception as error:  # the library raises Exception itself
        logger.warning("the graphics driver does not answer: %s", error)
        return 0


def _consequence(usable: int) -> str:
    return f"{usable} are offered" if usable else "jobs that ask for none run on the CPU"
