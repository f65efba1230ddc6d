"""What a reply holds, taken apart and put together again: a part that has no place here cannot leave."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, Shareable, make_reply

from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.exchange import PREFIX, split
from fedmedseg.core.wire import Header, Meta

TOKENS = (Header.RUN, Header.BASE, Header.NONCE, Header.SCHEMA)
OPTIONAL = (Header.HELD,)
"""Tokens of a stage whose contract declares them; ``privacy.filters`` holds them against it."""
HEADERS = {ReservedHeaderKey.CONTENT_TYPE, ReservedHeaderKey.RC, Header.STAGE, Header.ROUND, *TOKENS, *OPTIONAL}
FIELDS = {Meta.EXAMPLES, Meta.STEPS, Meta.TRAIN_SECONDS, Meta.METRICS}
CODES = {code for name, code in vars(ReturnCode).items() if not name.startswith("_")}
# no quotes and no separators of paths, but for the one in the name of a metric
_REASON = re.compile(r"[A-Z_]{2,32}: ([A-Za-z0-9_.,:;()%+ -]{1,160}|([A-Z_]{2,32}: )?metric \w{1,40}/\w{1,40})")
WITHHELD = f"{Reason.PRIVACY}: the reason does not leave this site"


@dataclass(frozen=True)
class Contents:
    """One reply that reports success."""

    stage: str
    round: int
    tokens: Mapping[str, str]
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    """The differences, without what is exchanged."""
    metrics: Mapping[str, Any]
    examples: int | None
    """Cases behind the reply; None once the site withholds it."""
    steps: int
    train_seconds: float
    features: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    """What the site gives to an exchange of features; empty in a stage without one."""


def blocked(what: str) -> FedMedSegError:
    """The error of a reply that must not leave; ``what`` is told to the server."""
    return FedMedSegError(what, reason=Reason.PRIVACY)


def read(reply: Shareable, *, stage: str) -> Contents:
    """Take a successful reply of ``stage`` apart. Nothing is copied.

    Raises:
        FedMedSegError: reason PRIVACY, where the reply holds anything but one set of differences as torch tensors,
            features beside them by their own names, the four declared fields and the task's own headers, each of its
            type.
    """
    headers = reply.get(ReservedHeaderKey.HEADERS)
    body = reply.get("DXO")
    if (
        not isinstance(headers, dict)
        or not isinstance(body, dict)
        or reply.get_header(ReservedHeaderKey.CONTENT_TYPE) != "DXO"
    ):
        raise blocked("a reply without a data object")
    if set(reply) != {ReservedHeaderKey.HEADERS, "DXO"} or set(body) != {"kind", "data", "meta"}:
        raise blocked("an undeclared part of the reply")
    if not set(headers) <= HEADERS:
        raise blocked("an undeclared header")
    if body["kind"] != DataKind.WEIGHT_DIFF:
        raise blocked("another kind of data than differences")
    number = headers.get(Header.ROUND)
    if headers.get(Header.STAGE) != stage or not isinstance(number, int) or not _whole(number):
        raise blocked("a reply to another task")
    carried = [*TOKENS, *(name for name in OPTIONAL if name in headers)]
    for name in carried:
        token = headers.get(name)
        if not isinstance(token, str) or not token.isalnum() or not token.isascii() or len(token) > 64:
            raise blocked(f"header {name.removeprefix('fedmedseg.')}")
    tensors, meta = body["data"], body["meta"]
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str)
        and isinstance(value, torch.Tensor)
        # what a stage's exchange declares is judged by DeclaredContents, which blocks all of it in any other stage
        and (value.is_floating_point() or name.startswith(PREFIX))
        for name, value in tensors.items()
    ):
        raise blocked("something else than floating-point tensors by name")
    tensors, features = split(tensors)
    if not isinstance(meta, dict) or set(meta) != FIELDS or not isinstance(meta[Meta.METRICS], dict):
        raise blocked("undeclared or missing fields")
    examples, steps, seconds = meta[Meta.EXAMPLES], meta[Meta.STEPS], meta[Meta.TRAIN_SECONDS]
    if not (examples is None or _whole(examples)) or not _whole(steps):
        raise blocked("a count that is no whole number")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise blocked("a training time that is no number of seconds")
    return Contents(
        stage=stage,
        round=number,
        tokens={name: headers[name] for name in carried},
        tensors=tensors,
        metrics=meta[Meta.METRICS],
        examples=examples,
        steps=steps,
        train_seconds=float(seconds),
        features=features,
    )


def write(contents: Contents) -> Shareable:
    """The reply of these contents and of nothing else."""
    meta = {
        Meta.EXAMPLES: contents.examples,
        Meta.STEPS: contents.steps,
        Meta.TRAIN_SECONDS: contents.train_seconds,
        Meta.METRICS: dict(contents.metrics),
    }
    data = {**contents.tensors, **contents.features}
    reply = DXO(data_kind=DataKind.WEIGHT_DIFF, data=data, meta=meta).to_shareable()
    for name, value in {**contents.tokens, Header.STAGE: contents.stage, Header.ROUND: contents.round}.items():
        reply.set_header(name, value)
    return reply


def failure(reply: Shareable) -> Shareable:
    """A reply that reports a failure, reduced to its code and a reason in our own form.

    Raises:
        FedMedSegError: reason PRIVACY, for a code that FLARE does not know.
    """
    code = reply.get_return_code()
    if not isinstance(code, str) or code not in CODES:
        raise blocked("an unknown return code")
    reduced = make_reply(code)
    reason = reply.get_header(Header.REASON)
    if reason is not None:
        reduced.set_header(Header.REASON, fit_reason(reason))
    return reduced


def declined(reply: Shareable) -> Shareable:
    """A reply that takes no part, reduced to its reason."""
    reduced = make_reply(ReturnCode.OK)
    reduced.set_header(Header.DECLINED, fit_reason(reply.get_header(Header.DECLINED)))
    return reduced


def refusal(what: str) -> Shareable:
    """What leaves instead of a blocked reply."""
    reply = make_reply(ReturnCode.TASK_RESULT_FILTER_ERROR)
    reply.set_header(Header.REASON, fit_reason(what))
    return reply


def fit_reason(reason: object) -> str:
    """A reason as our errors state it, ``CODE: words``, or the words that it does not leave."""
    code = reason.partition(":")[0] if isinstance(reason, str) else ""
    known = code in Reason.__members__ and isinstance(reason, str) and _REASON.fullmatch(reason)
    return str(reason) if known else WITHHELD


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
