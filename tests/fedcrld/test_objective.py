"""One site's steps: which terms a study asks for, what each switch changes, and that a killed training goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.fedcrld.objective import RelocalizationObjective, one_hot, weighted_terms

Make = Callable[..., RelocalizationObjective]


def after(made: RelocalizationObjective, steps: int = 2) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The client's weights and the last figures after a few seeded steps."""
    figures: dict[str, float] = {}
    for index in range(steps):
        torch.manual_seed(10 + index)
        figures = dict(made.step(index))
    return {name: tensor.clone() for name, tensor in made.network.state_dict().items()}, figures


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_loss_is_the_sum_of_its_terms(objective: Make) -> None:
    _, figures = after(objective())
    terms = {name: value for name, value in figures.items() if name.startswith("loss/") and name != "loss/bank"}
    assert set(terms) == {f"loss/{n}" for n in ("dice", "cross_entropy", "contrast", "distillation", "history")}
    assert figures["loss"] == pytest.approx(sum(terms.values()), rel=1e-5)


def test_the_same_seeds_give_the_same_weights(objective: Make) -> None:
    assert same(after(objective())[0], after(objective())[0])


@pytest.mark.parametrize(
    ("switch", "term"),
    [
        ({"loss": {"contrast": "off"}}, "contrast"),
        ({"loss": {"distillation_weight": 0.0}}, "distillation"),
        ({"loss": {"history_weight": 0.0}}, "history"),
    ],
)
def test_a_term_that_is_switched_off_is_gone_and_the_weights_are_others(
    objective: Make, switch: dict[str, Any], term: str
) -> None:
    # the second step: at the first, bank and client are one
    without, figures = after(objective(**switch))
    assert f"loss/{term}" not in figures
    assert not same(without, after(objective())[0])


@pytest.mark.parametrize(
    "switch",
    [
        {"loss": {"form": "published"}},
        {"loss": {"contrast": "moon"}},
        {"loss": {"contrast": "moon", "temperature": 0.1}},
        {"loss": {"contrast_weight": 0.5}},
        {"loss": {"distillation_weight": 0.4}},
        {"loss": {"history_weight": 2.0}},
        {"bank": {"momentum": 0.9}},
        {"bank": {"learning_rate": 0.0}},
        {"optimizer": {"learning_rate": 1e-6}},
        {"optimizer": {"weight_decay": 0.1}},
        {"optimizer": {"betas": [0.5, 0.9]}},
    ],
)
def test_every_other_switch_changes_the_weights(objective: Make, switch: dict[str, Any]) -> None:
    # the temperature is one of moon's: it is compared with moon at the default
    base = {"loss": {"contrast": "moon"}} if "temperature" in switch.get("loss", {}) else {}
    assert not same(after(objective(**switch))[0], after(objective(**base))[0])


def test_without_terms_that_look_at_it_there_is_no_bank(objective: Make) -> None:
    made = objective(loss={"distillation_weight": 0.0, "history_weight": 0.0})
    assert made.bank is None
    _, figures = after(made)
    assert "loss/bank" not in figures
    assert made.memory()["bank"] is None


def test_at_the_first_step_bank_and_client_are_one_and_history_is_zero(objective: Make) -> None:
    _, first = after(objective(), steps=1)
    assert first["loss/history"] == pytest.approx(0.0, abs=1e-6)
    assert after(objective())[1]["loss/history"] > 0


def test_terms_carry_their_weights(objective: Make) -> None:
    one, other = objective(), objective(loss={"distillation_weight": 0.4, "contrast_weight": 3.0})
    images, labels = torch.randn(1, 1, 16, 16, 2), torch.zeros(1, 1, 16, 16, 2, dtype=torch.int64)
    outputs, target = one.network.outputs(images), one_hot(labels, 4)
    plain = weighted_terms(one.section.loss, outputs, target, outputs)
    heavy = weighted_terms(other.section.loss, outputs, target, outputs)
    torch.testing.assert_close(heavy["distillation"], 2 * plain["distillation"])
    torch.testing.assert_close(heavy["contrast"], 3 * plain["contrast"])


def test_an_absent_class_has_a_channel_too() -> None:
    labels = torch.tensor([[[[[0, 2]]]]])
    hot = one_hot(labels, 4)
    assert hot.shape == (1, 4, 1, 1, 2)
    assert hot.sum(dim=(0, 2, 3, 4)).tolist() == [1.0, 0.0, 1.0, 0.0]


def test_a_training_that_goes_on_from_its_checkpoint_ends_with_the_same_bits(objective: Make) -> None:
    whole, broken, later = objective(), objective(), objective()
    ended, _ = after(whole, steps=4)
    after(broken, steps=2)
    later.restore(broken.state())
    for index in (2, 3):
        torch.manual_seed(10 + index)
        later.step(index)
    assert same(ended, later.network.state_dict())
    assert whole.bank is not None
    assert later.bank is not None
    assert same(whole.bank.network.state_dict(), later.bank.network.state_dict())


def test_the_bank_is_part_of_the_checkpoint(objective: Make) -> None:
    """Without its bank the same continuation ends elsewhere."""
    broken, later = objective(), objective()
    after(broken, steps=2)
    tree = broken.state()
    tree["bank"] = later.state()["bank"]
    later.restore(tree)
    ended, _ = after(objective(), steps=4)
    for index in (2, 3):
        torch.manual_seed(10 + index)
        later.step(index)
    assert not same(ended, later.network.state_dict())


def test_a_new_round_lays_the_servers_encoder_over_what_is_remembered(objective: Make) -> None:
    made = objective()
    after(made)
    memory = made.memory()
    assert not any(name.startswith("globalnet.") for name in memory["tensors"])
    shared = {name: torch.full_like(tensor, 0.5) for name, tensor in made.trained().items()}
    again = objective()
    again.start(shared, memory)
    tensors = again.network.state_dict()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, shared[name] if name in shared else memory["tensors"][name]), name
    assert again.bank is not None
    assert same(again.bank.network.state_dict(), memory["bank"]), "the bank keeps an encoder of its own"


def test_without_memory_the_bank_is_the_client_with_the_servers_encoder(objective: Make) -> None:
    made = objective()
    shared = {name: tensor + 0.1 for name, tensor in made.trained().items()}
    made.start(shared, None)
    assert made.bank is not None
    assert same(made.network.state_dict(), made.bank.network.state_dict())


def test_a_loss_that_is_no_number_is_not_taken_in(objective: Make) -> None:
    made = objective()
    with torch.no_grad():
        made.network.output.bias.fill_(float("nan"))
    before = {name: tensor.clone() for name, tensor in made.network.state_dict().items() if name != "output.bias"}
    figures = made.step(0)
    assert figures["loss"] != figures["loss"]
    assert same(before, made.network.state_dict())


def test_a_gradient_that_is_no_number_is_refused(objective: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = objective()
    parameter = next(iter(made.network.parameters()))
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: tensor.clone() for name, tensor in made.network.state_dict().items()}
    with pytest.raises(FedMedSegError) as caught:
        made.step(0)
    assert caught.value.reason == Reason.LOCAL_DIVERGED
    assert same(before, made.network.state_dict())
