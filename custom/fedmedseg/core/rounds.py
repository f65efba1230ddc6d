"""What is said of one round: its JSON record, and in words why it fell short."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Collection, Mapping
from typing import Any

import torch

from fedmedseg.core.aggregator import GuardedAggregator
from fedmedseg.core.exchange import rows_in, split
from fedmedseg.core.federation_settings import FederationSection
from fedmedseg.core.sealing import GUARDS_OFF
from fedmedseg.core.traffic import Traffic
from fedmedseg.core.wire import tensor_bytes

NO_REPLY = "no reply in time"
LOST = "LOST: its process is gone"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.,:;()%+ -]")


def round_record(
    *,
    stage: str,
    number: int,
    rounds: int,
    facts: Mapping[str, Any],
    replies: Mapping[str, Mapping[str, Any]],
    declined: Collection[str],
    aggregator: GuardedAggregator,
    bytes_down: int,
    shared_sha256: str | None,
    traffic: Traffic | None = None,
) -> dict[str, Any]:
    """One round as JSON: who was asked, who was accepted or why not, bytes each way, seconds, weights, metrics.

    ``facts`` holds ``asked``, ``needed``, ``attempts``, ``refusals`` and the monotonic times ``began``,
    ``aggregation_began`` and ``aggregated``; ``replies`` holds, per site that answered, ``reason`` and ``seconds``
    after sending.
    """
    sites = {}
    for site in facts["asked"]:
        reply = replies.get(site, {"reason": NO_REPLY, "seconds": None})
        contribution = aggregator.contributions.get(site)
        seconds = contribution.train_seconds if contribution else 0.0
        own = aggregator.round.personal.get(site) if aggregator.round else None
        sites[site] = {
            "accepted": contribution is not None,
            "declined": site in declined,
            "reason": None if contribution else reply["reason"],
            "bytes_down": tensor_bytes(own.message) if own else bytes_down,
            # of the tensors this site alone was sent; None where it was sent the shared ones
            "personal_crc32": own.base if own else None,
            "bytes_up": contribution.nbytes if contribution else 0,
            # of those bytes, and how many rows they are; None where the stage exchanges no features
            "features_down": _features(split(own.tensors)[1] if own else {}, aggregator),
            "features_up": _features(contribution.features if contribution else {}, aggregator),
            # tasks and replies as they were encoded, names, headers and figures included; also those that did not count
            "payload_down": traffic.down.get(site, 0) if traffic else None,
            "payload_up": traffic.up.get(site, 0) if traffic else None,
            "train_seconds": round(seconds, 3),
            # the rest of the time between sending and receiving: transport, polling, waiting for a turn
            "move_seconds": round(max(0.0, (reply["seconds"] or 0.0) - seconds), 3),
            "examples": contribution.examples if contribution else None,
            "weight": aggregator.weights.get(site),
            "metrics": dict(sorted(contribution.metrics.items())) if contribution else {},
        }
    return {
        "stage": stage,
        "round": number,
        "rounds": rounds,
        "attempts": facts["attempts"],
        "needed": facts["needed"],
        "accepted": sorted(aggregator.contributions),
        # every refusal, also those that asking again made good
        "refusals": list(facts["refusals"]),
        "sites": sites,
        "aggregate_seconds": round(facts.get("aggregated", 0.0) - facts.get("aggregation_began", 0.0), 4),
        "wall_seconds": round(time.monotonic() - facts["began"], 3),
        "shared_sha256": shared_sha256,
        "notes": aggregator.notes,
        # rounds in a row, this one included, in which the shared model stood still
        "unchanged": facts.get("unchanged", 0),
        "guards_off": list(GUARDS_OFF) if _sealed(aggregator) else [],
    }


def _features(entries: Mapping[str, torch.Tensor], aggregator: GuardedAggregator) -> dict[str, int] | None:
    """Rows and bytes of what one site gave to the exchange or got of it."""
    if aggregator.round is None or aggregator.round.contract.exchange is None:
        return None
    return {"rows": rows_in(entries), "bytes": tensor_bytes(entries)}


def _sealed(aggregator: GuardedAggregator) -> bool:
    """Whether the round's replies are tensors that the server cannot read."""
    current = aggregator.round
    return current is not None and current.sealing is not None and current.contract.returns == "shared"


def too_few(federation: FederationSection, sites: int, *, aggregates: bool) -> str | None:
    """Why ``sites`` connected sites cannot begin a stage, or None; ``aggregates``: whether it puts updates together."""
    needed = federation.needed(sites)
    if needed > sites:
        return (
            f"federation.quorum: got {needed}. Expected at most {sites}, the connected sites. "
            "Remedy: lower federation.quorum or connect more sites."
        )
    robust = federation.robust
    if aggregates and robust.least > sites:
        return (
            f"federation.robust: got {sites} connected sites. Expected at least {robust.least} for "
            f"{robust.named}. Remedy: connect more sites, lower federation.robust.faulty, or remove robust."
        )
    return None


def shortfall(
    *,
    stage: str,
    number: int,
    asked: Collection[str],
    accepted: Collection[str],
    needed: int,
    replies: Mapping[str, Mapping[str, Any]],
) -> str:
    """Why a round stayed below its quorum, site by site."""
    reasons = [
        f"{site}: {replies[site]['reason'] if site in replies else NO_REPLY}" for site in asked if site not in accepted
    ]
    return (
        f"{stage} round {number}: {len(accepted)} of {needed} needed replies were accepted "
        f"({'; '.join(reasons)}). The shared model stays as it was before this round."
    )


def clean(reason: object) -> str:
    """A site's own words, made fit for a log: short, one line, no path separators."""
    return _UNSAFE.sub("?", str(reason))[:200]


def disk_problem(error: OSError) -> str:
    """An operating-system error without the path it names."""
    return "disk full" if error.errno == errno.ENOSPC else type(error).__name__
