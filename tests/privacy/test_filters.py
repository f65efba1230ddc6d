"""The filters where FLARE calls them: its client runner, its privacy manager, one scripted reply after the other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.fl_constant import FilterKey, FLContextKey, ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply

from fedmedseg.core import audit, large_tensors
from fedmedseg.core.aggregator import SharedKeysAggregator
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.question import Round
from fedmedseg.core.scopes import SCOPES, privacy_policy
from fedmedseg.core.wire import Header, Meta, Schema
from fedmedseg.privacy import filters
from fedmedseg.privacy.clipping import l2_norm
from fedmedseg.privacy.ledger import LEDGER, read_ledger

Kit = Any
Make = Callable[..., Shareable]
MARKER = "PATIENT-4711"
NOISE = {"multiplier": 2.0, "epsilon": 1000.0, "delta": 1e-5}


def meta(sent: Shareable) -> dict[str, Any]:
    return dict(from_shareable(sent).meta)


def refused(sent: Shareable, reason: str) -> None:
    """Nothing but a code and a reason: no tensor, no figure, no marker."""
    assert sent.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert sent.get_header(Header.REASON) == reason
    assert set(sent) == {ReservedHeaderKey.HEADERS}
    assert MARKER not in repr(sent)


def passed(sent: Shareable) -> dict[str, torch.Tensor]:
    assert sent.get_return_code() == ReturnCode.OK, sent.get_header(Header.REASON)
    return dict(from_shareable(sent).data)


def test_an_honest_reply_passes_whole(kit: Kit, reply: Make) -> None:
    given = reply(metrics={"loss": 0.5, "set_aside": 0})
    tensors = dict(given["DXO"]["data"])
    sent = kit.run(given)
    received = passed(sent)
    assert sorted(received) == ["a", "b"]
    assert all(torch.equal(received[name], tensors[name]) for name in tensors)
    assert meta(sent) == {
        Meta.EXAMPLES: 9,
        Meta.STEPS: 3,
        Meta.TRAIN_SECONDS: 0.5,
        Meta.METRICS: {"loss": 0.5, "set_aside": 0.0},
    }


def test_without_a_policy_flare_would_send_whatever_comes(kit: Kit, reply: Make) -> None:
    """The reason why an executor insists on our filter: stock behaviour, kept in sight."""
    (kit.root / "local" / "privacy.json").unlink()
    assert "stowaway" in passed(kit.run(reply({"stowaway": torch.ones(1)})))


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a": torch.ones(2), "b": torch.ones(2, 2), MARKER: torch.ones(1)}, "PRIVACY: UNKNOWN_TENSORS"),
        ({"a": torch.ones(2), MARKER: torch.ones(2, 2)}, "PRIVACY: UNKNOWN_TENSORS"),
        ({"a": torch.ones(2)}, "PRIVACY: MISSING_TENSORS"),
        ({"a": torch.ones(3), "b": torch.ones(2, 2)}, "PRIVACY: TENSOR_SHAPE"),
        ({"a": torch.ones(2).double(), "b": torch.ones(2, 2)}, "PRIVACY: TENSOR_TYPE"),
        ({"a": torch.tensor([1.0, math.nan]), "b": torch.ones(2, 2)}, "PRIVACY: NOT_FINITE"),
        ({}, "PRIVACY: EMPTY"),
    ],
)
def test_tensors_that_are_not_exactly_those_declared_do_not_leave(
    kit: Kit, reply: Make, tensors: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    refused(kit.run(reply(tensors)), f"{reason}: tensors from this site")
    assert MARKER not in caplog.text


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": np.ones(2, np.float32), "b": torch.ones(2, 2)},
        {"a": torch.ones(2, dtype=torch.int64), "b": torch.ones(2, 2)},
        {"a": MARKER, "b": torch.ones(2, 2)},
        {1: torch.ones(2)},
        [torch.ones(2)],
        MARKER,
        None,
    ],
)
def test_what_is_no_tensor_does_not_leave(kit: Kit, reply: Make, tensors: Any) -> None:
    given = reply()
    given["DXO"]["data"] = tensors
    refused(kit.run(given), "PRIVACY: something else than floating-point tensors by name")


def test_tensors_of_a_stage_of_figures_do_not_leave(kit: Kit, reply: Make) -> None:
    refused(
        kit.run(reply({"a": torch.ones(2)}, stage="testing"), "testing"),
        "PRIVACY: tensors in a stage that returns metrics",
    )


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({MARKER: 1.0}, "PRIVACY: SCHEMA: metric"),
        ({"loss": 0.5, "loss/inner": 0.5}, "PRIVACY: SCHEMA: metric"),
        ({"loss": MARKER}, "PRIVACY: SCHEMA: metric loss"),
        ({"loss": math.nan}, "PRIVACY: SCHEMA: metric loss"),
        ({1: 1.0}, "PRIVACY: SCHEMA: metric"),
        (MARKER, "PRIVACY: undeclared or missing fields"),
    ],
)
def test_an_undeclared_metric_blocks_the_reply(
    kit: Kit, reply: Make, metrics: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    refused(kit.run(reply(metrics=metrics)), reason)
    assert MARKER not in caplog.text


def test_a_metric_that_the_site_keeps_is_left_out(kit: Kit, reply: Make) -> None:
    kit.site(privacy={"min_count": 0, "metrics": ["set_*"]})
    sent = kit.run(reply(metrics={"loss": 0.5, "set_aside": 3}))
    assert meta(sent)[Meta.METRICS] == {"set_aside": 3.0}
    kit.site(privacy={"min_count": 0, "metrics": []})
    sent = kit.run(reply(metrics={"loss": 0.5, "set_aside": 3}))
    assert meta(sent)[Meta.METRICS] == {}
    assert len(passed(sent)) == 2


def spoiled(given: Shareable, where: str) -> Shareable:
    if where == "part":
        given["notes"] = MARKER
    elif where == "header":
        given.set_header("notes", MARKER)
    elif where == "cookie":
        given.add_cookie("notes", MARKER)
    elif where == "meta":
        given["DXO"]["meta"]["notes"] = MARKER
    elif where == "body":
        given["DXO"]["notes"] = MARKER
    elif where == "kind":
        given["DXO"]["kind"] = DataKind.WEIGHTS
    elif where == "collection":
        inner = DXO(DataKind.WEIGHT_DIFF, data=given["DXO"]["data"], meta=given["DXO"]["meta"])
        given["DXO"] = DXO(DataKind.COLLECTION, data={MARKER: inner}).to_dict()
    elif where == "empty":
        del given["DXO"]
    elif where == "bytes":
        given["DXO"] = MARKER.encode()
    elif where == "missing":
        del given["DXO"]["meta"][Meta.STEPS]
    return given


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("part", "an undeclared part of the reply"),
        ("body", "an undeclared part of the reply"),
        ("header", "an undeclared header"),
        ("cookie", "an undeclared header"),
        ("meta", "undeclared or missing fields"),
        ("missing", "undeclared or missing fields"),
        ("kind", "another kind of data than differences"),
        ("collection", "another kind of data than differences"),
        ("empty", "a reply without a data object"),
        ("bytes", "a reply without a data object"),
    ],
)
def test_an_undeclared_part_of_a_reply_blocks_it(
    kit: Kit, reply: Make, where: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    refused(kit.run(spoiled(reply(), where)), f"PRIVACY: {reason}")
    assert MARKER not in caplog.text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"headers": {Header.STAGE: "testing"}}, "a reply to another task"),
        ({"headers": {Header.ROUND: True}}, "a reply to another task"),
        ({"headers": {Header.ROUND: "0"}}, "a reply to another task"),
        ({"headers": {Header.RUN: "patients/smith"}}, "header run"),
        ({"headers": {Header.NONCE: "a" * 65}}, "header nonce"),
        ({"headers": {Header.SCHEMA: "e" * 64}}, "another schema than that of this site"),
        ({"examples": 2.5}, "a count that is no whole number"),
        ({"examples": MARKER}, "a count that is no whole number"),
        ({"examples": -1}, "a count that is no whole number"),
        ({Meta.STEPS: None}, "a count that is no whole number"),
        ({Meta.TRAIN_SECONDS: MARKER}, "a training time that is no number of seconds"),
        ({Meta.TRAIN_SECONDS: math.inf}, "a training time that is no number of seconds"),
    ],
)
def test_a_field_of_another_form_blocks_the_reply(kit: Kit, reply: Make, change: dict[str, Any], reason: str) -> None:
    refused(kit.run(reply(**change)), f"PRIVACY: {reason}")


def test_a_failed_reply_leaves_with_code_and_reason_alone(kit: Kit, reply: Make) -> None:
    """FLARE's own DXOFilter hands such a reply on as it is."""
    given = reply()
    given.set_return_code(ReturnCode.EXECUTION_EXCEPTION)
    given.set_header(Header.REASON, "DISK: disk full")
    given.set_header("notes", MARKER)
    sent = kit.run(given)
    assert sent.get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert sent.get_header(Header.REASON) == "DISK: disk full"
    assert set(sent) == {ReservedHeaderKey.HEADERS}
    assert MARKER not in repr(sent)


@pytest.mark.parametrize(
    "reason", [MARKER, f"DATA: data/{MARKER}.nii", "DATA: 'quoted'", "OURS: x", 7, "DATA: " + "x" * 200, "DATA:\nx: y"]
)
def test_a_reason_that_is_not_in_our_form_stays(kit: Kit, reason: Any) -> None:
    for given, header in ((make_reply(ReturnCode.EXECUTION_EXCEPTION), Header.REASON), (Shareable(), Header.DECLINED)):
        given.set_header(header, reason)
        assert kit.run(given).get_header(header) == "PRIVACY: the reason does not leave this site"


def test_a_site_that_declines_says_so_and_no_more(kit: Kit, reply: Make) -> None:
    given = reply()
    given.set_header(Header.DECLINED, "NO_CASES: section unlabeled")
    sent = kit.run(given)
    assert sent.get_return_code() == ReturnCode.OK
    assert sent.get_header(Header.DECLINED) == "NO_CASES: section unlabeled"
    assert set(sent) == {ReservedHeaderKey.HEADERS}


def test_an_unknown_return_code_is_no_way_out(kit: Kit) -> None:
    refused(kit.run(make_reply(MARKER)), "PRIVACY: an unknown return code")


def test_small_counts_stay_and_sites_weigh_alike(kit: Kit, reply: Make, current: Callable[..., Round]) -> None:
    kit.site(privacy={"min_count": 10})
    sent = kit.run(reply(metrics={"loss": 0.5, "set_aside": 12}, examples=9))
    assert meta(sent)[Meta.EXAMPLES] is None
    assert meta(sent)[Meta.METRICS] == {}, "a loss over nine cases stays with their number"
    large = kit.run(reply(metrics={"loss": 0.5, "set_aside": 3}, examples=90))
    assert meta(large)[Meta.EXAMPLES] == 90
    assert meta(large)[Meta.METRICS] == {"loss": 0.5}
    aggregator = served(current(), {"site-1": sent, "site-2": large})
    aggregator.aggregate(FLContext())
    assert aggregator.weights == {"site-1": 0.5, "site-2": 0.5}
    assert aggregator.notes["weighting"] == ["equal weights: site-1 suppressed the count"]


def test_the_default_threshold_is_five(kit: Kit, reply: Make) -> None:
    kit.site(privacy={})
    assert meta(kit.run(reply(examples=4)))[Meta.EXAMPLES] is None
    assert meta(kit.run(reply(examples=5)))[Meta.EXAMPLES] == 5


def test_scores_of_few_test_cases_stay(kit: Kit, reply: Make) -> None:
    kit.site(privacy={"min_count": 5})
    scores = {"dice/left": 0.9, "failures/left": 1, "cases": 4}
    assert meta(kit.run(reply(stage="testing", metrics=scores, examples=4), "testing"))[Meta.METRICS] == {}
    scores = {"dice/left": 0.9, "failures/left": 1, "cases": 6}
    sent = kit.run(reply(stage="testing", metrics=scores, examples=6), "testing")
    assert meta(sent)[Meta.METRICS] == {"dice/left": 0.9, "cases": 6.0}


def test_differences_are_clipped_over_all_tensors(kit: Kit, reply: Make) -> None:
    """Six ones have norm 2.449; to norm 1 each becomes 0.408."""
    kit.site(privacy={"clip_norm": 1.0})
    received = passed(kit.run(reply()))
    assert torch.allclose(received["b"], torch.full((2, 2), 1 / math.sqrt(6)))
    assert l2_norm(received) == pytest.approx(1.0, abs=1e-6)
    assert not (kit.state / LEDGER).exists(), "clipping alone promises nothing, so nothing is accounted"
    kit.site(privacy={"clip_norm": 3.0})
    assert torch.equal(passed(kit.run(reply()))["a"], torch.ones(2))


def test_noise_is_added_under_the_bound_and_entered(
    kit: Kit, reply: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kit.site(privacy={"clip_norm": 1.0, "noise": NOISE})
    monkeypatch.setattr("fedmedseg.privacy.clipping.secure_normal", np.ones)
    received = passed(kit.run(reply(metrics={"loss": 0.5})))
    # clipped to 0.408, then 2.0 x 1.0 x the scripted 1
    assert torch.allclose(received["a"], torch.full((2,), 1 / math.sqrt(6) + 2.0))
    assert read_ledger(kit.state / LEDGER).releases == 1
    assert "release 1 of this site, epsilon 4.377 of 1000 at delta 1e-05; 1 figure(s) leave outside" in caplog.text


def test_what_a_site_leaves_out_for_not_having_moved_comes_back_under_noise(
    kit: Kit, reply: Make, monkeypatch: pytest.MonkeyPatch, toy: Any
) -> None:
    """What a reply holds would tell two data sets apart that noise is to make alike."""
    monkeypatch.setitem(toy[0], "training", dataclasses.replace(toy[0]["training"], separable=("b",)))
    kit.site(privacy={"min_count": 0, "clip_norm": 1.0})
    alone = {"a": torch.ones(2)}
    left_out = {Header.SCHEMA: Schema(alone).digest}
    assert list(passed(kit.run(reply(dict(alone), headers=left_out)))) == ["a"]
    kit.site(privacy={"min_count": 0, "clip_norm": 1.0, "noise": NOISE})
    some, all_of_it = kit.run(reply(dict(alone), headers=left_out)), kit.run(reply())
    assert list(passed(some)) == list(passed(all_of_it)) == ["a", "b"]
    assert some.get_header(Header.SCHEMA) == all_of_it.get_header(Header.SCHEMA)
    assert bool(passed(some)["b"].all()), "noise on every number"
    refused(kit.run(reply(dict(alone))), "PRIVACY: MISSING_TENSORS: tensors from this site")
    without_a = reply({"b": torch.ones(2, 2)}, headers={Header.SCHEMA: Schema({"b": torch.ones(2, 2)}).digest})
    refused(kit.run(without_a), "PRIVACY: another schema than that of this site")


def test_the_noise_is_entered_before_it_is_drawn(kit: Kit, reply: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies between both has paid."""
    kit.site(privacy={"clip_norm": 1.0, "noise": NOISE})

    def die(count: int) -> np.ndarray:
        raise MemoryError(MARKER)

    monkeypatch.setattr("fedmedseg.privacy.clipping.secure_normal", die)
    refused(kit.run(reply()), "PRIVACY: MemoryError in a filter")
    assert read_ledger(kit.state / LEDGER).releases == 1


def test_two_replies_never_carry_the_same_noise(kit: Kit, reply: Make) -> None:
    kit.site(privacy={"clip_norm": 1.0, "noise": NOISE})
    first, second = passed(kit.run(reply())), passed(kit.run(reply()))
    assert not torch.equal(first["a"], second["a"])


def test_an_exhausted_budget_refuses_and_tells_why(kit: Kit, reply: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Multiplier 2 costs epsilon 4.377 once and 6.572 twice."""
    kit.site(privacy={"clip_norm": 1.0, "noise": {**NOISE, "epsilon": 5.0}})
    passed(kit.run(reply()))
    for _ in range(2):
        refused(kit.run(reply()), "PRIVACY: the privacy budget is used up")
    assert read_ledger(kit.state / LEDGER).releases == 1
    assert "privacy.noise.epsilon" in caplog.text
    figures = kit.run(reply(stage="testing", metrics={"cases": 6}), "testing")
    assert meta(figures)[Meta.METRICS] == {"cases": 6.0}, "figures cost nothing here and are outside the guarantee"
    told = audit.read(kit.root / audit.FOLDER)[-1]
    assert (told["action"], told["outcome"]) == ("send reply", "refused")
    assert told["reason"].startswith("PRIVACY")


def test_a_damaged_ledger_blocks(kit: Kit, reply: Make) -> None:
    kit.site(privacy={"clip_norm": 1.0, "noise": NOISE})
    passed(kit.run(reply()))
    (kit.state / LEDGER).write_text("{}{")
    refused(kit.run(reply()), "PRIVACY: the privacy ledger cannot be read")


@pytest.mark.parametrize(
    ("dtype", "noise"), [(torch.float32, None), (torch.float32, NOISE), (torch.float16, NOISE), (torch.bfloat16, NOISE)]
)
def test_what_leaves_is_still_valid_for_the_guarded_aggregator(
    kit: Kit,
    reply: Make,
    current: Callable[..., Round],
    made_of: Callable[[torch.dtype], None],
    dtype: torch.dtype,
    noise: Any,
) -> None:
    made_of(dtype)
    kit.site(privacy={"min_count": 50, "clip_norm": 1.0, "noise": noise})
    sent = kit.run(reply(metrics={"loss": 0.5}))
    passed(sent)
    large_tensors.register()
    aggregator = served(current(), {"site-1": sent})
    assert aggregator.rejections == {}
    combined = from_shareable(aggregator.aggregate(FLContext())).data
    assert all(torch.equal(combined[name], passed(sent)[name]) for name in combined)


def served(opened: Round, replies: dict[str, Shareable]) -> SharedKeysAggregator:
    """The server's side of a round."""
    aggregator = SharedKeysAggregator()
    aggregator.open_round(opened)
    for site, sent in replies.items():
        fl_ctx, peer = FLContext(), FLContext()
        peer.set_prop("__identity_name__", site, private=False, sticky=False)
        fl_ctx.set_peer_context(peer)
        assert aggregator.accept(sent, fl_ctx), aggregator.rejections
    return aggregator


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        (None, "PRIVACY: the site file has no section privacy"),
        ({"noise": NOISE}, "PRIVACY: CONFIGURATION: fedmedseg.yaml: privacy"),
        ({"clip_norm": 0}, "PRIVACY: CONFIGURATION: fedmedseg.yaml: privacy.clip_norm"),
        ({"clip_norm": math.inf}, "PRIVACY: CONFIGURATION: fedmedseg.yaml: privacy.clip_norm"),
        ({"min_cuont": 3}, "PRIVACY: CONFIGURATION: fedmedseg.yaml: privacy.min_cuont"),
        (
            {"clip_norm": 1.0, "noise": {"multiplier": 1.0, "epsilon": 8.0}},
            "PRIVACY: CONFIGURATION: fedmedseg.yaml: privacy.noise.delta",
        ),
    ],
)
def test_a_missing_or_wrong_setting_of_the_site_blocks_every_reply(
    kit: Kit, reply: Make, section: Any, reason: str
) -> None:
    kit.site(**({} if section is None else {"privacy": section}))
    refused(kit.run(reply()), reason)
    refused(kit.run(reply(stage="testing"), "testing"), reason)


def test_a_missing_site_file_blocks(kit: Kit, reply: Make) -> None:
    (kit.root / "local" / "fedmedseg.yaml").unlink()
    refused(kit.run(reply()), "PRIVACY: CONFIGURATION: site file")


def test_a_job_without_a_study_that_can_be_read_is_blocked(kit: Kit, reply: Make) -> None:
    (kit.app / "experiment.yaml").write_text("system: toy")
    assert kit.run(reply()).get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    (kit.app / "experiment.yaml").unlink()
    assert kit.run(reply()).get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR


@pytest.mark.parametrize(
    ("scope", "privacy", "reason"),
    [
        ("bounded", {}, "PRIVACY: the site file sets no privacy.clip_norm"),
        ("private", {"clip_norm": 1.0}, "PRIVACY: the site file sets no privacy.noise"),
        ("figures", {}, "PRIVACY: tensors, which the scope keeps here"),
    ],
)
def test_a_scope_asks_for_more(kit: Kit, reply: Make, scope: str, privacy: Any, reason: str) -> None:
    kit.site(privacy=privacy)
    kit.meta(scope=scope)
    refused(kit.run(reply()), reason)
    assert meta(kit.run(reply(stage="testing", metrics={"cases": 6}), "testing"))[Meta.METRICS] == {"cases": 6.0}


@pytest.mark.parametrize("scope", [name for name in SCOPES if name != "figures"])
def test_no_scope_that_a_job_names_lets_out_what_the_site_file_holds_back(kit: Kit, reply: Make, scope: str) -> None:
    kit.site(privacy={"min_count": 10, "metrics": [], "clip_norm": 1.0, "noise": NOISE})
    kit.meta(scope=scope)
    sent = kit.run(reply(metrics={"loss": 0.5}, examples=9))
    assert not torch.equal(passed(sent)["a"], torch.full((2,), 1 / math.sqrt(6)))
    assert (meta(sent)[Meta.EXAMPLES], meta(sent)[Meta.METRICS]) == (None, {})
    assert read_ledger(kit.state / LEDGER).releases == 1


def test_nothing_in_the_job_changes_what_a_site_decided(kit: Kit, reply: Make) -> None:
    """A section privacy in experiment.yaml is an unknown key, and one in meta.json is read by nobody."""
    kit.site(privacy={"clip_norm": 1.0})
    kit.meta(privacy={"clip_norm": 1e9})
    assert l2_norm(passed(kit.run(reply()))) == pytest.approx(1.0, abs=1e-6)
    study = kit.app / "experiment.yaml"
    study.write_text(study.read_text() + "privacy: {clip_norm: 1000}\n")
    refused(kit.run(reply()), "PRIVACY: CONFIGURATION: experiment.yaml: privacy")


@pytest.mark.parametrize("name", ["DeclaredContents", "SmallCounts", "BoundedDifferences"])
def test_any_error_inside_a_filter_blocks_and_tells_no_more_than_its_type(
    kit: Kit, reply: Make, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise KeyError(MARKER)

    monkeypatch.setattr(getattr(filters, name), "apply", broken)
    refused(kit.run(reply()), "PRIVACY: KeyError in a filter")
    assert MARKER not in caplog.text


def test_flare_itself_blocks_where_a_filter_raises_in_spite_of_all(
    kit: Kit, reply: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept in sight: if FLARE ever handed the reply on, ours would still not raise."""

    def broken(*_: object) -> None:
        raise KeyError(MARKER)

    monkeypatch.setattr(filters.SiteFilter, "process", broken)
    sent = kit.run(reply())
    assert sent.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert "DXO" not in sent


def test_a_filter_that_cannot_be_built_stops_the_sites_process(kit: Kit, reply: Make) -> None:
    policy = privacy_policy()
    policy["scopes"][0]["task_result_filters"][2]["args"] = {"noise": "maybe"}
    kit.policy(policy)
    with pytest.raises(Exception, match="optional or required"):
        kit.run(reply())
    with pytest.raises(ConfigurationError, match="optional or required"):
        filters.BoundedDifferences(clip="no")


def test_a_filter_named_for_tasks_instead_of_replies_blocks(kit: Kit, reply: Make) -> None:
    fl_ctx = FLContext()
    fl_ctx.set_prop(FLContextKey.FILTER_DIRECTION, FilterKey.IN, private=True, sticky=False)
    refused(filters.SmallCounts().process(reply(), fl_ctx), "PRIVACY: a filter of replies used on something else")


def test_flares_own_filter_base_lets_three_kinds_of_reply_pass_unseen(reply: Make) -> None:
    """Why ours do not stand on it."""

    class Blocks(DXOFilter):
        def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> Any:
            raise AssertionError("seen")

    stock, fl_ctx = Blocks(None, None), FLContext()
    failed = reply()
    failed.set_return_code(ReturnCode.EXECUTION_EXCEPTION)
    for unseen in (failed, Shareable({"notes": MARKER}), reply({}, metrics={"loss": 0.5})):
        assert stock.process(unseen, fl_ctx) is not None
    with pytest.raises(AssertionError, match="seen"):
        stock.process(reply(), fl_ctx)
