"""What crosses the wire in which stage."""

import torch

from fedmedseg.core.wire import Schema, tensor_bytes
from fedmedseg.fcl.plan import crops, exchange_of, initial_shared, stages, work


def test_pretraining_exchanges_features_and_the_other_stages_do_not(study) -> None:
    contracts = stages(study(transport="int8", bank={"size": 7}, parts=3))
    assert list(contracts) == ["pretraining", "fine_tuning", "evaluation"]
    exchange = contracts["pretraining"].exchange
    assert (exchange.width, exchange.most_rows, exchange.parts, exchange.transport) == (4, 7, 3, "int8")
    assert contracts["fine_tuning"].exchange is contracts["evaluation"].exchange is None


def test_switches_change_the_contract(study) -> None:
    assert stages(study(exchange=False))["pretraining"].exchange is None
    alone = stages(study(exchange=False, aggregation="none", starts=["personal", "scratch"]))["pretraining"]
    assert (alone.returns, alone.sent_in(1).within) == ("metrics", ())
    assert exchange_of(study(noise={"sigma": 0.1})).noise == 0.0
    assert [exchange_of(study(**changes)).most_received for changes in ({}, {"most_received": 9})] == [9 * 2048, 9]
    assert exchange_of(study(noise={"sigma": 0.1, "renormalise": False})).noise == 0.1


def test_fine_tuning_gets_the_encoder_without_the_projector(study) -> None:
    experiment = study()
    shared = initial_shared(experiment)
    sent = stages(experiment)["fine_tuning"].sent.of(shared)
    assert sent
    assert sorted(set(shared) - set(sent)) == [name for name in sorted(shared) if name.startswith("projector.")]


def test_the_shared_tensors_are_the_same_wherever_they_are_made_and_disturb_no_generator(study) -> None:
    experiment = study()
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, second = initial_shared(experiment), initial_shared(experiment)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = initial_shared(study(sections={"seed": 5}))
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_encoder_and_projector_of_the_published_size(study) -> None:
    """10.60 M and 0.69 M parameters: 42.4 and 2.8 MB (768 channels at the centre, a feature of 128)."""
    experiment = study(network={"features": [48, 96, 192, 384, 768], "norm": "batch"}, projector={"out": 128})
    shared = initial_shared(experiment)
    schema = Schema(shared)
    parameters = {name: tensor for name, tensor in shared.items() if "running" not in name}
    projector = {name: tensor for name, tensor in parameters.items() if name.startswith("projector.")}
    assert tensor_bytes(projector) == 4 * (768 * 768 + 768 + 768 * 128 + 128) == 2_756_096
    encoder = tensor_bytes(parameters) - tensor_bytes(projector)
    assert abs(encoder - 42.4e6) < 0.1e6
    assert schema.nbytes - encoder - tensor_bytes(projector) < 20_000, "running statistics"


def test_work_and_crops_for_progress_and_preflight(study) -> None:
    experiment = study()
    assert work(experiment)["pretraining"] == 2
    assert crops(experiment) == {"pretraining": 8}
