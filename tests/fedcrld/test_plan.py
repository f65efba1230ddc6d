"""What crosses the wire: the global encoder alone, or what the switch says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fedmedseg.core.config import Experiment
from fedmedseg.core.wire import Schema
from fedmedseg.fedcrld.config import STAGE
from fedmedseg.fedcrld.plan import crops, initial_shared, stages, work
from fedmedseg.segmentation.starts import initial_network

Study = Callable[..., Experiment]


def test_the_payload_has_exactly_the_32_tensors_of_the_global_encoder(study: Study) -> None:
    """Row 3."""
    shared = initial_shared(study())
    assert len(shared) == 32
    assert all(name.startswith("globalnet.") for name in shared)
    assert Schema(shared).problem(shared) is None
    assert {tensor.dtype for tensor in shared.values()} == {torch.float32}
    contract = stages(study())[STAGE]
    assert (contract.sends, contract.returns) == ("shared", "shared")
    for round in (0, 1):
        assert contract.sent_in(round).of(shared).keys() == shared.keys() == contract.returned.of(shared).keys()


def test_at_full_size_it_is_the_published_traffic(settings: Callable[..., dict[str, Any]]) -> None:
    from fedmedseg.core.config import parse_experiment
    from fedmedseg.fedcrld.network import RelocalizationNetwork
    from fedmedseg.fedcrld.sharing import shared_names

    content = settings()
    content["network"] = {"name": "relocalization"}
    experiment = parse_experiment(content)
    with torch.device("meta"):
        network = RelocalizationNetwork(classes=4, width=experiment.network.width)
    tensors = network.state_dict()
    shared = {name: tensors[name] for name in shared_names(network, experiment)}
    assert len(shared) == 32
    assert Schema(shared).nbytes == 4 * 5_478_912 == 21_915_648


def test_neither_fine_tuning_nor_evaluation_is_sent_or_sends_a_tensor(study: Study) -> None:
    for name in ("fine_tuning", "evaluation"):
        contract = stages(study())[name]
        assert (contract.sends, contract.returns) == ("nothing", "metrics")


def test_the_same_study_starts_from_the_same_tensors_whatever_was_drawn_before(study: Study) -> None:
    first = initial_shared(study())
    torch.manual_seed(99)
    before = torch.get_rng_state()
    second = initial_shared(study())
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    network = initial_network(study()).state_dict()
    assert all(torch.equal(first[name], network[name]) for name in first)


def test_everything_is_the_whole_network_where_all_sites_have_one_label_map(study: Study, late: dict[str, Any]) -> None:
    names = list(initial_network(study()).state_dict())
    assert list(initial_shared(study(share="everything"))) == names
    # sites with other structures keep the layer that knows them
    apart = initial_shared(study(share="everything", data=late))
    assert set(names) - set(apart) == {"output.weight", "output.bias"}
    other = {"alternatives": [{"role": "lge", "labels": {1: "left", 2: "right", 3: "wall"}}]}
    assert "output.bias" not in initial_shared(study(share="everything", data=other)), "3 classes that mean others"


def test_everything_but_norms_leaves_out_exactly_the_norms_parameters(study: Study) -> None:
    network = initial_network(study())
    norms = {
        f"{name}.{kind}"
        for name, module in network.named_modules()
        if isinstance(module, nn.GroupNorm)
        for kind in ("weight", "bias")
    }
    shared = set(initial_shared(study(share="everything_but_norms")))
    assert shared == set(network.state_dict()) - norms
    assert len(norms) == 2 * 23


def test_nothing_sends_the_encoder_once_and_brings_back_figures(study: Study) -> None:
    experiment = study(share="nothing")
    contract, shared = stages(experiment)[STAGE], initial_shared(experiment)
    assert contract.returns == "metrics"
    assert contract.sent_in(0).of(shared)
    assert not contract.sent_in(1).of(shared)


def test_the_contract_of_a_study_of_two_label_maps_is_one_for_all_sites(study: Study, late: dict[str, Any]) -> None:
    from fedmedseg.data.views import site_view

    experiment = study(data=late)
    schemas = {
        Schema(initial_shared(view)).digest
        for view in (experiment, *(site_view(experiment, [role]) for role in ("cmr", "lge")))
    }
    assert len(schemas) == 1


def test_work_counts_steps_or_passes_over_the_phantoms(study: Study) -> None:
    assert work(study())[STAGE] == 2
    phantom = {"phantom": {"family": "cine_mr", "training": 7}}
    assert work(study(local_steps=None, local_epochs=3, data=phantom))[STAGE] == 21
    assert work(study(starts=["personal", "scratch"], tuning=1))["fine_tuning"] == 2, "personal is not tuned"
    assert crops(study()) == {STAGE: 1}
