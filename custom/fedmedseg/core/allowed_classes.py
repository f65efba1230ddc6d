"""Which component classes a job may name: each that our jobs name, by its whole name, and nothing else.

No prefix of a package, not even of this one. FLARE 2.9.0 asks of a listed path neither that it is a component nor that
it is a class (`fuel/utils/class_utils.py`, ``instantiate_class``): with a prefix, every name that any module of the
package imports could be called with arguments of a job's choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CLASS_ALLOW_LIST = (
    "fedmedseg.cardiac_ct.aggregator.TrainedHeadsAggregator",
    "fedmedseg.cardiac_ct.executor.KnowledgeDistillationExecutor",
    "fedmedseg.core.aggregator.MetricsAggregator",
    "fedmedseg.core.aggregator.SharedKeysAggregator",
    "fedmedseg.core.persistor.SharedModelPersistor",
    "fedmedseg.core.records.RunRecord",
    "fedmedseg.core.workflow.QuorumScatterAndGather",
    "fedmedseg.fcl.aggregator.ContrastiveAggregator",
    "fedmedseg.fcl.executor.ContrastiveExecutor",
    "fedmedseg.fclopt.aggregator.TargetPredictionAggregator",
    "fedmedseg.fclopt.executor.BootstrapExecutor",
    "fedmedseg.fedata.aggregator.AttentionAggregator",
    "fedmedseg.fedata.executor.MaskedDistillationExecutor",
    "fedmedseg.fedavg.aggregator.StrategyAggregator",
    "fedmedseg.fedavg.executor.FederatedAveragingExecutor",
    "fedmedseg.fedcrld.executor.RelocalizationExecutor",
    "fedmedseg.reporting.report.HTMLReporter",
    "fedmedseg.segmentation.executor.CMRFineTuningExecutor",
    "fedmedseg.segviz.aggregator.PublishedModels",
    "fedmedseg.segviz.executor.PartialLabelExecutor",
    "nvflare.app_common.shareablegenerators.full_model_shareable_generator.FullModelShareableGenerator",
    "nvflare.app_opt.tracking.tb.tb_receiver.TBAnalyticsReceiver",
)

OPTIONAL_AT_SERVER = ("nvflare.app_opt.tracking.mlflow.mlflow_receiver.MLflowReceiver",)
"""Classes that whoever runs a server may add to its list by hand (``core.tracking``): they send figures to an address
that a job names."""


def class_policy() -> dict[str, Any]:
    """The part of ``local/resources.json`` that says which classes a job may name."""
    return {"class_list_enforcement_mode": "enforce", "class_allow_list": list(CLASS_ALLOW_LIST)}


def simulator_resources(*, added: Sequence[str] = ()) -> dict[str, Any]:
    """Content of ``local/resources.json`` in a simulator workspace: FLARE enforces the list there too."""
    return {"format_version": 2, "class_allow_list": [*CLASS_ALLOW_LIST, *added]}


def without_optional(resources: Mapping[str, Any]) -> dict[str, Any]:
    """A server's resources as they would be without the classes that may be added to its list by hand."""
    listed = resources.get("class_allow_list")
    if not isinstance(listed, list):
        return dict(resources)
    return {**resources, "class_allow_list": [one for one in listed if one not in OPTIONAL_AT_SERVER]}


def list_problems(resources: Mapping[str, Any]) -> list[str]:
    """Why the class policy in ``resources``, read from a kit, is not ours; empty where it is."""
    found = []
    mode = resources.get("class_list_enforcement_mode", "enforce")
    if mode != "enforce":
        found.append(f"class_list_enforcement_mode is {mode!r}: classes off the list would run")
    if "class_allow_list" not in resources:
        return [*found, "no class_allow_list: FLARE's own list would count, on which no class of ours is"]
    listed = resources["class_allow_list"]
    if not isinstance(listed, list):
        return [*found, f"class_allow_list is a {type(listed).__name__} instead of a list"]
    wider = [str(entry) for entry in listed if entry not in CLASS_ALLOW_LIST]
    missing = [entry for entry in CLASS_ALLOW_LIST if entry not in listed]
    if wider:
        found.append(f"wider than our jobs need: {', '.join(wider)}")
    if missing:
        found.append(f"our jobs cannot run without {', '.join(missing)}")
    return found
