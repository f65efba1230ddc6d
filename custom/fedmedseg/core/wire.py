"""All that ever crosses the wire: names, shapes, types, direction and sender. What is not declared here is not sent.

| direction | sender | content |
|---|---|---|
| server -> site | workflow | task header (`Header`), and the shared tensors where the stage's contract says so |
| server -> one site | workflow | the same with that site's own tensors for shared ones, where the contract says so |
| server -> one site | workflow | the contract's extra tensors besides, where that site fell behind |
| server -> site | workflow | under encryption: the plain tensors of the start, and encrypted sums to be added to them |
| site -> server | executor | reply header, differences of exactly the shared tensors or nothing, and declared metrics |
| site -> server | executor | of the contract's separable tensors: none of those that did not move at the site |
| server -> one site | workflow | where the stage's contract declares an exchange: the other sites' features |
| site -> server | executor | the same: this site's features with their part ids, in no order (``core.exchange``) |
| site -> server | executor | where the contract says so: SHA-256 of what the site worked out without being sent it |
| server -> site | workflow | under a transport_down other than fp32: the shared tensors encoded (``core.transport``) |
| site -> server | executor | under a transport other than fp32: the same, encoded once the filters are through |
| site -> server | privacy filter | under encryption: one encrypted entry in place of the differences |
| site -> server | executor | a short reason where a task failed: a code and a field, never a path or a case |
| site -> server | executor | the same where the site declines; a local person's own few words where they refuse a job |
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.exchange import Exchange

DECLINING = frozenset({Reason.NO_CASES, Reason.DENIED})
"""Reasons with which a site declares that it takes no part in a stage: the quorum then counts the others."""
LASTING = frozenset({Reason.VERSION})
"""Reasons that asking again cannot mend. Such a site takes no part in the stage, and as it never said that it had
nothing to give, as one that declines does, the quorum goes on counting it: a study that wants all sites stops."""
MOST_METRICS = 4096
"""Of one reply: three figures of 254 structures under four models are fewer."""
LONGEST_NAME = 200


class Header:
    """Header names of tasks and replies."""

    RUN = "fedmedseg.run"
    STAGE = "fedmedseg.stage"
    ROUND = "fedmedseg.round"
    ROUNDS = "fedmedseg.rounds"
    BASE = "fedmedseg.base"
    """CRC-32 of the shared tensors a task was sent with, decoded where they were encoded: against accidents, and as the
    name of what a reply was trained from. It proves nothing that TLS and the nonce do not; SHA-256 of a large model
    would take each site as long as the transport."""
    NONCE = "fedmedseg.nonce"
    """Drawn per task and echoed once: a reply that was seen before is refused."""
    SCHEMA = "fedmedseg.schema"
    EXPERIMENT = "fedmedseg.experiment"
    VERSIONS = "fedmedseg.versions"
    """The server's versions by package (``core.versions``); a site with others takes no part."""
    KEY = "fedmedseg.key"
    """Under encryption: SHA-256 of the sites' context, so that a site with another key knows (``encryption_keys``)."""
    REASON = "fedmedseg.reason"
    DECLINED = "fedmedseg.declined"
    """The site takes no part in this stage (``DECLINING``): neither an error nor counted to the quorum."""
    EXTRA = "fedmedseg.extra"
    """Of a task: it carries the tensors of the contract's ``extra`` besides, for this site alone."""
    HELD = "fedmedseg.held"
    """Of a reply whose contract says ``held``: SHA-256 of what the site worked out instead of being sent it."""


class Meta:
    """Entries of a reply's DXO meta."""

    EXAMPLES = "examples"
    STEPS = "steps"
    TRAIN_SECONDS = "train_seconds"
    METRICS = "metrics"


@dataclass(frozen=True)
class Part:
    """Some of the shared tensors, by the beginning of their names; none with ``within`` empty."""

    within: tuple[str, ...] = ("",)
    without: tuple[str, ...] = ()

    def holds(self, name: str) -> bool:
        """Whether the tensor called ``name`` belongs to this part."""
        return name.startswith(self.within) and not (self.without and name.startswith(self.without))

    def of(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of this part; not copied."""
        return {name: tensor for name, tensor in tensors.items() if self.holds(name)}


WHOLE = Part()

ByRound = Callable[[int], Part]
"""Which tensors, by the number of the round (from 0)."""


@dataclass(frozen=True)
class Either:
    """The tensors of one part or the other."""

    one: Part | Either
    other: Part | Either

    def holds(self, name: str) -> bool:
        """Whether one of the parts holds it."""
        return self.one.holds(name) or self.other.holds(name)

    def of(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of both; not copied."""
        return {name: tensor for name, tensor in tensors.items() if self.holds(name)}


@dataclass(frozen=True)
class StageContract:
    """What a stage sends, what its replies carry and so what they are judged by."""

    sends: Literal["shared", "nothing"]
    returns: Literal["shared", "metrics"]
    metrics: tuple[str, ...] = ()
    """fnmatch patterns of the metric names that may leave a site."""
    counts: tuple[str, ...] = ()
    """Patterns of those metrics that count cases: a site withholds small ones (``privacy.filters``)."""
    sent: Part = WHOLE
    """Which of the shared tensors go to a site."""
    sent_later: Part | None = None
    """Which of them in all rounds after the first; unset: the same."""
    sent_at: ByRound | None = None
    """Which of ``sent`` go to a site, where that differs from round to round; instead of ``sent_later``."""
    returned: Part = WHOLE
    """Of which of the shared tensors the differences come back: among those sent, or known to a site without."""
    returned_at: ByRound | None = None
    """Which of ``returned`` come back, where that differs from round to round."""
    separable: tuple[str, ...] = ()
    """Beginnings of the names of tensors that belong together: a site where none of them moved returns none of them."""
    extra: Part | None = None
    """What a single site is sent besides where it fell behind the others (``GuardedAggregator.behind``)."""
    held: bool = False
    """Whether a reply tells the digest of what the site holds without having been sent it."""
    personal: bool = False
    """Whether a site for which the server keeps tensors of its own is sent those, and the rule may make new ones."""
    weighting: Literal["cases", "equal"] = "cases"
    """What a site weighs in the aggregate: its cases, or as much as every other that counts any."""
    collects: bool = False
    """Whether what comes back is kept by site and changes no shared tensor. It is a gift: a round that every site
    declines is no failure, and one that changes nothing no lack of progress."""
    exchange: Exchange | None = None
    """Features that come back beside the differences, and the others' that go to each site."""

    def __post_init__(self) -> None:
        if self.exchange is not None and (self.sends != "shared" or self.returns != "shared"):
            raise ValueError("features are exchanged in a stage that sends and returns shared tensors")

    def sent_in(self, number: int) -> Part:
        """Which of the shared tensors go to a site in round ``number`` (from 0)."""
        if self.sent_at is not None:
            return self.sent_at(number)
        return self.sent if number == 0 or self.sent_later is None else self.sent_later

    def returned_in(self, number: int) -> Part:
        """Of which of them the differences come back in round ``number`` (from 0)."""
        return self.returned if self.returned_at is None else self.returned_at(number)

    def moved(self, differences: Mapping[str, torch.Tensor]) -> Part:
        """Those of ``differences`` that a reply holds: all but the separable ones that are 0 throughout."""
        still = {
            group: not any(bool(tensor.any()) for name, tensor in differences.items() if name.startswith(group))
            for group in self.separable
        }
        return Part(without=tuple(group for group, it_is in still.items() if it_is))

    def replies_of(self, schema: Schema) -> dict[str, Schema]:
        """Digest -> schema of every reply that may come of ``schema``: without none, some or all separable tensors."""
        groups = self.separable
        chosen = (left for number in range(len(groups) + 1) for left in itertools.combinations(groups, number))
        schemas = (schema.part(Part(without=left)) if left else schema for left in chosen)
        return {one.digest: one for one in schemas}

    def check_metrics(self, metrics: Mapping[str, float]) -> None:
        """Raise unless every metric is declared and a finite number, and they are no flood.

        Raises:
            FedMedSegError: reason SCHEMA, naming the metric, or OVERSIZE.
        """
        if len(metrics) > MOST_METRICS:
            raise FedMedSegError(
                "metrics", got=f"{len(metrics)} metrics", expected=f"at most {MOST_METRICS}", reason=Reason.OVERSIZE
            )
        for name, value in metrics.items():
            declared = isinstance(name, str) and any(fnmatch.fnmatchcase(name, pattern) for pattern in self.metrics)
            if not declared or len(name) > LONGEST_NAME or not name.isprintable():
                raise FedMedSegError(
                    "metric",
                    got=repr(name)[:80],
                    expected=f"one of {', '.join(self.metrics)}, printable and at most {LONGEST_NAME} characters long",
                    remedy="declare it in the system's plan",
                    reason=Reason.SCHEMA,
                )
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise FedMedSegError(
                    f"metric {name}", got=repr(value)[:40], expected="a finite number", reason=Reason.SCHEMA
                )


@dataclass(frozen=True)
class TensorSpec:
    """Shape and type of one shared tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


class Schema:
    """The exact set of shared tensors of one experiment. Server and sites derive it from the same settings."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.specs = {name: TensorSpec(tuple(tensors[name].shape), tensors[name].dtype) for name in sorted(tensors)}
        for name, spec in self.specs.items():
            if not spec.dtype.is_floating_point:
                raise FedMedSegError(
                    name,
                    got=str(spec.dtype),
                    expected="a floating-point tensor",
                    remedy="keep integer buffers off the wire",
                    reason=Reason.SCHEMA,
                )

    def part(self, part: Part | Either) -> Schema:
        """The schema of some of the tensors."""
        chosen = Schema({})
        chosen.specs = {name: spec for name, spec in self.specs.items() if part.holds(name)}
        return chosen

    def only(self, names: Collection[str]) -> Schema:
        """The schema of those of the tensors that are among ``names``."""
        chosen = Schema({})
        chosen.specs = {name: spec for name, spec in self.specs.items() if name in names}
        return chosen

    @property
    def nbytes(self) -> int:
        """Bytes of all shared tensors."""
        return sum(spec.nbytes for spec in self.specs.values())

    @property
    def digest(self) -> str:
        """SHA-256 over names, shapes and types."""
        lines = "\n".join(f"{name}|{spec.shape}|{spec.dtype}" for name, spec in self.specs.items())
        return hashlib.sha256(lines.encode()).hexdigest()

    def problem(self, tensors: object, *, finite: bool = True) -> tuple[Reason, str] | None:
        """The first reason why ``tensors`` may not be used, or None.

        One pass: the number of keys, then names, types, shapes, and finiteness by one reduction per tensor, where
        ``finite`` does not leave that to the caller. Nothing is changed and nothing is raised, whatever the object is.
        """
        if not isinstance(tensors, Mapping):
            return Reason.TENSOR_TYPE, f"a {type(tensors).__name__} instead of a mapping of tensors"
        if not tensors and self.specs:
            return Reason.EMPTY, "no tensors"
        if len(tensors) > 2 * len(self.specs):
            return Reason.OVERSIZE, f"{len(tensors)} tensors, {len(self.specs)} declared"
        if tensors.keys() != self.specs.keys():
            unknown = [name for name in tensors if name not in self.specs]
            if unknown:
                return Reason.UNKNOWN_TENSORS, f"{len(unknown)} undeclared tensor(s)"
            return Reason.MISSING_TENSORS, f"{len(self.specs) - len(tensors)} declared tensor(s) missing"
        for name, spec in self.specs.items():
            tensor = tensors[name]
            if not isinstance(tensor, torch.Tensor):
                return Reason.TENSOR_TYPE, f"{name} is a {type(tensor).__name__}, not a torch tensor"
            dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
            if not dense or tensor.dtype != spec.dtype:
                return Reason.TENSOR_TYPE, f"{name} is {tensor.dtype}, declared {spec.dtype}"
            if tuple(tensor.shape) != spec.shape:
                return Reason.TENSOR_SHAPE, f"{name} is {tuple(tensor.shape)}, declared {spec.shape}"
        for name in self.specs if finite else ():
            if not is_finite(tensors[name]):
                return Reason.NOT_FINITE, f"{name} holds NaN or infinity"
        return None

    def require(self, tensors: object, *, sender: str) -> None:
        """Raise where ``problem`` finds one.

        Raises:
            FedMedSegError: naming the sender and the first problem.
        """
        found = self.problem(tensors)
        if found is not None:
            raise FedMedSegError(
                f"tensors from {sender}",
                got=found[1],
                expected=f"the {len(self.specs)} tensors this experiment declares",
                reason=found[0],
            )


def differences_to(
    base: Mapping[str, torch.Tensor], trained: Mapping[str, torch.Tensor], schema: Schema
) -> dict[str, torch.Tensor]:
    """What a reply carries: trained minus sent, on the CPU, of exactly the tensors of ``schema``.

    Raises:
        FedMedSegError: a difference is not finite.
    """
    # contiguous whatever the layout it was trained in: a payload has no other
    differences = {name: (trained[name].detach().cpu() - base[name]).contiguous() for name in sorted(schema.specs)}
    schema.require(differences, sender="this site")
    return differences


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether every element is finite: one sum decides, the exact scan runs only where the sum overflows."""
    if not tensor.numel() or bool(torch.isfinite(tensor.sum())):
        return True
    return bool(torch.isfinite(tensor).all())


def tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Bytes of the dense tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
