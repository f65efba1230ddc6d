"""A site's reply to one question of the server, judged before anything of it is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.shareable import Shareable

from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.exchange import split as split_features
from fedmedseg.core.question import Round
from fedmedseg.core.robust import norms_of
from fedmedseg.core.wire import Header, Meta, is_finite, tensor_bytes

MOST_CASES = 2**53
"""Above this a float no longer counts: such a number is no count of cases."""


@dataclass(frozen=True)
class Contribution:
    """One accepted reply."""

    site: str
    differences: Mapping[str, torch.Tensor] = field(repr=False)
    examples: int | None
    """Cases behind the reply; None where the site suppresses its count."""
    steps: int
    train_seconds: float
    metrics: Mapping[str, float]
    features: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    """What the site gave to the exchange, as it came; empty where the stage has none."""
    carried: int | None = None
    """Bytes in which the differences came, where these are not the bytes that are here."""
    norms: Mapping[str, float] = field(default_factory=dict, repr=False)
    """Length of each of the differences; empty where they are encrypted, or nobody has taken them."""
    held: str = ""
    """SHA-256 of what the site worked out instead of being sent it, where the contract asks for it."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that came."""
        own = tensor_bytes(self.differences) if self.carried is None else self.carried
        return own + tensor_bytes(self.features)


def judge(
    current: Round, site: str, shareable: Shareable, *, take_over: Callable[[Any], Any] = lambda tensors: tensors
) -> Contribution:
    """The reply of ``site`` to the question ``current``, if it counts.

    ``take_over`` makes tensors of what FLARE has fetched to the disk.

    Raises:
        FedMedSegError: it does not; the reason says why. A hostile reply may raise anything else besides.
    """
    for header, expected in (
        (Header.RUN, current.run),
        (Header.STAGE, current.stage),
        (Header.ROUND, current.number),
        (Header.BASE, current.base_of(site)),
        (Header.NONCE, current.nonce),
    ):
        if shareable.get_header(header) != expected:
            raise rejected(Reason.STALE, f"{header.removeprefix('fedmedseg.')} of another task")
    schema = current.contract.replies_of(current.schema).get(shareable.get_header(Header.SCHEMA))
    if schema is None:
        raise rejected(Reason.SCHEMA, "another schema")
    dxo = from_shareable(shareable)
    metrics = dxo.get_meta_prop(Meta.METRICS, {})
    if not isinstance(metrics, dict):
        raise rejected(Reason.SCHEMA, "metrics that are no mapping")
    current.contract.check_metrics(metrics)
    features: Mapping[str, torch.Tensor] = {}
    carried: int | None = None
    if current.contract.returns == "shared":
        if dxo.data_kind != DataKind.WEIGHT_DIFF:
            raise rejected(Reason.SCHEMA, "weights instead of differences")
        differences = take_over(dxo.data)
        if (exchange := current.contract.exchange) is not None and isinstance(differences, Mapping):
            differences, features = split_features(differences)
            if (found := exchange.problem(features)) is not None:
                raise rejected(*found)
        if current.codec is not None:
            codec = current.codec.narrowed(schema.specs)
            if (found := codec.problem(differences)) is not None:
                raise rejected(*found)
            carried, differences = tensor_bytes(differences), codec.decode(differences)
        sealing = current.sealing
        found = schema.problem(differences, finite=False) if sealing is None else sealing.problem(differences)
        if found is not None:
            raise rejected(*found)
        norms = norms_of(differences) if sealing is None else {}
        for name, norm in norms.items():
            # a finite reply whose squares overflow would make every rule that takes norms return NaN
            if not math.isfinite(norm):
                overflows = is_finite(differences[name])
                what = f"the norm of {name} overflows" if overflows else f"{name} holds NaN or infinity"
                raise rejected(Reason.NOT_FINITE, what)
    else:
        if dxo.data:
            raise rejected(Reason.UNKNOWN_TENSORS, "tensors in a stage that returns metrics")
        differences, norms = {}, {}
    return Contribution(
        site=site,
        differences=differences,
        examples=_count(dxo.get_meta_prop(Meta.EXAMPLES), "number of examples"),
        steps=_count(dxo.get_meta_prop(Meta.STEPS), "number of steps") or 0,
        train_seconds=_number(dxo.get_meta_prop(Meta.TRAIN_SECONDS, 0.0), "training time"),
        metrics=metrics,
        features=features,
        carried=carried,
        norms=norms,
        held=_held(shareable) if current.contract.held else "",
    )


def rejected(reason: Reason, what: str) -> FedMedSegError:
    """The error that a reply is refused with."""
    return FedMedSegError("reply", got=what, reason=reason)


def _count(value: object, name: str) -> int | None:
    return None if value is None else int(_number(value, name))


def _number(value: object, name: str) -> float:
    # the comparison comes before any conversion: a huge integer fits no float
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_CASES:
        raise rejected(Reason.SCHEMA, f"{name} {str(value)[:20]}")
    return float(value)


def _held(shareable: Shareable) -> str:
    value = shareable.get_header(Header.HELD)
    if not isinstance(value, str) or not value.isalnum() or not value.isascii() or len(value) > 64:
        raise rejected(Reason.SCHEMA, "no digest of what the site holds")
    return value
