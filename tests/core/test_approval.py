"""A local person's word: asked for once, waited for, kept, and asked anew whenever the wish is another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmedseg.core import config
from fedmedseg.core.approval import FOLDER, decide, matters, require_approval
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.core.training import Aborted
from fedmedseg.core.wire import Schema
from fedmedseg.core.wishes import Submitter, Wish, make_wish
from fedmedseg.privacy.contents import fit_reason

SOMEBODY = Submitter(name="lead@hospital-two.example.org", org="hospital_two", role="lead", signed=True)


@pytest.fixture
def wish(study: Callable[..., Experiment], shared: Any) -> Callable[..., Wish]:
    """wish(run=..., submitter=..., scope=..., components=..., study={...}): what the toy study wants."""

    def make(*, study_change: dict[str, Any] | None = None, **change: Any) -> Wish:
        experiment = study(**(study_change or {}))
        given = {"run": "a1b2", "submitter": SOMEBODY, "scope": "", "components": b"{}", **change}
        return make_wish(
            experiment, contracts=config.system_module("toy", "plan").stages(experiment), schema=Schema(shared), **given
        )

    return make


def wait(root: Path, wish: Wish, *, patience: float = 0.0, aborted: Callable[[], bool] = lambda: False) -> None:
    require_approval(root, wish, job="job-1", aborted=aborted, patience=patience, poll=0.01)


def refused(root: Path, wish: Wish) -> FedMedSegError:
    with pytest.raises(FedMedSegError) as caught:
        wait(root, wish)
    return caught.value


def test_a_request_says_what_the_job_wants_and_waits(tmp_path: Path, wish: Callable[..., Wish]) -> None:
    error = refused(tmp_path, wish())
    assert error.public == "APPROVAL: no local decision in time"
    assert error.reason is Reason.APPROVAL
    (matter,) = matters(tmp_path)
    assert (matter.status, matter.decision, matter.request.job) == ("waiting", None, "job-1")
    told = matter.request.wish
    assert (told.study, told.system, told.data, told.run, told.submitter) == (
        "toy-study", "toy", "cmr", "a1b2", SOMEBODY,
    )  # fmt: skip
    training = told.stages["training"]
    assert (training.rounds, training.returns, training.tensors, training.nbytes) == (2, "shared", 2, 24)
    assert training.figures == ("loss", "mixing/*")
    assert (told.stages["testing"].returns, told.stages["testing"].tensors) == ("metrics", 0)


def test_a_stage_left_out_is_not_asked_for(wish: Callable[..., Wish]) -> None:
    rounds = {"training": {"rounds": 0}, "tuning": {}, "testing": {}}
    assert list(wish(study_change={"stages": rounds}).stages) == ["tuning", "testing"]


def test_an_approval_ends_the_wait(tmp_path: Path, wish: Callable[..., Wish]) -> None:
    done = threading.Event()

    def agree() -> None:
        while not (found := matters(tmp_path)):
            time.sleep(0.01)
        decide(tmp_path, found[0].request.wish.id, "approved")
        done.set()

    person = threading.Thread(target=agree)
    person.start()
    wait(tmp_path, wish(), patience=30)
    person.join(timeout=30)
    assert done.is_set()
    # and holds for the tasks to come, whose requests are not written anew
    wait(tmp_path, wish())
    (matter,) = matters(tmp_path)
    assert matter.status == "approved"
    assert matter.decision is not None
    assert matter.decision.by


def test_an_approval_that_comes_too_late_holds_for_the_next_round(tmp_path: Path, wish: Callable[..., Wish]) -> None:
    refused(tmp_path, wish())
    decide(tmp_path, wish().id, "approved")
    wait(tmp_path, wish())


@pytest.mark.parametrize("reason", ["", "the ethics vote is missing (ref. 12-A)"])
def test_a_denial_is_told_in_the_persons_words(tmp_path: Path, wish: Callable[..., Wish], reason: str) -> None:
    refused(tmp_path, wish())
    decide(tmp_path, wish().id, "denied", reason=reason)
    error = refused(tmp_path, wish())
    assert error.reason is Reason.DENIED
    assert error.public == "DENIED: by a person at this site" + (f": {reason}" if reason else "")
    assert fit_reason(error.public) == error.public


def test_a_later_word_takes_the_place_of_an_earlier_one(tmp_path: Path, wish: Callable[..., Wish]) -> None:
    refused(tmp_path, wish())
    for verdict, passes in (("approved", True), ("denied", False), ("approved", True)):
        decide(tmp_path, wish().id, verdict)  # type: ignore[arg-type]
        if passes:
            wait(tmp_path, wish())
        else:
            assert refused(tmp_path, wish()).reason is Reason.DENIED


@pytest.mark.parametrize(
    "change",
    [
        {"run": "c3d4"},
        {"submitter": None},
        {"submitter": Submitter(name="eve", org="hospital_two", role="lead", signed=True)},
        {"submitter": SOMEBODY.model_copy(update={"signed": False})},
        {"scope": "open"},
        {"components": b"{ }"},
        {"study_change": {"seed": 8}},
        {"study_change": {"study": "another"}},
    ],
)
def test_another_wish_is_asked_anew(tmp_path: Path, wish: Callable[..., Wish], change: dict[str, Any]) -> None:
    refused(tmp_path, wish())
    decide(tmp_path, wish().id, "approved")
    other = wish(**change)
    assert other.id != wish().id
    assert refused(tmp_path, other).reason is Reason.APPROVAL
    assert [matter.status for matter in matters(tmp_path)].count("waiting") == 1


def test_a_resumed_study_of_the_same_run_is_not_asked_again(tmp_path: Path, wish: Callable[..., Wish]) -> None:
    refused(tmp_path, wish())
    decide(tmp_path, wish().id, "approved")
    wait(tmp_path, wish(study_change={"resume": True}))


def test_an_abort_ends_the_wait(tmp_path: Path, wish: Callable[..., Wish]) -> None:
    with pytest.raises(Aborted):
        wait(tmp_path, wish(), patience=60, aborted=lambda: True)


def test_the_wait_is_as_long_as_the_servers(tmp_path: Path, wish: Callable[..., Wish]) -> None:
    began = time.monotonic()
    with pytest.raises(FedMedSegError, match=r"within 0\.3 s"):
        wait(tmp_path, wish(), patience=0.3)
    assert 0.3 <= time.monotonic() - began < 5


@pytest.mark.parametrize("suffix", ["request", "decision"])
@pytest.mark.parametrize("content", ["{", "[]", '{"verdict": "approved"}'])
def test_a_damaged_file_decides_nothing(tmp_path: Path, wish: Callable[..., Wish], suffix: str, content: str) -> None:
    refused(tmp_path, wish())
    decide(tmp_path, wish().id, "approved")
    (tmp_path / FOLDER / f"{wish().id}.{suffix}.json").write_text(content)
    with pytest.raises(FedMedSegError, match="cannot be read") as caught:
        matters(tmp_path)
    assert str(tmp_path) not in str(caught.value)
    if suffix == "decision":
        assert "cannot be read" in refused(tmp_path, wish()).public


def test_a_decision_of_another_wish_under_the_same_name_counts_for_nothing(
    tmp_path: Path, wish: Callable[..., Wish]
) -> None:
    refused(tmp_path, wish())
    refused(tmp_path, wish(run="c3d4"))
    decide(tmp_path, wish().id, "approved")
    folder = tmp_path / FOLDER
    text = (folder / f"{wish().id}.decision.json").read_text()
    (folder / f"{wish(run='c3d4').id}.decision.json").write_text(text)
    assert refused(tmp_path, wish(run="c3d4")).reason is Reason.APPROVAL


@pytest.mark.parametrize("reason", ["x" * 101, "see /data/x", "two\nlines", "<b>"])
def test_words_that_the_filters_would_stop_are_refused_at_once(
    tmp_path: Path, wish: Callable[..., Wish], reason: str
) -> None:
    refused(tmp_path, wish())
    with pytest.raises(ConfigurationError, match=r"--reason.*name no patient"):
        decide(tmp_path, wish().id, "denied", reason=reason)
    assert matters(tmp_path)[0].decision is None


def test_an_unknown_request_is_told_with_the_nearest(tmp_path: Path, wish: Callable[..., Wish]) -> None:
    with pytest.raises(ConfigurationError, match="no job has asked"):
        decide(tmp_path, "abc", "approved")
    refused(tmp_path, wish())
    with pytest.raises(ConfigurationError, match=f"write '{wish().id}'"):
        decide(tmp_path, wish().id[:-1], "approved")


def test_what_a_person_decides_is_open_to_read_where_no_account_has_a_name(
    tmp_path: Path, wish: Callable[..., Wish], monkeypatch: pytest.MonkeyPatch
) -> None:
    import getpass
    import os

    def nobody() -> str:
        raise OSError("no such user")

    monkeypatch.setattr(getpass, "getuser", nobody)
    refused(tmp_path, wish())
    decision = decide(tmp_path, wish().id, "approved").decision
    assert decision is not None
    assert decision.by == str(os.getuid())
