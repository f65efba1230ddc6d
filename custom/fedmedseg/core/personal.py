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

from fedmedseg.core.checkpoint import content_crc32
from fedmedseg.core.exchange import split
from fedmedseg.core.transport import Codec
from fedmedseg.core.wire import Header, Part

Personal = Mapping[str, Mapping[str, torch.Tensor]]
"""Site to the tensors that are its own, named as shared ones; a site that is not here has none."""


@dataclass(frozen=True)
class Payload:
    """All tensors that one site is sent in a round, and their checksum."""

    base: str
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    extra: bool = False
    """Whether it holds the contract's ``extra`` tensors besides those of the round."""
    encoded: Mapping[str, torch.Tensor] | None = field(default=None, repr=False)
    """What travels in place of ``tensors``, where these are what a site decodes."""
    exact: Mapping[str, torch.Tensor] | None = field(default=None, repr=False)
    """What was encoded."""

    @property
    def message(self) -> Mapping[str, torch.Tensor]:
        """What crosses the wire."""
        return self.tensors if self.encoded is None else self.encoded

    @property
    def kept(self) -> Mapping[str, torch.Tensor]:
        """The tensors as the server has them."""
        return self.tensors if self.exact is None else self.exact


def payload_of(tensors: Mapping[str, torch.Tensor], codec: Codec | None) -> Payload:
    """All ``tensors``, or what a site decodes of them."""
    if codec is None:
        return Payload(base=content_crc32(tensors), tensors=tensors)
    encoded, _ = codec.encode(tensors)
    decoded = codec.decode(encoded)
    return Payload(base=content_crc32(decoded), tensors=decoded, encoded=encoded, exact=tensors)


def payloads(
    sent: Mapping[str, torch.Tensor],
    personal: Personal,
    part: Part,
    *,
    codec: Codec | None = None,
    common: Payload | None = None,
) -> dict[str, Payload]:
    """Per site with tensors of its own: those of ``sent``, replaced by its own where it has them in ``part``.

    What it gets of others' features has no name among the shared tensors and stands beside them, as it is. ``common``
    is what ``payload_of`` makes of ``sent`` and ``codec``, where it is there already.
    """
    found = {}
    for site in sorted(personal):
        own, features = split(personal[site])
        mine = part.of(own)
        given = common if common is not None and not mine else payload_of({**sent, **mine}, codec)
        if features:
            tensors = {**given.tensors, **features}
            encoded = None if given.encoded is None else {**given.encoded, **features}
            given = Payload(base=content_crc32(tensors), tensors=tensors, encoded=encoded, exact=given.exact)
        found[site] = given
    return found


def joined(personal: Personal, exchanged: Personal) -> Personal:
    """Per site its own tensors and what it gets of others' features; every site that has either."""
    return {site: {**personal.get(site, {}), **exchanged.get(site, {})} for site in {*personal, *exchanged}}


def personalise(data: Shareable, payload: Payload) -> None:
    """Make ``data``, one client's own copy of a broadcast task's data, carry ``payload``."""
    DXO(DataKind.WEIGHTS, data=dict(payload.message)).update_shareable(data)
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
            found[site] = Payload(base=content_crc32(tensors), tensors=tensors, extra=True)
            continue
        if common is None:
            tensors = {**sent, **extra}
            common = Payload(base=content_crc32(tensors), tensors=tensors, extra=True)
        found[site] = common
    return found
