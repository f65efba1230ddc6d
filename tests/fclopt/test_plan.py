"""Contracts by mode and round, and the tensors that a study starts from."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.wire import Schema
from fedmedseg.fclopt.plan import crops, initial_shared, stages, work

PREFIXES = ("target.", "prediction.", "projector.", "predictor.", "conv_0.", "down_", "fine_tuned.")


def kinds(experiment: Experiment, number: int, *, up: bool) -> set[str]:
    contract = stages(experiment)["pretraining"]
    part = contract.returned_in(number) if up else contract.sent_in(number)
    return {name.split(".")[0] for name in Schema(initial_shared(experiment)).part(part).specs}


ONLINE = {"conv_0", "down_1", "down_2", "down_3", "down_4", "projector", "predictor"}


@pytest.mark.parametrize("mode", ["both", "ptnu", "ptnu_dp", "closed_form", "naive", "keep_local", "online"])
def test_the_online_network_travels_both_ways_in_every_round(mode: str, study: Callable[..., Experiment]) -> None:
    for number in range(5):
        for up in (True, False):
            assert kinds(study(mode=mode), number, up=up) >= ONLINE


def test_a_contract_says_by_round_what_goes_each_way(study: Callable[..., Experiment]) -> None:
    dp = study(20, mode="ptnu_dp", distance={"warm_up": 1, "every": 4})
    assert [kinds(dp, number, up=True) - ONLINE for number in range(5)] == [{"target"}, set(), set(), set(), {"target"}]
    assert [kinds(dp, number, up=False) - ONLINE for number in range(6)] == [
        set(), {"prediction"}, set(), set(), set(), {"prediction"},
    ]  # fmt: skip
    both = study(mode="both")
    assert [kinds(both, number, up=False) - ONLINE for number in (0, 1, 2)] == [set(), {"target"}, {"target"}]
    assert kinds(both, 0, up=True) - ONLINE == {"target"}
    ptnu = study(mode="ptnu")
    assert [kinds(ptnu, number, up=False) - ONLINE for number in (0, 1)] == [set(), {"prediction"}]
    for mode in ("closed_form", "naive", "keep_local", "online"):
        assert kinds(study(mode=mode), 3, up=True) | kinds(study(mode=mode), 3, up=False) == ONLINE


def test_only_predicting_modes_resend_and_tell_a_digest(study: Callable[..., Experiment]) -> None:
    for mode in ("both", "keep_local", "online"):
        contract = stages(study(mode=mode))["pretraining"]
        assert contract.extra is None
        assert not contract.held
    for mode in ("ptnu", "ptnu_dp", "closed_form", "naive"):
        contract = stages(study(mode=mode))["pretraining"]
        assert contract.held
        assert contract.extra is not None
        assert not contract.extra.holds("projector.first.weight")
        assert contract.extra.holds("target.conv_0.x")


def test_fine_tuning_gets_the_encoder_alone(study: Callable[..., Experiment]) -> None:
    experiment = study(mode="ptnu")
    contract = stages(experiment)["fine_tuning"]
    sent = Schema(initial_shared(experiment)).part(contract.sent_in(0)).specs
    assert {name.split(".")[0] for name in sent} == ONLINE - {"projector", "predictor"}


def test_the_start_is_the_same_wherever_it_is_made_and_touches_no_generator(study: Callable[..., Experiment]) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, other = initial_shared(study(mode="ptnu_dp")), initial_shared(study(mode="ptnu_dp"))
    assert torch.equal(before, torch.random.get_rng_state())
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(name.startswith(PREFIXES) for name in one)
    for name in one:
        if name.startswith("target."):
            assert torch.equal(one[name], one[name.removeprefix("target.")])
            assert one[name].data_ptr() != one[name.removeprefix("target.")].data_ptr()


def test_a_table_has_a_column_per_tensor_or_one(study: Callable[..., Experiment]) -> None:
    tensors = initial_shared(study(mode="ptnu_dp", distance={"ratio": "linear"}))
    count = sum(name.startswith("target.") for name in tensors)
    assert tensors["prediction.anchors"].shape == (3, 1 + count)
    assert initial_shared(study(mode="ptnu"))["prediction.distances"].shape == (count,)
    assert initial_shared(study(mode="ptnu", distance={"grain": "global"}))["prediction.distances"].shape == (1,)


def test_work_and_crops(study: Callable[..., Experiment]) -> None:
    assert work(study())["pretraining"] == 2
    assert crops(study()) == {"pretraining": 8}
