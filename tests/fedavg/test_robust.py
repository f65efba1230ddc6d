"""Fault row 12 on a whole training: one site of five turns its updates round."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest

from fedmedseg.core import in_process
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.learner import Reply

Federate = Callable[..., InProcessFederation]
SITES = tuple(f"site-{number}" for number in range(1, 6))
ROUNDS = 6
TURNED = "site-3"


def last_loss(federation: InProcessFederation, *, turned: bool, monkeypatch: pytest.MonkeyPatch) -> float:
    """Mean loss of the honest sites in the last round, while ``TURNED`` sends the opposite of what it learned."""
    encode = in_process.encode
    sent: list[str] = []

    def turning(reply: Reply, *, given: Any, **more: Any) -> Any:
        site = SITES[len(sent) % len(SITES)]
        sent.append(site)
        if turned and site == TURNED:
            tensors = {name: 2 * given[name] - tensor for name, tensor in reply.tensors.items()}
            reply = Reply(tensors=tensors, metrics=reply.metrics, examples=reply.examples, steps=reply.steps)
        return encode(reply, given=given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(in_process, "encode", turning)
        rounds = federation.run_stage("training")
    return statistics.fmean(figures["loss"] for site, figures in rounds[-1].items() if site != TURNED)


@pytest.mark.slow
def test_with_a_median_the_training_ends_as_without_the_site_and_with_a_mean_it_is_named(
    federate: Federate, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {
        "sites": SITES,
        "segmentation": {"steps": 10 * ROUNDS, "validate_every": 1000},
        "stages": {"training": {"rounds": ROUNDS}},
        "fedavg": {"weights": "equal"},
    }
    clean = last_loss(federate(name="clean", **changes), turned=False, monkeypatch=monkeypatch)
    plain = federate(name="plain", **changes)
    harmed = last_loss(plain, turned=True, monkeypatch=monkeypatch)
    robust = {"federation": {"robust": {"rule": "median"}}}
    spared = last_loss(federate(name="robust", **changes, **robust), turned=True, monkeypatch=monkeypatch)
    assert spared <= 1.05 * clean, (clean, spared, harmed)
    assert harmed > spared
    named = [set(record["notes"]["outliers"]) for record in plain.history]
    assert all(TURNED in sites for sites in named)
