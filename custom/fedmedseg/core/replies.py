"""A learner's reply as it crosses the wire: differences to what was sent, declared figures, the task's own headers.

How the differences travel is decided last (``thin``), when the site's filters have seen them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.shareable import Shareable

from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.exchange import split
from fedmedseg.core.learner import Reply
from fedmedseg.core.recall import recall, remember
from fedmedseg.core.state import SiteState
from fedmedseg.core.transport import Codec
from fedmedseg.core.wire import Header, Meta, Schema, StageContract, differences_to

ECHOED = (Header.RUN, Header.STAGE, Header.ROUND, Header.BASE, Header.NONCE)
"""Headers that a reply takes over from its task."""


def encode(
    reply: Reply,
    *,
    given: Mapping[str, torch.Tensor],
    schema: Schema,
    contract: StageContract,
    request: Shareable,
    seconds: float,
) -> Shareable:
    """The reply to ``request``, whose tensors were ``given``; ``schema`` is that of all shared tensors.

    What a site knows without being sent it (``Reply.known``) is what differences of such tensors are to.

    Raises:
        FedMedSegError: a metric that the contract does not declare, a difference that is not finite, or features that
            are not those it declares.
    """
    contract.check_metrics(reply.metrics)
    returned = schema.part(contract.returned_in(request.get_header(Header.ROUND)))
    base = {**reply.known, **given}
    differences = differences_to(base, reply.tensors, returned) if contract.returns == "shared" else {}
    if contract.separable:
        moved = contract.moved(differences)
        differences, returned = moved.of(differences), returned.part(moved)
    if contract.exchange is not None:
        if reply.features is None:
            raise FedMedSegError("features", expected="those that the stage exchanges", reason=Reason.EMPTY)
        differences |= contract.exchange.encode(reply.features)
    meta = {
        Meta.EXAMPLES: reply.examples,
        Meta.STEPS: reply.steps,
        Meta.TRAIN_SECONDS: seconds,
        Meta.METRICS: {name: float(value) for name, value in reply.metrics.items()},
    }
    answer = DXO(data_kind=DataKind.WEIGHT_DIFF, data=differences, meta=meta).to_shareable()
    for header in ECHOED:
        answer.set_header(header, request.get_header(header))
    answer.set_header(Header.SCHEMA, returned.digest)
    if contract.held:
        answer.set_header(Header.HELD, reply.held)
    return answer


def thin(answer: Shareable, *, codec: Codec, state: SiteState) -> None:
    """Put the differences of ``answer`` into the form in which they travel, in place; features stay as they are.

    What is not sent now is remembered in ``state`` under the stage's name, beside what earlier rounds left.

    Raises:
        FedMedSegError: the differences are not those of the codec's schema.
        OSError: the disk is full.
    """
    dxo = from_shareable(answer)
    differences, features = split(dxo.data)
    codec = codec.narrowed(differences)
    codec.schema.require(differences, sender="this site")
    stage, number = answer.get_header(Header.STAGE), answer.get_header(Header.ROUND)
    memory = f"unsent_{stage}"
    kept = (recall(state, memory, number) or {}).get("tensors", {})
    entries, left = codec.encode(differences, kept)
    if left:
        remember(state, memory, number, {"tensors": {**kept, **left}})
    dxo.data = {**entries, **features}
    dxo.update_shareable(answer)
