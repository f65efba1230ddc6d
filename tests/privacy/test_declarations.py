"""Every count of cases is declared as one: what is not declared a count is never withheld as a small one."""

from __future__ import annotations

import pytest

from fedmedseg.core.config import system_module, systems
from fedmedseg.core.jobs import find_job, read_settings
from fedmedseg.core.wire import StageContract
from fedmedseg.privacy.counts import matches

FINE_TUNED_TOGETHER = {"fedata"}
"""Systems whose sites may fine-tune together; others refuse it (see their own tests of settings)."""


def contracts() -> list[tuple[str, StageContract]]:
    found = []
    for system in systems():
        together = {"segmentation": {"fine_tuning": "federated"}, system: {"starts": ["shared"]}}
        for changes in ({}, together) if system in FINE_TUNED_TOGETHER else ({},):
            _, experiment = read_settings(find_job(system), [changes])
            stages = system_module(system, "plan").stages(experiment)
            found += [(f"{system} {stage}", contract) for stage, contract in stages.items()]
    return found


@pytest.mark.parametrize(("name", "contract"), contracts())
def test_the_figures_that_count_cases_are_declared_counts(name: str, contract: StageContract) -> None:
    for figure in ("cases", "set_aside", "failures/shared/left ventricle"):
        assert matches(figure, contract.counts) or not matches(figure, contract.metrics), (name, figure)
    for figure in ("loss", "dice/shared/left ventricle", "best_round/shared", "personal_missing"):
        assert not matches(figure, contract.counts), (name, figure)
