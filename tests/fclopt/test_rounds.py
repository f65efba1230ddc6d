"""Server and sites over several rounds: what travels, and that all hold the same target network, bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_context import FLContext

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.federation_settings import RobustSection
from fedmedseg.core.wire import Header
from fedmedseg.fclopt.distance_prediction import gaps, is_anchor
from fedmedseg.fclopt.network import TARGET, from_wire
from fedmedseg.fclopt.recursion import ANCHORS, DISTANCES, PREDICTION
from fedmedseg.fclopt.target_prediction import wide

PREDICTING = [
    {"mode": "ptnu"},
    {"mode": "ptnu", "distance": {"grain": "global"}},
    {"mode": "ptnu_dp", "distance": {"warm_up": 1, "every": 3}},
    {"mode": "ptnu_dp", "distance": {"warm_up": 1, "every": 3, "ratio": "ema"}},
    {"mode": "ptnu_dp", "distance": {"warm_up": 2, "every": 3, "ratio": "linear", "grain": "global"}},
    {"mode": "closed_form"},
    {"mode": "naive"},
]
SLOW = pytest.mark.slow
FEW = [PREDICTING[0], PREDICTING[4], {"mode": "closed_form"}, {"mode": "both"}, {"mode": "keep_local"}]
ALL = [*PREDICTING, {"mode": "both"}, {"mode": "keep_local"}, {"mode": "online"}]


def rest_slow(settings: list[dict[str, Any]], *fast: int) -> list[Any]:
    """Those at the places ``fast`` in every run, the others nightly: each is some seconds of processor time."""
    return [one if place in fast else pytest.param(one, marks=SLOW) for place, one in enumerate(settings)]


def targets(tensors: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in tensors if name.startswith(TARGET)}


def extras(tensors: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in tensors if name.startswith((TARGET, PREDICTION))}


@pytest.mark.parametrize("settings", rest_slow(PREDICTING, 0, 2), ids=str)
def test_server_and_sites_predict_the_same_bits_after_transport(
    settings: dict[str, Any], federation: Callable[..., Any]
) -> None:
    """Invariant 5; every process is a new one in every round, as on one thread of the simulator."""
    study = federation(5, **settings)
    for number in range(5):
        before = study.shared
        study.round(number)
        # round 0 starts from a copy of the online network
        server = from_wire(before)
        if number == 0:
            server = {name: before[name] for name in server}
        for site in study.sites:
            held = from_wire(study.replies[site].known)
            assert content_sha256(held) == content_sha256(server), (site, number)
        assert study.history[-1]["notes"]["target"]["held"] == study.sites
        assert study.behind == [] or study.behind == ()


@pytest.mark.parametrize("settings", rest_slow(ALL, 2, 7), ids=str)
def test_what_travels_in_which_round(settings: dict[str, Any], federation: Callable[..., Any]) -> None:
    study = federation(5, **settings)
    mode, distance = settings["mode"], settings.get("distance", {})
    for number in range(5):
        study.round(number)
        anchor = is_anchor(number, warm_up=distance.get("warm_up", 3), every=distance.get("every", 10))
        after_anchor = number > 0 and is_anchor(
            number - 1, warm_up=distance.get("warm_up", 3), every=distance.get("every", 10)
        )
        for site in study.sites:
            down, up = study.given[site], from_shareable(study.uploads[site]).data
            assert bool(targets(down)) == (mode == "both" and number > 0)
            assert bool(targets(up)) == (mode in ("both", "ptnu") or (mode == "ptnu_dp" and anchor))
            assert (DISTANCES in down) == (mode == "ptnu" and number > 0)
            assert (ANCHORS in down) == (mode == "ptnu_dp" and after_anchor)
            assert not {name for name in up if name.startswith(PREDICTION)}
            carries = mode not in ("both", "keep_local", "online")
            assert (study.uploads[site].get_header(Header.HELD) is not None) == carries


def test_an_upload_between_anchors_with_a_target_is_rejected(federation: Callable[..., Any], sent_by: Any) -> None:
    """Invariant 5: a non-anchor upload contains no target keys, and one that does is no reply."""
    study = federation(3, mode="ptnu_dp", distance={"warm_up": 1, "every": 3})
    study.round(0)
    aggregator, current = study.open(1)
    reply = study.train("site-1", current)
    data = dict(from_shareable(reply).data)
    name = next(iter(sorted(targets(study.shared))))
    data[name] = torch.zeros_like(study.shared[name])
    DXO(DataKind.WEIGHT_DIFF, data=data, meta=from_shareable(reply).meta).update_shareable(reply)
    assert not aggregator.accept(reply, sent_by("site-1"))
    assert aggregator.rejections["site-1"].startswith("UNKNOWN_TENSORS")


@pytest.mark.parametrize("settings", rest_slow([*FEW[:3], PREDICTING[3]], 1), ids=str)
def test_a_site_that_missed_rounds_is_sent_the_target_once(
    settings: dict[str, Any], federation: Callable[..., Any]
) -> None:
    """Invariant 5: resync heals a client that skipped a round."""
    study = federation(6, sites=3, **settings)
    study.round(0)
    study.round(1, taking_part=["site-1", "site-3"])
    study.round(2, taking_part=["site-1", "site-3"])
    study.round(3)
    assert list(study.behind) == ["site-2"]
    assert targets(study.given["site-2"]) == targets(study.shared)
    assert not targets(study.given["site-1"])
    assert not targets(study.given["site-3"])
    assert study.history[-1]["notes"]["target"]["held"] == study.sites
    study.round(4)
    assert list(study.behind) == []
    assert not targets(study.given["site-2"])
    assert study.history[-1]["notes"]["target"]["held"] == study.sites


def test_a_site_whose_memory_is_gone_says_so_and_is_mended_in_the_next_round(federation: Callable[..., Any]) -> None:
    study = federation(4, mode="ptnu")
    study.round(0)
    _, current = study.open(1)
    state = study.task("site-2", current).state
    for name in ("personal", "running_pretraining"):
        state.remove(name)
    study.round(1)
    assert study.replies["site-2"].metrics["memory_missing"] == 1.0
    notes = study.history[-1]["notes"]["target"]
    assert notes["held"] == ["site-1"]
    study.round(2)
    assert list(study.behind) == ["site-2"]
    assert "memory_missing" not in study.replies["site-2"].metrics
    assert study.history[-1]["notes"]["target"]["held"] == study.sites


def test_a_target_that_is_not_the_servers_moves_no_distance(federation: Callable[..., Any], sent_by: Any) -> None:
    """Its differences are to something else: the mean of targets is of those that started from the right one."""
    one, other = (federation(3, mode="ptnu", folder=name) for name in "ab")
    for study in (one, other):
        study.round(0)
        aggregator, current = study.open(1)
        reply = {site: study.train(site, current) for site in study.sites}
        if study is other:
            reply["site-2"].set_header(Header.HELD, "f" * 64)

        for site in study.sites:
            assert aggregator.accept(reply[site], sent_by(site))
        study.close(aggregator, 1)
    assert one.history[-1]["notes"]["target"]["held"] == ["site-1", "site-2"]
    assert other.history[-1]["notes"]["target"]["held"] == ["site-1"]
    online = [name for name in one.shared if not name.startswith((TARGET, PREDICTION))]
    assert all(torch.equal(one.shared[name], other.shared[name]) for name in online)
    assert not torch.equal(one.shared[DISTANCES], other.shared[DISTANCES])


def test_too_few_targets_for_the_studys_rule_are_told_and_teach_no_distance(
    federation: Callable[..., Any], sent_by: Any
) -> None:
    """A median of three sites, one of which started from another target: two do not make it hold."""
    study = federation(3, mode="ptnu", sites=3)
    study.round(0)
    aggregator, current = study.open(1)
    aggregator.open_round(dataclasses.replace(current, robust=RobustSection.model_validate({"rule": "median"})))
    before = study.shared[DISTANCES]
    for site in study.sites:
        reply = study.train(site, current)
        if site == "site-2":
            reply.set_header(Header.HELD, "f" * 64)
        assert aggregator.accept(reply, sent_by(site))
    study.close(aggregator, 1)
    notes = study.history[-1]["notes"]["target"]
    assert (notes["held"], notes["unused"]) == (["site-1", "site-3"], ["site-1", "site-3"])
    assert "error" not in notes
    assert before.shape == study.shared[DISTANCES].shape


@pytest.mark.parametrize("settings", rest_slow(FEW, 1), ids=str)
def test_a_server_that_lives_again_goes_on_to_the_same_bits(
    settings: dict[str, Any], federation: Callable[..., Any]
) -> None:
    """Killed in a round whose sites had already trained: the round is asked again from the checkpoint before it."""
    whole, broken = (federation(4, **settings, folder=name) for name in "ab")
    for number in range(4):
        whole.round(number)
    broken.round(0)
    broken.round(1)
    kept, history = dict(broken.shared), list(broken.history)
    _, current = broken.open(2)
    for site in broken.sites:
        broken.train(site, current)
    broken.shared, broken.history = kept, history
    broken.round(2)
    assert not [reply for reply in broken.replies.values() if "memory_missing" in reply.metrics]
    broken.round(3)
    assert content_sha256(broken.shared) == content_sha256(whole.shared)


def test_distances_put_the_predicted_target_as_far_from_the_online_network_as_the_true_one_is(
    federation: Callable[..., Any],
) -> None:
    study = federation(2, mode="ptnu")
    study.round(0)
    target, online = from_wire(study.shared), study.shared
    found = gaps({name: wide(tensor) for name, tensor in target.items()}, online, "tensor")
    wanted = study.shared[DISTANCES].tolist()
    # but where the scale was clipped
    scaled = [abs(one - other) <= 1e-4 * other for one, other in zip(found, wanted, strict=True)]
    assert sum(scaled) >= len(scaled) / 2


def test_prediction_errs_least_with_distances_and_most_naively(federation: Callable[..., Any]) -> None:
    """One step, as a share of how far the target moved, on the same round of the same study."""
    study = federation(1, mode="ptnu", local_steps=8, momentum=0.95)
    study.round(0)
    notes = study.history[-1]["notes"]["target"]
    assert notes["corrected_error"] <= notes["error"] < 0.5
    assert notes["error"] < notes["naive_error"]


def test_running_statistics_are_the_online_networks_and_never_predicted(federation: Callable[..., Any]) -> None:
    study = federation(2, mode="ptnu")
    assert not [name for name in targets(study.shared) if "running" in name]
    assert [name for name in study.shared if "running" in name]


@pytest.mark.parametrize("mode", ["keep_local", "online"])
def test_modes_without_a_shared_target_keep_nothing_of_it_at_the_server(
    mode: str, federation: Callable[..., Any]
) -> None:
    study = federation(2, mode=mode)
    study.round(0)
    aggregator = study.round(1)
    assert not extras(study.shared)
    assert aggregator.needs_plain == ""
    assert aggregator.replaced == {}
    known = from_wire(study.replies["site-1"].known)
    same = all(torch.equal(known[name], study.given["site-1"][name]) for name in known)
    assert same == (mode == "online")


def test_both_hands_on_the_mean_of_all_targets(federation: Callable[..., Any], sent_by: Any) -> None:
    study = federation(2, mode="both")
    aggregator, current = study.open(0)

    for site in study.sites:
        assert aggregator.accept(study.train(site, current), sent_by(site))
    weights = {"site-1": 3 / 7, "site-2": 4 / 7}
    study.close(aggregator, 0)
    for name, tensor in from_wire(study.shared).items():
        mean = sum(weights[site] * from_wire(study.replies[site].tensors)[name] for site in study.sites)
        assert torch.allclose(tensor, mean, atol=1e-5), name


def test_a_reply_without_the_digest_is_no_reply(federation: Callable[..., Any], sent_by: Any) -> None:
    study = federation(2, mode="closed_form")
    aggregator, current = study.open(0)
    reply = study.train("site-1", current)
    for wrong in (None, "x" * 65, "a/b", 3):
        reply.set_header(Header.HELD, wrong)
        assert not aggregator.accept(reply, sent_by("site-1"))
        assert aggregator.rejections["site-1"].startswith("SCHEMA")


def test_without_any_usable_target_the_prediction_stands(federation: Callable[..., Any], sent_by: Any) -> None:
    study = federation(3, mode="ptnu")
    aggregator, current = study.open(0)
    for site in study.sites:
        reply = study.train(site, current)
        reply.set_header(Header.HELD, "e" * 64)
        assert aggregator.accept(reply, sent_by(site))
    study.close(aggregator, 0)
    assert study.history[-1]["notes"]["target"]["scale"] == pytest.approx(1.0)
    aggregator.reset(FLContext())
    assert aggregator.replaced == {}
