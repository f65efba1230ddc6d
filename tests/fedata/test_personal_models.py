"""Personal models: who is whose neighbour, what each site is sent, and what pulls it there."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fedmedseg.core.averaging import weighted_mean
from fedmedseg.core.training import Aborted
from fedmedseg.fedata.objective import MaskedDistillationObjective
from fedmedseg.fedata.personal_models import moved, pair_weights, personal_models, proximal_term, update_cosines
from fedmedseg.fedata.plan import initial_shared


def tensors(*values: float) -> dict[str, torch.Tensor]:
    """Two tensors that hold ``values``: the first alone, the others together."""
    return {"u": torch.tensor(values[:1]), "v": torch.tensor(values[1:])}


def random_sites(names: str, seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: {"u": torch.randn(3, 4, generator=generator), "v": torch.randn(5, generator=generator)} for name in names
    }


def test_cosines_run_over_all_tensors_as_one_vector() -> None:
    """(3, 4, 0) and (0, 4, 3): 16 / 25. Per tensor it would be 0 for the first and 0.8 for the second."""
    table = update_cosines({"a": tensors(3.0, 4.0, 0.0), "b": tensors(0.0, 4.0, 3.0)})
    assert table["a"]["b"] == table["b"]["a"] == pytest.approx(0.64)
    assert table["a"]["a"] == table["b"]["b"] == 1.0


def test_cosines_agree_with_torch_and_know_no_length() -> None:
    sites = random_sites("abc")
    table = update_cosines(sites)
    flat = {site: torch.cat([given["u"].flatten(), given["v"]]) for site, given in sites.items()}
    for one in "abc":
        for other in "abc":
            expected = float(torch.cosine_similarity(flat[one], flat[other], dim=0))
            assert table[one][other] == pytest.approx(expected, abs=1e-6)
    sites["a"] = {name: 1000 * tensor for name, tensor in sites["a"].items()}
    assert update_cosines(sites)["a"]["b"] == pytest.approx(table["a"]["b"], abs=1e-6)


def test_a_site_that_did_not_move_is_alike_to_nobody_but_itself() -> None:
    table = update_cosines({"a": tensors(1.0, 0.0), "still": tensors(0.0, 0.0)})
    assert table["still"] == {"still": 1.0, "a": 0.0}


def test_shares_of_two_sites_by_hand() -> None:
    """Cosine 0.64, T = 0.1: exp(10) against exp(6.4)."""
    xi = pair_weights({"a": {"a": 1.0, "b": 0.64}, "b": {"a": 0.64, "b": 1.0}}, temperature=0.1)
    own = 1 / (1 + math.exp(-3.6))
    assert xi["a"] == pytest.approx({"a": own, "b": 1 - own})
    assert xi["b"] == pytest.approx({"b": own, "a": 1 - own})


def test_own_share_beside_an_orthogonal_and_beside_an_equal_site() -> None:
    orthogonal = pair_weights({"a": {"a": 1.0, "b": 0.0}}, temperature=0.1)
    assert 1 - orthogonal["a"]["a"] == pytest.approx(4.54e-5, rel=1e-3)
    assert pair_weights({"a": {"a": 1.0, "b": 1.0}}, temperature=0.1)["a"] == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1.0, 1e6])
def test_shares_are_non_negative_sum_to_one_and_never_favour_another_site(temperature: float) -> None:
    xi = pair_weights(update_cosines(random_sites("abcdef")), temperature=temperature)
    for site, row in xi.items():
        assert sorted(row) == list("abcdef")
        assert all(share >= 0 for share in row.values())
        assert sum(row.values()) == pytest.approx(1.0, abs=1e-12)
        assert max(row.values()) == row[site]


def test_temperature_goes_from_local_training_to_the_plain_mean() -> None:
    cosines = update_cosines(random_sites("abc"))
    assert pair_weights(cosines, temperature=1e-3)["a"]["a"] == pytest.approx(1.0)
    assert pair_weights(cosines, temperature=1e6)["a"] == pytest.approx(dict.fromkeys("abc", 1 / 3), abs=1e-5)
    assert pair_weights(cosines, temperature=0.1)["a"]["a"] > pair_weights(cosines, temperature=1.0)["a"]["a"]


def test_a_personal_model_by_hand() -> None:
    """Site a was sent 2 and moved by 1, b was sent 0 and moved by 4: u = 0.75 * 3 + 0.25 * 4 = 3.25."""
    shared = {"w": torch.tensor([1.0])}
    starts = {"a": {"w": torch.tensor([2.0])}, "b": {"w": torch.tensor([0.0])}}
    differences = {"a": {"w": torch.tensor([1.0])}, "b": {"w": torch.tensor([4.0])}}
    xi = {"a": {"a": 0.75, "b": 0.25}, "b": {"a": 0.0, "b": 1.0}}
    made = personal_models(shared, starts, differences, xi)
    assert float(made["a"]["w"]) == 3.25
    assert float(made["b"]["w"]) == 4.0
    assert float(shared["w"]) == 1.0


def test_identical_sites_get_what_fedavg_gives() -> None:
    shared = random_sites("s", seed=9)["s"]
    same = random_sites("x")["x"]
    differences = dict.fromkeys("abc", same)
    starts = dict.fromkeys("abc", shared)
    average = weighted_mean(differences, {"a": 0.2, "b": 0.5, "c": 0.3})
    made = personal_models(shared, starts, differences, pair_weights(update_cosines(differences), temperature=0.1))
    for site in "abc":
        for name in shared:
            torch.testing.assert_close(made[site][name], shared[name] + average[name])


def test_one_site_gets_its_own_model_back() -> None:
    sites = random_sites("sxy")
    shared, start, difference = sites["s"], sites["x"], sites["y"]
    xi = pair_weights(update_cosines({"a": difference}), temperature=0.1)
    made = personal_models(shared, {"a": start}, {"a": difference}, xi)
    for name in shared:
        torch.testing.assert_close(made["a"][name], start[name] + difference[name])


def test_the_mean_of_sites_that_started_from_the_shared_model_is_fedavg_to_the_bit() -> None:
    sites = random_sites("sab")
    shared, differences = sites["s"], {site: sites[site] for site in "ab"}
    found = moved(shared, dict.fromkeys("ab", shared), differences, {"a": 0.25, "b": 0.75})
    expected = weighted_mean(differences, {"a": 0.25, "b": 0.75})
    assert all(torch.equal(found[name], expected[name]) for name in shared)


def test_the_mean_is_of_models_where_sites_started_from_their_own() -> None:
    """Models 3 and 4 about a shared 1, a quarter and three quarters: 3.75 - 1."""
    starts = {"a": {"w": torch.tensor([2.0])}, "b": {"w": torch.tensor([0.0])}}
    differences = {"a": {"w": torch.tensor([1.0])}, "b": {"w": torch.tensor([4.0])}}
    found = moved({"w": torch.tensor([1.0])}, starts, differences, {"a": 0.25, "b": 0.75})
    assert float(found["w"]) == 2.75


def test_the_order_of_arrival_changes_no_bit() -> None:
    sites = random_sites("sabcd")
    shared = sites.pop("s")

    def all_models(order: str) -> dict[str, dict[str, torch.Tensor]]:
        differences = {site: sites[site] for site in order}
        xi = pair_weights(update_cosines(differences), temperature=0.1)
        return personal_models(shared, dict.fromkeys(order, shared), differences, xi)

    one = all_models("abcd")
    for order in ("dcba", "bdac"):
        other = all_models(order)
        assert all(torch.equal(one[site][name], other[site][name]) for site in one for name in shared)


def test_the_pull_is_half_the_weight_times_the_squared_distance() -> None:
    """(3, 4, 0) away: 0.4 / 2 * 25 = 5, where the norm itself, not squared, would give 1."""
    assert float(proximal_term(tensors(4.0, 5.0, 1.0), tensors(1.0, 1.0, 1.0), weight=0.4)) == pytest.approx(5.0)


def test_the_pulls_gradient_is_the_weight_times_the_gap() -> None:
    centre = random_sites("u")["u"]
    given = {name: tensor.clone().requires_grad_() for name, tensor in random_sites("w", seed=4)["w"].items()}
    proximal_term(given, centre, weight=0.3).backward()
    for name, tensor in given.items():
        torch.testing.assert_close(tensor.grad, 0.3 * (tensor.detach() - centre[name]))


def test_descending_the_pull_ends_at_the_centre() -> None:
    centre = random_sites("u")["u"]
    given = {name: tensor.clone().requires_grad_() for name, tensor in random_sites("w", seed=4)["w"].items()}
    optimiser = torch.optim.SGD(given.values(), lr=0.5)
    for _ in range(40):
        optimiser.zero_grad()
        proximal_term(given, centre, weight=1.0).backward()
        optimiser.step()
    for name, tensor in given.items():
        torch.testing.assert_close(tensor.detach(), centre[name])


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float((one[name] - other[name]).square().sum()) for name in other))


def test_a_site_stays_nearer_to_what_it_was_sent_the_more_prox_asks(study: Any, learner: Any, task: Any) -> None:
    """The pull starts at 0, grows with the distance, and stands in the reply beside the loss that it is part of."""
    gone: list[float] = []
    for prox in (0.0, 1.0, 100.0):
        experiment = study(server_aggregation="pair_att", pair={"prox": prox}, local_steps=8)
        shared = initial_shared(experiment)
        reply = learner(experiment).run(task(experiment, shared), shared)
        gone.append(distance(reply.tensors, shared))
        assert ("loss/prox" in reply.metrics) is (prox > 0)
    assert gone[0] > gone[1] > gone[2] > 0


def test_the_pull_of_a_step_is_that_of_the_model_before_it(study: Any, learner: Any) -> None:
    experiment = study(server_aggregation="pair_att", pair={"prox": 2.0}, client_mix="replace")
    shared = initial_shared(experiment)
    objective: MaskedDistillationObjective = learner(experiment).objective
    objective.stay_near(shared)
    objective.initialise(shared, None)
    for index in range(3):
        before = objective.network.shared()
        torch.manual_seed(index)
        figures = objective.step(index)
        assert figures["loss/prox"] == pytest.approx(distance(before, shared) ** 2, rel=1e-4)
        assert figures["loss"] > figures["loss/prox"]
        assert (figures["loss/prox"] > 0) is (index > 0)


def test_the_gradient_of_the_pull_reaches_the_student(study: Any, learner: Any) -> None:
    """Two equal steps, with and without it: the gradients before clipping differ by prox * (w - u)."""
    gradients: list[dict[str, torch.Tensor]] = []
    for prox in (0.0, 0.5):
        experiment = study(
            server_aggregation="pair_att", pair={"prox": prox}, optimizer={"learning_rate": 1e-3, "clip_norm": 1e9}
        )
        shared = initial_shared(experiment)
        objective: MaskedDistillationObjective = learner(experiment).objective
        objective.initialise(shared, None)
        objective.network.load_shared({name: tensor + 0.25 for name, tensor in shared.items()})
        objective.stay_near(shared)
        torch.manual_seed(3)
        objective.step(0)
        gradients.append({name: given.grad.clone() for name, given in objective.network.trained().items()})
    for name in gradients[0]:
        torch.testing.assert_close(
            gradients[1][name] - gradients[0][name], torch.full_like(gradients[0][name], 0.125), rtol=1e-3, atol=1e-4
        )


def test_the_pull_survives_a_stop_in_the_middle_of_a_round(
    study: Any, learner: Any, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new process that goes on from the checkpoint prepares nothing, and is still pulled."""
    experiment = study(server_aggregation="pair_att", pair={"prox": 5.0})
    shared = initial_shared(experiment)
    whole = learner(experiment).run(task(experiment, shared, site="site-1"), shared)
    done: list[int] = []
    plain = MaskedDistillationObjective.step
    monkeypatch.setattr(
        MaskedDistillationObjective, "step", lambda self, index: done.append(index) or plain(self, index)
    )
    given = task(experiment, shared, aborted=lambda: len(done) >= 2)
    given.state.remove("running_pretraining")
    with pytest.raises(Aborted):
        learner(experiment).run(given, shared)
    reply = learner(experiment).run(task(experiment, shared), shared)
    assert done == [0, 1, 2, 3]
    assert all(torch.equal(reply.tensors[name], whole.tensors[name]) for name in shared)
    assert reply.metrics == whole.metrics
