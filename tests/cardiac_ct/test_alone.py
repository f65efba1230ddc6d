"""Each stage alone from the tensors of an earlier run, and a preset whose sites are alone, in one process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmedseg.cardiac_ct.foundation import load_foundation
from fedmedseg.cardiac_ct.learner import OWN
from fedmedseg.cardiac_ct.plan import initial_shared
from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_preset
from fedmedseg.core.schema import read_yaml

Study = Callable[..., Experiment]
Federate = Callable[..., InProcessFederation]
Tensors = Mapping[str, torch.Tensor]
TEACHERS = ("teacher.hps.", "teacher.ms.", "teacher.calc.")
MODELS = ("cnn", "student", "untrained")
PARTS = (*TEACHERS, "student.trunk.", "student.heads.", "transfer.")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sites whose phantoms are written once."""
    return tmp_path_factory.mktemp("alone")


@pytest.fixture
def earlier(study: Study) -> Tensors:
    """What an earlier run, of another seed, ended with."""
    return initial_shared(study(seed=9))


def within(tensors: Tensors, *prefixes: str) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items() if name.startswith(prefixes)}


def alone(stage: str) -> dict[str, Any]:
    """Rounds of ``stage`` and of no other."""
    stages = (*(f"teacher_{task}" for task in ("hps", "ms", "calc")), "pseudo_labelling", "distillation")
    rounds = dict.fromkeys((*stages, "head_tuning", "transfer", "evaluation"), 0) | {stage: 1}
    wing: dict[str, Any] = {"gate": None}
    if stage == "distillation":
        wing["distillation"] = {"pseudo_labels": False}
    if stage != "head_tuning":
        wing["head_steps"] = 0
    if stage != "transfer":
        wing["transfer"] = None
    return {
        "cardiac_ct": wing,
        "segmentation": {"test_untrained": True},
        "stages": {name: {"rounds": number} for name, number in rounds.items()},
    }


@pytest.mark.parametrize(
    ("stage", "there", "moved", "sites"),
    [
        ("teacher_hps", ["teacher.hps."], ["teacher.hps."], ["site-1"]),
        ("teacher_ms", ["teacher.ms."], ["teacher.ms."], ["site-2"]),
        ("teacher_calc", ["teacher.calc."], ["teacher.calc."], ["site-1"]),
        ("distillation", ["student."], ["student.trunk.", "student.heads."], ["site-1", "site-2"]),
        ("head_tuning", ["student."], ["student.heads."], ["site-1", "site-2"]),
        ("transfer", ["teacher.hps.", "student."], ["transfer."], ["site-2"]),
        ("evaluation", [*TEACHERS, "student."], [], ["site-1", "site-2"]),
    ],
)
def test_a_stage_alone_begins_where_an_earlier_run_ended_and_moves_what_it_trains(
    federate: Federate, earlier: Tensors, workspace: Path, stage: str, there: list[str], moved: list[str],
    sites: list[str],
) -> None:  # fmt: skip
    federation = federate(workspace=workspace, start=earlier, **alone(stage))
    begun = within(federation.shared, "")
    assert content_sha256(within(begun, *there)) == content_sha256(within(earlier, *there))
    # a last layer begins anew, whatever layers the earlier run had
    anew = {name: tensor for name, tensor in begun.items() if not name.startswith(tuple(there))}
    assert content_sha256(anew) == content_sha256(within(initial_shared(federation.experiment), "transfer."))
    rounds = {name: federation.run_stage(name) for name in federation.contracts}
    assert {name: [sorted(one) for one in found] for name, found in rounds.items() if found} == {stage: [sites]}
    assert federation.shared.keys() == begun.keys()
    assert [
        part for part in PARTS if content_sha256(within(federation.shared, part)) != content_sha256(within(begun, part))
    ] == moved
    if stage == "evaluation":
        for site in sites:
            figures = rounds[stage][0][site]
            assert {model: figures[f"points/{model}/all points"] for model in MODELS} == dict.fromkeys(MODELS, 7.0)
            folder: Path = federation.learner(site, stage).folder  # type: ignore[attr-defined]
            for name, prefixes in (("cnn", TEACHERS), ("student", ("student.",))):
                tested = load_foundation(folder / f"{name}.safetensors").tensors
                assert content_sha256(tested) == content_sha256(within(earlier, *prefixes))
            scores = json.loads((folder / "test_scores.json").read_text())["models"]
            assert scores["untrained"] != scores["student"]


def test_sites_that_are_alone_train_a_transformer_each_on_their_own_labels(federate: Federate, workspace: Path) -> None:
    """Preset local_transformer: each starts from the study's weights, moves its own heads, and shares nothing."""
    federation = federate(workspace=workspace, **read_yaml(find_preset("cardiac_ct", "local_transformer")))
    begun = within(federation.shared, "")
    assert {name.split(".")[0] for name in begun} == {"student"}
    rounds = {name: federation.run_stage(name) for name in federation.contracts}
    assert {name for name, found in rounds.items() if found} == {"distillation", "evaluation"}
    assert content_sha256(federation.shared) == content_sha256(begun)
    moved: dict[str, set[str]] = {}
    for site in federation.sites:
        own = federation.state(site, "evaluation").load(OWN)["tensors"]
        assert own.keys() == begun.keys()
        moved[site] = {".".join(n.split(".")[1:3]) for n, t in own.items() if not torch.equal(t, begun[n])}
        folder: Path = federation.learner(site, "evaluation").folder  # type: ignore[attr-defined]
        assert [file.name for file in folder.glob("*.safetensors")] == ["student.safetensors"]
        assert content_sha256(load_foundation(folder / "student.safetensors").tensors) == content_sha256(own)
        assert rounds["distillation"][0][site]["cases/pseudo"] == 0.0
        assert rounds["evaluation"][0][site]["points/student/all points"] == 7.0
    heads = {site: {name for name in names if name.startswith("heads.")} for site, names in moved.items()}
    assert heads == {"site-1": {"heads.hps", "heads.calc"}, "site-2": {"heads.ms"}}
    assert all(any(name.startswith("trunk.") for name in names) for names in moved.values())
