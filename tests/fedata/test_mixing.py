"""Mixing weights move by hand-checked steps, stay in [0, 1] and persist; only attention tensors are in scope."""

from __future__ import annotations

import pytest
import torch

from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.training import Aborted
from fedmedseg.fedata.grain import whole
from fedmedseg.fedata.mixing import learn_mixture, mean_weight, mix, next_weights, settled
from fedmedseg.fedata.mixing_config import ALASection
from fedmedseg.fedata.network import MaskedEncoder
from fedmedseg.fedata.plan import initial_shared


def _tensors(*values):
    return {"w": torch.tensor(values)}


def _parabola(at):
    """Loss sum (w - at)^2 and its gradient, whatever the batch."""

    def gradient(_batch, tensors):
        error = tensors["w"] - at
        return float((error**2).sum()), {"w": 2 * error}

    return gradient


def test_weights_choose_between_own_and_shared_exactly():
    local, shared = _tensors(0.1, 0.2, 0.3), _tensors(0.7, 0.7, 0.7)
    mixed = mix(local, shared, _tensors(0.0, 1.0, 0.5))["w"]
    assert mixed[0] == local["w"][0]
    assert mixed[1] == shared["w"][1]
    assert float(mixed[2]) == pytest.approx(0.5)


def test_one_step_by_hand():
    """W - eta g (w_g - w_c): 0.5 - 0.1 * 2 * (3 - 1) = 0.1; the others are clipped."""
    weights = next_weights(
        _tensors(0.5, 0.5, 0.5),
        _tensors(2.0, 9.0, -9.0),
        _tensors(1.0, 1.0, 1.0),
        _tensors(3.0, 3.0, 3.0),
        step=0.1,
    )["w"]
    assert weights.tolist() == pytest.approx([0.1, 0.0, 1.0])


def test_a_shared_weight_moves_by_the_sum_over_its_elements():
    """0.5 - 0.1 * (2 * 1 - 1 * 2 + 1 * 3) = 0.2, and all three elements are then mixed alike."""
    local, shared, grains = _tensors(0.0, 0.0, 0.0), _tensors(1.0, 2.0, 3.0), {"w": whole((3,))}
    weights = next_weights(_tensors(0.5), _tensors(2.0, -1.0, 1.0), local, shared, step=0.1, grains=grains)
    assert weights["w"].tolist() == pytest.approx([0.2])
    assert mix(local, shared, weights, grains)["w"].tolist() == pytest.approx([0.2, 0.4, 0.6])


@pytest.mark.parametrize("size", [1e-6, 1.0])
def test_a_normalised_gradient_moves_the_steepest_weight_by_the_step_whatever_its_size(size):
    """Products with w_g - w_c are 8, -4 and, in the other tensor, 2: of 8, steps of 0.2 are 0.2, 0.1 and 0.05."""
    gradients = {"a": size * torch.tensor([4.0, -4.0]), "b": size * torch.tensor([2.0])}
    local = {"a": torch.zeros(2), "b": torch.zeros(1)}
    shared = {"a": torch.tensor([2.0, 1.0]), "b": torch.ones(1)}
    weights = {"a": torch.tensor([0.5, 0.5]), "b": torch.tensor([0.5])}
    found = next_weights(weights, gradients, local, shared, step=0.2, normalise=True)
    assert found["a"].tolist() == pytest.approx([0.3, 0.6])
    assert found["b"].tolist() == pytest.approx([0.45])


def test_a_gradient_of_zeros_is_not_normalised():
    weights = next_weights(_tensors(0.5), _tensors(0.0), _tensors(0.0), _tensors(1.0), step=1.0, normalise=True)
    assert weights["w"].tolist() == [0.5]


def test_normalising_is_done_in_every_batch():
    """Gradients 2 (W - 0.25): each is divided by itself, so W falls by 0.2 in each of 3 passes of 1 batch."""
    section = ALASection(step=0.2, threshold=0.0, first_passes_max=3, normalise=True)
    found = learn_mixture(
        local=_tensors(0.0), shared=_tensors(1.0), weights=None, gradient=_parabola(0.25), batches=1, section=section
    )
    assert float(found.weights["w"]) == pytest.approx(0.4)


def test_one_weight_for_a_tensor_finds_the_best_of_its_line():
    """Own (0, 0), shared (1, 2), best (1, 0): along W the loss is (W - 1)^2 + 4 W^2, least at 0.2."""
    section = ALASection(step=0.05, threshold=0.0, first_passes_max=50)
    found = learn_mixture(
        local=_tensors(0.0, 0.0),
        shared=_tensors(1.0, 2.0),
        weights=None,
        gradient=_parabola(torch.tensor([1.0, 0.0])),
        batches=1,
        section=section,
        grains={"w": whole((2,))},
    )
    assert float(found.weights["w"]) == pytest.approx(0.2, abs=1e-6)
    assert found.tensors["w"].tolist() == pytest.approx([0.2, 0.4], abs=1e-6)
    assert found.figures["mixing/weight_mean"] == pytest.approx(0.2, abs=1e-6)


def test_the_mean_weight_counts_every_element():
    """One weight of 0.2 for three elements and 1.0 for one: (0.6 + 1) / 4."""
    weights = {"a": torch.tensor([0.2]), "b": torch.tensor([1.0])}
    assert mean_weight(weights, {"a": torch.zeros(3), "b": torch.zeros(1)}) == pytest.approx(0.4)


def test_the_first_use_descends_to_the_best_mixture():
    """Own 0, shared 1, best 0.25: from W = 1 the step 0.25 halves the distance to 0.25 in each pass."""
    section = ALASection(step=0.25, threshold=0.0, first_passes_max=3)
    found = learn_mixture(
        local=_tensors(0.0), shared=_tensors(1.0), weights=None, gradient=_parabola(0.25), batches=1, section=section
    )
    assert float(found.weights["w"]) == pytest.approx(0.25 + 0.75 / 8)
    assert float(found.tensors["w"]) == pytest.approx(0.25 + 0.75 / 8)
    assert found.figures["mixing/passes"] == 3
    assert found.figures["mixing/loss_first"] == pytest.approx(0.75**2)
    assert found.figures["mixing/loss_last"] == pytest.approx((0.75 / 4) ** 2)
    assert found.figures["mixing/weight_mean"] == pytest.approx(0.25 + 0.75 / 8)


def test_later_uses_are_one_pass_from_the_weights_of_the_last():
    section = ALASection(step=0.25, first_passes_max=10)
    found = learn_mixture(
        local=_tensors(0.0),
        shared=_tensors(1.0),
        weights=_tensors(0.5),
        gradient=_parabola(0.25),
        batches=1,
        section=section,
    )
    assert found.figures["mixing/passes"] == 1
    assert float(found.weights["w"]) == pytest.approx(0.375)


def test_the_first_use_ends_when_the_loss_settles():
    section = ALASection(step=1e-6, threshold=0.01, first_passes_max=10)
    found = learn_mixture(
        local=_tensors(0.0), shared=_tensors(1.0), weights=None, gradient=_parabola(0.25), batches=2, section=section
    )
    assert found.figures["mixing/passes"] == 2


@pytest.mark.parametrize(
    ("losses", "done"), [([1.0], False), ([1.0, 0.98], False), ([1.0, 0.995], True), ([2.0, 1.0, 1.005], True)]
)
def test_a_loss_is_settled_when_it_changes_by_less_than_a_hundredth(losses, done):
    assert settled(losses, 0.01) is done


@pytest.mark.parametrize("at", [-50.0, 50.0])
def test_weights_stay_between_zero_and_one(at):
    found = learn_mixture(
        local=_tensors(0.0, 1.0, 2.0),
        shared=_tensors(1.0, -1.0, 2.0),
        weights=None,
        gradient=_parabola(at),
        batches=3,
        section=ALASection(step=5.0),
    )
    assert float(found.weights["w"].min()) >= 0.0
    assert float(found.weights["w"].max()) <= 1.0


def test_every_pass_sees_the_same_batches():
    seen: list[int] = []

    def gradient(batch, tensors):
        seen.append(batch)
        return 1.0 / len(seen), {"w": torch.zeros(1)}

    section = ALASection(first_passes_max=3, threshold=0.0)
    learn_mixture(
        local=_tensors(0.0), shared=_tensors(1.0), weights=None, gradient=gradient, batches=2, section=section
    )
    assert seen == [0, 1] * 3


def test_an_abort_is_heard_between_batches():
    with pytest.raises(Aborted):
        learn_mixture(
            local=_tensors(0.0),
            shared=_tensors(1.0),
            weights=None,
            gradient=_parabola(0.0),
            batches=1,
            section=ALASection(),
            aborted=lambda: True,
        )


def test_a_loss_that_is_not_finite_ends_the_task():
    with pytest.raises(FedMedSegError) as caught:
        learn_mixture(
            local=_tensors(0.0),
            shared=_tensors(1.0),
            weights=None,
            gradient=_parabola(float("nan")),
            batches=1,
            section=ALASection(),
        )
    assert caught.value.reason is Reason.LOCAL_DIVERGED


def test_swins_scope_is_its_projections_and_position_biases(study):
    experiment = study("swin_unetr", (64, 64))
    names = initial_shared(experiment)
    scope = MaskedEncoder(experiment=experiment).attention()
    kinds = {name.split(".attn.")[1] for name in scope}
    assert kinds == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "relative_position_bias_table"}
    assert len(scope) == 5 * 5
    assert {name for name in names if ".attn." in name} == set(scope)


def test_the_vits_scope_is_its_projections(study):
    experiment = study("unetr", (32, 32))
    names = initial_shared(experiment)
    scope = MaskedEncoder(experiment=experiment).attention()
    assert {name.split(".attn.")[1] for name in scope} == {"qkv.weight", "out_proj.weight", "out_proj.bias"}
    assert len(scope) == 3 * 12
    assert {name for name in names if name.startswith("vit.") and ".attn." in name} == set(scope)


def test_attention_of_the_full_size_swin_is_1_77_million_parameters(settings):
    from fedmedseg.core.config import parse_experiment

    content = settings("swin_unetr", (96, 96, 96))
    content["network"] = {"name": "swin_unetr"}
    experiment = parse_experiment(content)
    tensors = initial_shared(experiment)
    scope = MaskedEncoder(experiment=experiment).attention()
    assert sum(tensors[name].numel() for name in scope) == pytest.approx(1.77e6, rel=0.005)
    assert sum(tensor.numel() for tensor in tensors.values()) == 5_696_562 + 48 + 296_448
