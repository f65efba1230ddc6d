"""What reaches the server of a real federation under sites' privacy settings; the simulator skips sites' filters.

The oracle is what FLARE hands the server, written down before any component of ours sees it (`listening.Ear`). Four
hospitals with different settings do two jobs: one under the sites' default scopes, one that asks for the scope
`private` after one of them lost its privacy.json.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hospitals import Ended, Hospitals, allow
from listening import HEARD_FILE, MARKER
from stand_in_job import stand_in_job

from fedmedseg.core.config import load_experiment, system_module
from fedmedseg.core.scopes import FIGURES, privacy_policy
from fedmedseg.core.wire import Header, Meta, Schema
from fedmedseg.privacy.accounting import epsilon_of, loss_of
from fedmedseg.privacy.ledger import LEDGER

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

TACITURN, SMALL, BOUNDED, NOISY = SITES = ("site-1", "site-2", "site-3", "site-4")
CLIP, MULTIPLIER, DELTA = 0.5, 4.0, 1e-5
SETTINGS: dict[str, dict[str, Any]] = {
    # its default scope is `figures`
    TACITURN: {"min_count": 0, "metrics": ["dice/*"]},
    SMALL: {"min_count": 5},
    BOUNDED: {"min_count": 3, "clip_norm": CLIP},
    NOISY: {
        "min_count": 0,
        "clip_norm": CLIP,
        # room for the two rounds of the first job and the one of the second
        "noise": {"multiplier": MULTIPLIER, "epsilon": 1000.0, "delta": DELTA},
    },
}
FAULTS = [
    {"site": SMALL, "round": 1, "kind": "undeclared metric"},
    {"site": BOUNDED, "round": 1, "kind": "extra key"},
]
TRANSPORT = {
    "__audit_event_id__",
    "__content_type__",
    "__cookie_jar__",
    "__msg_root_id__",
    "__peer_ctx__",
    "__peer_props__",
    "__rc__",
    "__task_id__",
    "__task_name__",
    "fl_client",
}
"""Headers that FLARE itself puts on results, whatever an executor answers."""
QUORUM = {"quorum": 1, "wait_after_quorum": 60, "timeout": 60}


class Heard:
    """What reached the server in one job, and what it told TensorBoard."""

    def __init__(self, ended: Ended, job: Path) -> None:
        assert ended.status == "FINISHED:COMPLETED", ended.status
        self.ended = ended
        experiment = load_experiment(job / "app" / "config" / "experiment.yaml")
        contracts = system_module("fedata", "plan").stages(experiment)
        schema = Schema(system_module("fedata", "plan").initial_shared(experiment))
        self.declared = schema.part(contracts["pretraining"].returned)
        self.text = (ended.folder / HEARD_FILE).read_text()
        self.lines = [json.loads(line) for line in self.text.splitlines()]

    def reply(self, site: str, task: str, number: int = 0) -> dict[str, Any]:
        """The one reply of a site to a task; a failed one has no round, and comes in the order of the rounds."""
        found = [line for line in self.lines if (line["what"], line["site"], line.get("task")) == ("reply", site, task)]
        return found[number]

    def replies(self, *sites: str) -> list[dict[str, Any]]:
        """Every reply of these sites."""
        return [line for line in self.lines if line["what"] == "reply" and line["site"] in sites]

    def figures(self, site: str) -> set[str]:
        """Names of a site's figures that TensorBoard was told."""
        return {line["name"] for line in self.lines if (line["what"], line["site"]) == ("figure", site)}

    @property
    def size(self) -> int:
        """How many numbers a reply's tensors hold."""
        return sum(math.prod(spec.shape) for spec in self.declared.specs.values())


def norm(reply: dict[str, Any]) -> float:
    """Length of a reply's differences as one vector."""
    return math.sqrt(sum(tensor["squares"] for tensor in reply["tensors"].values()))


def study(folder: Path, *, rounds: int, **meta: Any) -> Path:
    """A job of stand-ins with an ear at the server; ``meta`` goes into its meta.json."""
    job = stand_in_job(folder, {"stages": {"pretraining": {"rounds": rounds}}, "federation": QUORUM})
    client = job / "app" / "config" / "config_fed_client.json"
    client.write_text(client.read_text().replace("stand_ins.StandInExecutor", "listening.TalkativeExecutor"))
    server = job / "app" / "config" / "config_fed_server.json"
    content = json.loads(server.read_text())
    content["components"].append({"id": "ear", "path": "listening.Ear"})
    server.write_text(json.dumps(content))
    file = job / "meta.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **meta}))
    return job


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("privacy")


@pytest.fixture(scope="module")
def hospitals(folder: Path) -> Iterator[Hospitals]:
    """Four hospitals, each with its own section `privacy`, running."""
    with Hospitals(folder / "federation", sites=SITES, faults=FAULTS) as made:
        for name in ("localhost", *SITES):
            allow(made.kits / name, "listening.")
        for site, privacy in SETTINGS.items():
            made.write_site_file(site, {"privacy": privacy})
        policy = json.dumps(privacy_policy(default=FIGURES))
        (made.kits / TACITURN / "local" / "privacy.json").write_text(policy)
        made.up()
        yield made


@pytest.fixture(scope="module")
def standard(hospitals: Hospitals, folder: Path) -> Heard:
    """Two rounds of pretraining, the second with replies that hold more than declared, fine-tuning, evaluation."""
    job = study(folder / "standard", rounds=2)
    return Heard(hospitals.run(job), job)


@pytest.fixture(scope="module")
def private(standard: Heard, hospitals: Hospitals, folder: Path) -> Heard:
    """One round under the scope `private`, after one site has lost its privacy.json."""
    hospitals.set_faults([])
    (hospitals.kits / TACITURN / "local" / "privacy.json").unlink()
    job = study(folder / "private", rounds=1, scope="private")
    return Heard(hospitals.run(job), job)


def test_a_reply_holds_the_declared_tensors_and_fields_and_nothing_else(standard: Heard) -> None:
    for site in (SMALL, BOUNDED, NOISY):
        reply = standard.reply(site, "pretraining")
        assert reply["code"] == "OK"
        assert reply["keys"] == ["DXO"]
        assert {name: tuple(one["shape"]) for name, one in reply["tensors"].items()} == {
            name: spec.shape for name, spec in standard.declared.specs.items()
        }
        assert set(reply["meta"]) == {Meta.EXAMPLES, Meta.STEPS, Meta.TRAIN_SECONDS, Meta.METRICS}
        ours = {Header.RUN, Header.BASE, Header.NONCE, Header.SCHEMA, Header.STAGE, Header.ROUND}
        assert set(reply["headers"]) - TRANSPORT == ours
    for reply in standard.replies(SMALL, BOUNDED, NOISY):
        if reply["task"] != "pretraining":
            assert reply["tensors"] == {}, "a stage of figures"


def test_figures_that_a_site_keeps_never_arrive(standard: Heard) -> None:
    for task, told in (("fine_tuning", {}), ("evaluation", {"dice/personal/left ventricle": 0.5})):
        assert standard.reply(TACITURN, task)["meta"][Meta.METRICS] == told
    assert standard.figures(TACITURN) == {"evaluation/dice/personal/left ventricle"}
    assert [line["came"] for line in standard.lines if line["what"] == "federation events"] == [False]
    # who keeps nothing is heard, so the silence above is the setting's
    assert set(standard.reply(NOISY, "fine_tuning")["meta"][Meta.METRICS]) == {"loss/personal"}
    assert set(standard.reply(NOISY, "evaluation")["meta"][Meta.METRICS]) == {"dice/personal/left ventricle", "cases"}
    assert "pretraining/loss" in standard.figures(NOISY)


def test_counts_below_a_sites_least_stay_there_with_all_that_stands_on_them(standard: Heard) -> None:
    # four examples are too few for one site and enough for the other, two cases are too few for both
    assert standard.reply(SMALL, "pretraining")["meta"][Meta.EXAMPLES] is None
    assert standard.reply(SMALL, "pretraining")["meta"][Meta.METRICS] == {}
    assert standard.reply(BOUNDED, "pretraining")["meta"][Meta.EXAMPLES] == 4
    assert standard.reply(BOUNDED, "pretraining")["meta"][Meta.METRICS] == {"loss": 1.0}
    for site in (SMALL, BOUNDED):
        for task in ("fine_tuning", "evaluation"):
            meta = standard.reply(site, task)["meta"]
            assert (meta[Meta.EXAMPLES], meta[Meta.METRICS]) == (None, {})
    assert standard.figures(SMALL) == set()
    assert standard.figures(BOUNDED) == {"pretraining/loss"}
    # the server says that it weighs all sites alike where one withholds its count
    (first, _) = standard.ended.rounds()
    assert first["notes"]["weighting"] == [f"equal weights: {SMALL} suppressed the count"]


def test_differences_are_no_longer_than_a_sites_bound(standard: Heard) -> None:
    whole = math.sqrt(standard.size)
    # a stand-in's step is its site's number on every element
    assert norm(standard.reply(SMALL, "pretraining")) == pytest.approx(2 * whole, rel=1e-3)
    assert norm(standard.reply(BOUNDED, "pretraining")) == pytest.approx(CLIP, rel=1e-6)


def test_noise_is_as_strong_as_the_site_says_and_is_paid_for(standard: Heard, hospitals: Hospitals) -> None:
    deviation = MULTIPLIER * CLIP
    for number in (0, 1):
        tensors = standard.reply(NOISY, "pretraining", number)["tensors"].values()
        mean = sum(tensor["sum"] for tensor in tensors) / standard.size
        variance = sum(tensor["squares"] for tensor in tensors) / standard.size - mean**2
        clipped = CLIP / math.sqrt(standard.size)
        # six standard errors of mean and deviation
        assert mean == pytest.approx(clipped, abs=6 * deviation / math.sqrt(standard.size))
        assert math.sqrt(variance) == pytest.approx(deviation, rel=6 / math.sqrt(2 * standard.size))
    first, second = (standard.reply(NOISY, "pretraining", number)["tensors"] for number in (0, 1))
    assert all(first[name] != second[name] for name in first)


def test_a_reply_that_holds_more_than_declared_does_not_leave(standard: Heard) -> None:
    for site, reason in (
        (SMALL, "PRIVACY: SCHEMA: metric"),
        (BOUNDED, "PRIVACY: UNKNOWN_TENSORS: tensors from this site"),
    ):
        blocked = standard.reply(site, "pretraining", 1)
        assert blocked["code"] == "TASK_RESULT_FILTER_ERROR"
        assert blocked["reason"] == reason
        assert blocked["keys"] == []
        assert set(blocked["headers"]) - TRANSPORT == {Header.REASON}
    assert "unheard.of" not in standard.text
    assert MARKER not in standard.text
    assert not any(line.get("marked") for line in standard.lines)
    # it costs those sites the round, and nobody the job
    (_, second) = standard.ended.rounds()
    assert second["accepted"] == [NOISY]
    for site in (SMALL, BOUNDED):
        assert "PRIVACY" in second["sites"][site]["reason"]
    assert standard.ended.record["outcome"] == "finished"


def test_a_scope_of_figures_keeps_every_tensor_at_the_site(standard: Heard) -> None:
    for number in (0, 1):
        blocked = standard.reply(TACITURN, "pretraining", number)
        assert blocked["code"] == "TASK_RESULT_FILTER_ERROR"
        assert blocked["reason"] == "PRIVACY: tensors, which the scope keeps here"
        assert blocked["keys"] == []
    assert all(reply.get("tensors", {}) == {} for reply in standard.replies(TACITURN))
    # figures still leave
    assert standard.reply(TACITURN, "evaluation")["meta"][Meta.EXAMPLES] == 2


@pytest.mark.slow
def test_a_scope_asks_for_more_than_the_site_file(private: Heard) -> None:
    for site, setting in ((SMALL, "clip_norm"), (BOUNDED, "noise")):
        blocked = private.reply(site, "pretraining")
        assert blocked["code"] == "TASK_RESULT_FILTER_ERROR"
        assert blocked["reason"] == f"PRIVACY: the site file sets no privacy.{setting}"
        assert blocked["keys"] == []
    assert len(private.reply(NOISY, "pretraining")["tensors"]) == len(private.declared.specs)
    (only,) = private.ended.rounds()
    assert only["accepted"] == [NOISY]


@pytest.mark.slow
def test_a_site_without_privacy_json_takes_no_part(private: Heard) -> None:
    replies = private.replies(TACITURN)
    assert {reply["task"] for reply in replies} == {"pretraining", "fine_tuning", "evaluation"}
    for reply in replies:
        assert reply["code"] == "EXECUTION_EXCEPTION"
        assert reply["reason"] == "PREFLIGHT: privacy"
        assert reply["keys"] == []
        assert set(reply["headers"]) - TRANSPORT == {Header.REASON}
    assert private.figures(TACITURN) == set()


@pytest.mark.slow
def test_the_account_runs_on_over_jobs(private: Heard, hospitals: Hospitals) -> None:
    ledgers = {site: sorted((hospitals.kits / site).rglob(LEDGER)) for site in SITES}
    assert [site for site in SITES if ledgers[site]] == [NOISY]
    (file,) = ledgers[NOISY]
    ledger = json.loads(file.read_text())
    assert ledger["releases"] == 3
    assert ledger["epsilon"] == pytest.approx(epsilon_of(3 * loss_of(MULTIPLIER), DELTA))
