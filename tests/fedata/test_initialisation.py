"""Where the tensors of a new round come from, strategy by strategy, and what each must remember for it."""

from __future__ import annotations

import pytest
import torch

from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.training import Aborted
from fedmedseg.fedata.initialisation import STRATEGIES, make_initialisation
from fedmedseg.fedata.network import MaskedEncoder
from fedmedseg.fedata.plan import initial_shared

ALONE = {"server_aggregation": "none", "starts": ["personal"]}
SETTINGS = [{"client_mix": name} for name in STRATEGIES] + [ALONE]
NETWORKS = [("swin_unetr", (64, 64)), ("unetr", (32, 32))]


@pytest.fixture
def begun(study, moved):
    """begun("unetr", (32, 32), client_mix=...): a strategy, the server's tensors and the site's own."""

    def make(network="unetr", crop=(32, 32), **fedata):
        experiment = study(network, crop, **fedata)
        shared = initial_shared(experiment)
        encoder = MaskedEncoder(experiment=experiment)
        return make_initialisation(experiment.wing, encoder, volumes=4), shared, moved(shared, seed=3)

    return make


def _towards(own, network):
    """A loss that is least where every tensor is the site's own."""

    def loss(volumes, rng, masks):
        return sum(((tensor - own[name]) ** 2).sum() for name, tensor in network.trained().items())

    return loss


def _no_loss(*_):
    raise AssertionError("this strategy learns nothing")


def _start(strategy, shared, own, remembered=None, loss=None):
    return strategy.start(shared, own, remembered, loss=loss or _towards(own, strategy.network), aborted=lambda: False)


def _equal(one, other, names):
    return all(torch.equal(one[name], other[name]) for name in names)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_sites_first_round_is_the_servers_whatever_the_strategy(begun, settings):
    strategy, shared, _ = begun(**settings)
    strategy.first(shared)
    assert _equal(strategy.network.shared(), shared, shared)


def test_replace_takes_the_servers_tensors_and_a_site_alone_its_own(begun):
    for settings, wanted in (({"client_mix": "replace"}, 0), (ALONE, 1)):
        strategy, *sources = begun(**settings)
        assert _start(strategy, *sources, loss=_no_loss) == {}
        assert _equal(strategy.network.shared(), sources[wanted], sources[0])
        assert strategy.memory() is None


@pytest.mark.parametrize(("network", "crop"), NETWORKS)
def test_attention_that_stays_local_is_never_overwritten(begun, network, crop):
    strategy, shared, own = begun(network, crop, client_mix="keep_attn_local")
    assert _start(strategy, shared, own, loss=_no_loss) == {}
    student, kept = strategy.network.shared(), set(strategy.network.attention())
    assert kept
    assert _equal(student, own, kept)
    assert _equal(student, shared, shared.keys() - kept)


@pytest.mark.parametrize(("network", "crop"), NETWORKS)
@pytest.mark.parametrize("mixed", ["attention", "last", "all"])
def test_the_learned_mixture_reaches_its_scope_and_nothing_else(begun, network, crop, mixed):
    """Any gradient times this step drives W to 0, so that what is in scope becomes the site's own."""
    settings = {"client_mix": "ala_all" if mixed == "all" else "ala_attn"}
    ala = {"step": 1e9, **({"last_stage": True} if mixed == "last" else {})}
    strategy, shared, own = begun(network, crop, **settings, ala=ala)
    _start(strategy, shared, own)
    student = strategy.network.shared()
    last = {name for name in shared if name.startswith(("swinViT.layers4.0.blocks.", "vit.blocks.11."))}
    attention = {name for name in shared if name.startswith(("swinViT.", "vit.")) and ".attn." in name}
    scope = {"attention": attention, "last": attention | last, "all": set(shared)}[mixed]
    assert last - attention
    assert set(strategy.memory()) == scope
    for name in shared:
        source = own if name in scope else shared
        torch.testing.assert_close(student[name], source[name], msg=name)


@pytest.mark.parametrize("granularity", ["element", "tensor", "head"])
def test_weights_of_every_granularity_survive_to_the_next_round(begun, granularity):
    strategy, shared, own = begun(ala={"step": 1e-3, "granularity": granularity, "first_passes_max": 2})
    figures = _start(strategy, shared, own)
    name = next(name for name in strategy.network.attention() if name.endswith("qkv.weight"))
    weights = strategy.memory()[name]
    assert tuple(weights.shape) == {"element": (72, 24), "tensor": (1, 1), "head": (1, 2, 1, 1)}[granularity]
    assert 0.0 < float(weights.min()) < 1.0
    assert figures["mixing/passes"] == 2
    remembered = strategy.memory()
    strategy.begin()
    assert strategy.memory() is None
    later = _start(strategy, shared, own, remembered)
    assert later["mixing/passes"] == 1
    assert later["mixing/weight_mean"] < figures["mixing/weight_mean"]


@pytest.mark.parametrize("settings", SETTINGS)
def test_only_learning_draws_and_only_where_the_two_models_differ(begun, settings):
    strategy, shared, own = begun(**settings)
    remembered = {"factor": None, "change": 1.0} if settings.get("client_mix") == "fedema" else None
    torch.manual_seed(4)
    before = torch.get_rng_state()
    _start(strategy, shared, shared, remembered, loss=_no_loss)
    assert torch.equal(torch.get_rng_state(), before)
    _start(strategy, shared, own, remembered)
    assert torch.equal(torch.get_rng_state(), before) is (not settings.get("client_mix", "").startswith("ala_"))


def test_a_gradient_that_is_not_finite_ends_the_task_though_the_loss_is_finite(begun):
    strategy, shared, own = begun()

    def loss(volumes, rng, masks):
        return sum((tensor - own[name]).abs().sqrt().sum() for name, tensor in strategy.network.trained().items())

    # the square root's slope at 0 is infinite, and 0 times it is not a number
    partly = {name: tensor.clone() for name, tensor in shared.items()}
    name = strategy.network.attention()[0]
    partly[name].flatten()[0] = own[name].flatten()[0]
    with pytest.raises(FedMedSegError) as caught:
        _start(strategy, partly, own, loss=loss)
    assert caught.value.reason is Reason.LOCAL_DIVERGED


def test_learning_hears_an_abort(begun):
    strategy, shared, own = begun()
    with pytest.raises(Aborted):
        strategy.start(shared, own, None, loss=_towards(own, strategy.network), aborted=lambda: True)


def test_fedema_mixes_all_tensors_in_the_proportion_of_the_last_change(begun):
    """tau 0.6 at the first mixing; lambda = 0.6 / 2 = 0.3; a change of 1 then keeps 0.3, one of 5 everything."""
    strategy, shared, own = begun(client_mix="fedema", fedema={"tau": 0.6})
    figures = _start(strategy, shared, own, {"factor": None, "change": 2.0}, loss=_no_loss)
    assert figures == pytest.approx({"mixing/change": 2.0, "mixing/mu": 0.6, "mixing/lambda": 0.3})
    for change, mu in ((1.0, 0.3), (5.0, 1.0)):
        factor = strategy.memory()["factor"]
        strategy.begin()
        figures = _start(strategy, shared, own, {"factor": factor, "change": change}, loss=_no_loss)
        assert figures == pytest.approx({"mixing/change": change, "mixing/mu": mu, "mixing/lambda": 0.3})
        student = strategy.network.shared()
        for name in shared:
            torch.testing.assert_close(student[name], (1 - mu) * shared[name] + mu * own[name], msg=name)


def test_fedema_measures_from_where_the_round_started_even_after_a_kill(begun):
    strategy, shared, own = begun(client_mix="fedema")
    _start(strategy, shared, own, {"factor": None, "change": 1.0})
    start = strategy.network.shared()
    state = strategy.state()
    ended = {name: tensor + 2.0 / tensor.numel() ** 0.5 for name, tensor in start.items()}
    strategy.network.load_shared(ended)
    # every tensor moved by 2 / sqrt(n) in each of its n elements: a distance of 2 each
    assert strategy.memory()["change"] == pytest.approx(2.0, rel=1e-3)
    strategy.begin()
    strategy.restore(state)
    assert strategy.memory() == {"factor": pytest.approx(0.7), "change": pytest.approx(2.0, rel=1e-3)}


def test_fedema_sets_its_factor_in_a_later_round_where_the_first_changed_nothing(begun):
    strategy, shared, own = begun(client_mix="fedema")
    assert _start(strategy, shared, own, {"factor": None, "change": 0.0}) == {"mixing/change": 0.0, "mixing/mu": 0.0}
    assert _equal(strategy.network.shared(), shared, shared)
    figures = _start(strategy, shared, own, {"factor": strategy.memory()["factor"], "change": 0.5})
    assert figures["mixing/mu"] == pytest.approx(0.7)
