"""A learner's reply as it crosses the wire: differences to what was sent, declared figures, the task's own headers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.shareable import Shareable

from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.learner import Reply
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
