"""What one site alone is sent: tensors of its own in place of the shared ones of the same names.

How it reaches that site and no other (found in FLARE 2.9.0, ``apis/impl/wf_comm_server.py`` and
``private/fed/server/server_runner.py``). A broadcast keeps one protected deep copy of its task's data, made when the
first client asks, and gives it to all: what ``before_task_sent_cb`` changes for a later client is dropped, what it
changes for the first reaches every other. Afterwards each client gets a shallow copy, a Shareable and headers of its
own around the same content, and the server fires BEFORE_TASK_DATA_FILTER with that copy in the context, under
TASK_DATA, before any privacy filter sees it. ``personalise`` takes the copy apart from the others there: it replaces
its entries and changes no object that the copies share. The personal tensors are referred to, never copied, so the
server holds each site's once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.shareable import Shareable

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.exchange import split
from fedmedseg.core.wire import Header, Part

Personal = Mapping[str, Mapping[str, torch.Tensor]]
"""Site to the tensors that are its own, named as shared ones; a site that is not here has none."""


@dataclass(frozen=True)
class Payload:
    """All tensors that one site is sent in a round, and their digest."""

    base: str
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    extra: bool = False
    """Whether it holds the contract's ``extra`` tensors besides those of the round."""


def payloads(sent: Mapping[str, torch.Tensor], personal: Personal, part: Part) -> dict[str, Payload]:
    """Per site with tensors of its own: those of ``sent``, replaced by its own where it has them in ``part``.

    What it gets of others' features has no name among the shared tensors and stands beside them.
    """
    found = {}
    for site in sorted(personal):
        own, features = split(personal[site])
        tensors = {**sent, **part.of(own), **features}
        found[site] = Payload(base=content_sha256(tensors), tensors=tensors)
    return found


def joined(personal: Personal, exchanged: Personal) -> Personal:
    """Per site its own tensors and what it gets of others' features; every site that has either."""
    return {site: {**personal.get(site, {}), **exchanged.get(site, {})} for site in {*personal, *exchanged}}


def personalise(data: Shareable, payload: Payload) -> None:
    """Make ``data``, one client's own copy of a broadcast task's data, carry ``payload``."""
    DXO(DataKind.WEIGHTS, data=dict(payload.tensors)).update_shareable(data)
    data.set_header(Header.BASE, payload.base)
    if payload.extra:
        data.set_header(Header.EXTRA, True)


def extended(
    given: Mapping[str, Payload],
    sent: Mapping[str, torch.Tensor],
    extra: Mapping[str, torch.Tensor],
    sites: Collection[str],
) -> dict[str, Payload]:
    """``given``, and for each of ``sites`` what it is sent (``sent`` where it has none of its own) with ``extra``."""
    found = dict(given)
    common: Payload | None = None
    for site in sorted(sites):
        if site in given:
            tensors = {**given[site].tensors, **extra}
            found[site] = Payload(base=content_sha256(tensors), tensors=tensors, extra=True)
            continue
        if common is None:
            tensors = {**sent, **extra}
            common = Payload(base=content_sha256(tensors), tensors=tensors, extra=True)
        found[site] = common
    return found
