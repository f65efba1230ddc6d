"""Whether a comparison's methods, with their jobs' settings laid out, can be compared at all."""

from __future__ import annotations

from collections.abc import Mapping

from fedmedseg.comparison.section import ComparisonSection
from fedmedseg.core.config import Experiment, system_module
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.segmentation.stages import TEST_METRICS


def check_participation(section: ComparisonSection, name: str, experiment: Experiment) -> None:
    """Refuse a count of sites that a round with few sites can never have."""
    quorum = experiment.federation.quorum
    if section.participation < 1.0 and section.methods[name].training == "federated" and isinstance(quorum, int):
        raise ConfigurationError(
            f"methods.{name}: federation.quorum",
            got=quorum,
            expected=f"all or a share with participation {section.participation:g}, of the sites that a round asks",
            remedy="leave quorum out",
        )


def check_evaluation(name: str, experiment: Experiment) -> None:
    """Refuse a system whose test is not Dice and HD95 of one network per start."""
    contract = system_module(experiment.system, "plan").stages(experiment).get("evaluation")
    if contract is None or not set(TEST_METRICS) <= set(contract.metrics):
        raise ConfigurationError(
            f"methods.{name}.system",
            got=experiment.system,
            expected="a system that is tested as segmentation.testing does: Dice and HD95 of every structure",
            remedy="remove the method",
        )


def check_alike(section: ComparisonSection, read: Mapping[str, Experiment]) -> None:
    """Refuse methods that segment other data or structures than the one they are compared with."""
    first = read[section.reference].data
    for name, experiment in read.items():
        for field in ("role", "labels"):
            own, common = getattr(experiment.data, field), getattr(first, field)
            if own != common or experiment.data.alternatives:
                raise ConfigurationError(
                    f"methods.{name}: data.{field if own != common else 'alternatives'}",
                    got=own if own != common else "other data sets beside data.role",
                    expected=f"{common}, as method {section.reference} has" if own != common else "none",
                    remedy="say in the study's settings what all methods read: data.role, data.labels, "
                    "data.alternatives: []",
                )
