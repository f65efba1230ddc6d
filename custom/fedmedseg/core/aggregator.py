"""The guarded aggregator every system's server rule inherits: it checks everything before it touches anything.

It never raises in ``accept`` (FLARE would drop the other sites' results), sums in sorted site order (equal
bytes whatever the order of arrival), and keeps no result beyond its round.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.aggregator import Aggregator

from fedmedseg.core.ckks import SHARES, whole_shares
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.exchange import Pool, canonical
from fedmedseg.core.exchange import split as split_features
from fedmedseg.core.federation_settings import RobustSection
from fedmedseg.core.memory import free_messages
from fedmedseg.core.personal import Payload, Personal, extended, joined, payload_of, payloads
from fedmedseg.core.place import place_of
from fedmedseg.core.robust import clipped, combined, norms_of, require_enough, running_median, survey
from fedmedseg.core.sealing import Sealing
from fedmedseg.core.spilled import FROM_BYTES, SpilledTensors
from fedmedseg.core.transport import Codec
from fedmedseg.core.wire import Header, Meta, Schema, StageContract, is_finite, tensor_bytes

WEIGHT_CAP = 10.0
"""No site weighs more than this many times the (low) median of its round."""
BLOCK = 1 << 16
"""Numbers that are summed at a time."""
MOST_CASES = 2**53
"""Above this a float no longer counts: such a number is no count of cases."""


@dataclass(frozen=True)
class Round:
    """What a reply must match to count in this round."""

    run: str
    stage: str
    number: int
    base: str
    nonce: str
    contract: StageContract
    schema: Schema
    shared: Mapping[str, torch.Tensor] = field(repr=False)
    """The tensors whose differences come back, as they were before the round."""
    sent: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    """The tensors that every site without tensors of its own is sent, as it decodes them."""
    encoded: Mapping[str, torch.Tensor] | None = field(default=None, repr=False)
    """What travels in place of ``sent``, where that does not travel as it is."""
    personal: Mapping[str, Payload] = field(default_factory=dict, repr=False)
    """Per site that was sent tensors of its own: what it was sent."""
    whole: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    """All shared tensors as they were before the round, also those that are neither sent nor returned."""
    sealing: Sealing | None = field(default=None, repr=False)
    """Where replies come encrypted: what they are added to. ``shared`` is then the start alone."""
    robust: RobustSection = field(default_factory=lambda: RobustSection.model_validate({}))
    """What bounds the influence of single sites."""
    medians: tuple[float, ...] = ()
    """Median lengths of the sites' updates in the stage's earlier rounds."""
    codec: Codec | None = field(default=None, repr=False)
    """What decodes the differences, where they do not travel as they are."""

    @classmethod
    def begin(
        cls,
        *,
        run: str,
        stage: str,
        number: int,
        nonce: str,
        contract: StageContract,
        schema: Schema,
        shared: Mapping[str, torch.Tensor],
        personal: Personal,
        exchanged: Personal | None = None,
        sealing: Sealing | None = None,
        behind: Collection[str] = (),
        robust: RobustSection | None = None,
        medians: tuple[float, ...] = (),
        codec: Codec | None = None,
        down: Codec | None = None,
        known: str | None = None,
    ) -> Round:
        """Round ``number`` of a stage from all shared tensors, their schema, and the sites' own tensors.

        ``exchanged`` is what each site gets of the others' features, where the stage exchanges any. Sites that are
        ``behind`` are sent the contract's ``extra`` tensors besides. ``down`` encodes what is sent. ``known`` is the
        digest of ``shared``, where it was taken before: that of a large model takes as long as the round's arithmetic.
        """
        part, returned = contract.sent_in(number), contract.returned_in(number)
        sent = {**part.of(shared), **(sealing.sent if sealing is not None else {})}
        common = payload_of(sent, down, known=known if sealing is None and len(sent) == len(shared) else None)
        single = joined(personal if contract.personal else {}, exchanged or {})
        own = payloads(sent, single, part, codec=down, common=common)
        if contract.extra is not None and behind:
            own = extended(own, sent, contract.extra.of(shared), behind)
        return cls(
            run=run,
            stage=stage,
            number=number,
            base=common.base,
            nonce=nonce,
            contract=contract,
            schema=schema.part(returned),
            shared=returned.of(shared),
            sent=common.tensors,
            encoded=common.encoded,
            personal=own,
            whole=dict(shared),
            sealing=sealing,
            robust=robust or RobustSection.model_validate({}),
            medians=medians,
            codec=codec,
        )

    def given_to(self, site: str) -> Mapping[str, torch.Tensor]:
        """The tensors that ``site`` is sent."""
        if self.contract.sends == "nothing":
            return {}
        return self.personal[site].tensors if site in self.personal else self.sent

    def message_to(self, site: str) -> Mapping[str, torch.Tensor]:
        """What crosses the wire to bring ``site`` these."""
        if self.contract.sends == "nothing":
            return {}
        return self.personal[site].message if site in self.personal else self.message

    @property
    def message(self) -> Mapping[str, torch.Tensor]:
        """The same for every site without tensors of its own."""
        return self.sent if self.encoded is None else self.encoded

    def base_of(self, site: str) -> str:
        """Digest of what ``site`` was sent."""
        return self.personal[site].base if site in self.personal else self.base

    def start_of(self, site: str) -> Mapping[str, torch.Tensor]:
        """The tensors, named as ``shared``, that the differences of ``site`` are added to: what it was sent, but for
        what rounding on the way took of that."""
        if site not in self.personal:
            return self.shared
        given = self.personal[site].kept
        return {name: given.get(name, tensor) for name, tensor in self.shared.items()}


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


class GuardedAggregator(Aggregator):
    """Validates replies; a subclass adds ``combine``, one rule over state dicts."""

    @property
    def needs_plain(self) -> str:
        """Why this rule cannot do with encrypted replies; empty where it is their weighted mean and nothing else."""
        return f"{type(self).__name__} reads the sites' differences"

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self.round: Round | None = None
        self._closed = True
        self.contributions: dict[str, Contribution] = {}
        self.rejections: dict[str, str] = {}
        self.weights: dict[str, float] = {}
        self.notes: dict[str, Any] = {}
        self.personal: Personal = {}
        """New tensors of single sites, from the round that was aggregated last."""
        self.exchanged: Pool = {}
        """What each site that was heard in that round gave to the exchange."""
        self.replaced: Mapping[str, torch.Tensor] = {}
        """Shared tensors that ``combine`` gives as they are to be, bit for bit, not as differences to what was."""
        self.still = False
        """Whether all differences were 0, where ``replaced`` may have moved all the same."""

    def open_round(self, round: Round) -> None:
        """Forget the round before and judge replies by ``round`` from now on."""
        with self._lock:
            self.round, self._closed = round, False
            self.contributions, self.rejections, self.weights, self.notes = {}, {}, {}, {}
            self.personal, self.exchanged, self.replaced, self.still = {}, {}, {}, False

    def behind(
        self, history: Sequence[Mapping[str, Any]], *, stage: str, number: int, sites: Collection[str]
    ) -> Collection[str]:
        """Those of ``sites`` that are sent the contract's ``extra`` tensors before round ``number`` of ``stage``.

        ``history`` holds the records of the rounds so far, with this rule's ``notes`` in them, also those of a run
        that is resumed.
        """
        return ()

    def renew(self, nonce: str) -> None:
        """Ask again within the same round: what was accepted stays, earlier rejections may be made good."""
        with self._lock:
            assert self.round is not None
            self.round = Round(**{**self.round.__dict__, "nonce": nonce})

    def accept(self, shareable: Shareable, fl_ctx: FLContext) -> bool:
        """Accept or reject one reply; never raises, and a rejected reply leaves no trace in the aggregate."""
        site = _sender(fl_ctx)
        with self._lock:
            try:
                contribution = _spilled(self._judge(site, shareable), fl_ctx)
            except FedMedSegError as error:
                problem = f"{error.reason}: {error.got or error.field}"
            except Exception as error:
                # whatever a hostile or broken reply triggers must cost that reply alone
                problem = f"{Reason.UNREADABLE}: {type(error).__name__}"
            else:
                self.contributions[site] = contribution
                self.rejections.pop(site, None)
                return True
            if site not in self.contributions:
                self.rejections[site] = problem
            number = "?" if self.round is None else self.round.number
            self.log_warning(fl_ctx, f"round {number}: reply of {site} rejected: {problem}")
            return False

    def aggregate(self, fl_ctx: FLContext) -> Shareable:
        """Combine what was accepted, in sorted site order, into differences to the shared model.

        What comes later is stale: the round's record must not call accepted what is in no aggregate.
        """
        with self._lock:
            assert self.round is not None, "open_round was not called"
            self._closed = True
            ordered = {site: self.contributions[site] for site in sorted(self.contributions)}
            differences: Mapping[str, torch.Tensor] = {}
            if ordered and self.round.contract.returns == "shared":
                counts = {site: c.examples for site, c in ordered.items()}
                if self.round.contract.weighting == "equal" or self.round.robust.rule != "mean":
                    counts = alike(counts)
                self.weights, said = normalised_weights(counts)
                for line in said:
                    self.log_warning(fl_ctx, f"round {self.round.number}: {line}")
                self.notes["weighting"] = said
                # a site without cases is left out, so that no rule has to cope with a weight of zero
                counted: Mapping[str, Contribution] = {site: c for site, c in ordered.items() if self.weights[site] > 0}
                if self.round.sealing is not None:
                    return self._add_sealed(self.round.sealing, counted)
                with single_threaded():
                    if not self.round.contract.collects:
                        counted = self._compared(self.round, counted, fl_ctx)
                    weights = {site: self.weights[site] for site in counted}
                    differences = self.combine(self.round.shared, counted, weights)
                    if self.round.contract.personal:
                        self.personal = self.personalise(self.round.shared, counted)
                self.exchanged = {site: canonical(c.features) for site, c in counted.items() if c.features}
                self.round.schema.require(differences, sender="the aggregation rule")
                if self.round.contract.personal:
                    for tensors in self.personal.values():
                        self.round.schema.require({**self.round.shared, **tensors}, sender="the aggregation rule")
                if self.replaced:
                    return self._replace(self.round, differences)
            return DXO(data_kind=DataKind.WEIGHT_DIFF, data=dict(differences)).to_shareable()

    def _compared(
        self, current: Round, counted: Mapping[str, Contribution], fl_ctx: FLContext
    ) -> Mapping[str, Contribution]:
        """Note how the sites' updates lie to each other, name outliers, and clip where the study wants it.

        Raises:
            FedMedSegError: too few sites for the study's rule (reason ROBUST).
        """
        require_enough(len(counted), current.robust)
        found = survey(
            {site: c.differences for site, c in counted.items()},
            self.comparable(current.shared),
            norms={site: c.norms for site, c in counted.items()},
            offset=current.number,
        )
        norms, limit = dict(found.norms), running_median(current.medians, found.median_norm)
        self.notes["updates"] = {"norms": norms, "median": found.median_norm, "agreement": found.agreement}
        self.notes["outliers"] = {site: "; ".join(why) for site, why in found.outliers().items()}
        for site, why in self.notes["outliers"].items():
            self.log_warning(fl_ctx, f"round {current.number}: {site}: {why}")
        if current.robust.clip == "none":
            return counted
        self.notes["updates"]["limit"] = limit
        return {
            site: dataclasses.replace(c, differences=clipped(c.differences, norm=norms[site], limit=limit))
            for site, c in counted.items()
        }

    def comparable(self, names: Iterable[str]) -> list[str]:
        """Those of the returned tensors that every site trains and by which updates can be compared; here all."""
        return list(names)

    def mean(
        self, differences: Mapping[str, Mapping[str, torch.Tensor]], weights: Mapping[str, float]
    ) -> dict[str, torch.Tensor]:
        """The weighted mean of sites' differences, or what the study has in its place (``federation.robust``).

        Raises:
            FedMedSegError: these are too few sites for the study's rule (reason ROBUST).
        """
        if self.round is None or self.round.robust.rule == "mean":
            return weighted_mean(differences, weights)
        return combined(differences, self.round.robust)

    def _replace(self, current: Round, differences: Mapping[str, torch.Tensor]) -> Shareable:
        """All shared tensors as they are to be: a sum with a difference would not give ``replaced`` bit for bit."""
        self.still = not any(bool(difference.any()) for difference in differences.values())
        added = {name: current.whole[name] + difference for name, difference in differences.items()}
        kept = {**current.whole, **added, **self.replaced}
        Schema(current.whole).require(kept, sender="the aggregation rule")
        return DXO(data_kind=DataKind.WEIGHTS, data=kept).to_shareable()

    def _add_sealed(self, sealing: Sealing, counted: Mapping[str, Contribution]) -> Shareable:
        """The weighted mean of encrypted replies, added to what the server keeps; the rule is asked for nothing."""
        if self.needs_plain:
            raise TypeError(self.needs_plain)
        shares = whole_shares({site: self.weights[site] for site in counted})
        self.weights = {site: shares.get(site, 0) / SHARES for site in self.weights}
        kept = sealing.added({site: c.differences for site, c in counted.items()}, shares)
        # not differences: FLARE's generator would add bytes to bytes
        return DXO(data_kind=DataKind.WEIGHTS, data=kept).to_shareable()

    def reset(self, fl_ctx: FLContext) -> None:
        """Let go of the round's tensors."""
        with self._lock:
            self.contributions, self.personal, self.exchanged, self.replaced = {}, {}, {}, {}

    def combine(
        self,
        shared: Mapping[str, torch.Tensor],
        contributions: Mapping[str, Contribution],
        weights: Mapping[str, float],
    ) -> Mapping[str, torch.Tensor]:
        """The system's server rule: new differences to ``shared`` from the sites' differences.

        ``contributions`` come in sorted site order and ``weights`` sum to 1. Figures worth recording go to
        ``self.notes``. Tensors that must be exact go to ``self.replaced``, whatever the differences of their names.
        """
        raise TypeError(f"{type(self).__name__} judges metrics only; a stage that returns tensors needs a rule")

    def personalise(self, shared: Mapping[str, torch.Tensor], contributions: Mapping[str, Contribution]) -> Personal:
        """New tensors for single sites, asked for after ``combine`` where the stage's contract is personal.

        Tensors, not differences, named as some or all of ``shared``; each site's own go to that site alone from the
        next round on. ``self.round.start_of(site)`` is what a site's differences are added to.
        """
        raise TypeError(f"{type(self).__name__} makes no personal tensors; a stage that sends them needs a rule")

    def _judge(self, site: str, shareable: Shareable) -> Contribution:
        current = self.round
        if current is None or self._closed:
            raise _rejected(Reason.STALE, "no round is open")
        if site in self.contributions:
            raise _rejected(Reason.ALREADY_RECEIVED, "a second reply in one round")
        for header, expected in (
            (Header.RUN, current.run),
            (Header.STAGE, current.stage),
            (Header.ROUND, current.number),
            (Header.BASE, current.base_of(site)),
            (Header.NONCE, current.nonce),
        ):
            if shareable.get_header(header) != expected:
                raise _rejected(Reason.STALE, f"{header.removeprefix('fedmedseg.')} of another task")
        if shareable.get_header(Header.SCHEMA) != current.schema.digest:
            raise _rejected(Reason.SCHEMA, "another schema")
        dxo = from_shareable(shareable)
        metrics = dxo.get_meta_prop(Meta.METRICS, {})
        if not isinstance(metrics, dict):
            raise _rejected(Reason.SCHEMA, "metrics that are no mapping")
        current.contract.check_metrics(metrics)
        features: Mapping[str, torch.Tensor] = {}
        carried: int | None = None
        if current.contract.returns == "shared":
            if dxo.data_kind != DataKind.WEIGHT_DIFF:
                raise _rejected(Reason.SCHEMA, "weights instead of differences")
            differences = dxo.data
            if (exchange := current.contract.exchange) is not None and isinstance(differences, Mapping):
                differences, features = split_features(differences)
                if (found := exchange.problem(features)) is not None:
                    raise _rejected(*found)
            if current.codec is not None:
                if (found := current.codec.problem(differences)) is not None:
                    raise _rejected(*found)
                carried, differences = tensor_bytes(differences), current.codec.decode(differences)
            sealing, schema = current.sealing, current.schema
            found = schema.problem(differences, finite=False) if sealing is None else sealing.problem(differences)
            if found is not None:
                raise _rejected(*found)
            norms = norms_of(differences) if sealing is None else {}
            for name, norm in norms.items():
                # a finite reply whose squares overflow would make every rule that takes norms return NaN
                if not math.isfinite(norm):
                    overflows = is_finite(differences[name])
                    what = f"the norm of {name} overflows" if overflows else f"{name} holds NaN or infinity"
                    raise _rejected(Reason.NOT_FINITE, what)
        else:
            if dxo.data:
                raise _rejected(Reason.UNKNOWN_TENSORS, "tensors in a stage that returns metrics")
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


class MetricsAggregator(GuardedAggregator):
    """For stages whose replies carry metrics or nothing: local fine-tuning, evaluation."""


class SharedKeysAggregator(GuardedAggregator):
    """Weighted mean of the shared tensors' differences (FedAvg, McMahan et al. 2017, over the declared keys)."""

    needs_plain = ""

    def combine(
        self,
        shared: Mapping[str, torch.Tensor],
        contributions: Mapping[str, Contribution],
        weights: Mapping[str, float],
    ) -> Mapping[str, torch.Tensor]:
        """Sum of weight times difference, per tensor."""
        return self.mean({site: c.differences for site, c in contributions.items()}, weights)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Norms and products are summed in parts, one per thread: the aggregate must not depend on the server's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def weighted_mean(
    differences: Mapping[str, Mapping[str, torch.Tensor]], weights: Mapping[str, float]
) -> dict[str, torch.Tensor]:
    """Per-tensor weighted sum over sites in sorted order, accumulated in float32 or wider.

    Block by block, so that the sum stays in the processor's cache while the sites are added to it.
    """
    sites = sorted(differences)
    result: dict[str, torch.Tensor] = {}
    for name, first in differences[sites[0]].items():
        total = torch.empty(first.numel(), dtype=torch.promote_types(first.dtype, torch.float32), device=first.device)
        flat = [(differences[site][name].reshape(-1), weights[site]) for site in sites]
        for begin in range(0, first.numel(), BLOCK):
            part = total[begin : begin + BLOCK].zero_()
            for tensor, weight in flat:
                part.add_(tensor[begin : begin + BLOCK].to(total.dtype), alpha=weight)
        result[name] = total.reshape(first.shape).to(first.dtype)
    return result


def normalised_weights(examples: Mapping[str, int | None]) -> tuple[dict[str, float], list[str]]:
    """Weights that sum to 1, and what had to be said about them.

    A site weighs as many cases as it has, at most ``WEIGHT_CAP`` times the low median of the round. Where one
    site suppresses its count, all weigh the same.
    """
    sites = sorted(examples)
    if any(examples[site] is None for site in sites):
        hidden = ", ".join(site for site in sites if examples[site] is None)
        return {site: 1.0 / len(sites) for site in sites}, [f"equal weights: {hidden} suppressed the count"]
    counts = {site: float(examples[site] or 0) for site in sites}
    cap = WEIGHT_CAP * statistics.median_low(counts.values())
    said = []
    for site in sites:
        if cap and counts[site] > cap:
            said.append(f"weight of {site} capped from {counts[site]:g} to {cap:g}")
            counts[site] = cap
    total = sum(counts.values())
    if not total:
        return {site: 1.0 / len(sites) for site in sites}, ["equal weights: no site counted any case"]
    return {site: count / total for site, count in counts.items()}, said


def alike(examples: Mapping[str, int | None]) -> dict[str, int | None]:
    """One case for every site that has any or suppresses its count: what equal weights follow from."""
    return {site: 0 if count == 0 else 1 for site, count in examples.items()}


def _spilled(contribution: Contribution, fl_ctx: FLContext) -> Contribution:
    """A reply whose tensors wait on the disk for the end of the round, where they are large.

    Without a job, as in one process for all sites, there is no folder to write to, and no server to spare.
    """
    large = tensor_bytes(contribution.differences) >= FROM_BYTES
    if not large or fl_ctx.get_job_id() is None:
        return contribution
    try:
        on_disk = SpilledTensors(contribution.differences, place_of(fl_ctx).run)
    except OSError as error:
        # the reply is good: whoever reads the reason must look at the server
        raise _rejected(Reason.DISK, f"the server could not keep it ({type(error).__name__})") from None
    # the messages of other sites, sent and received, which would wait for Python's collector
    free_messages()
    own = contribution.nbytes - tensor_bytes(contribution.features)
    return dataclasses.replace(contribution, differences=on_disk, carried=own)


def _count(value: object, name: str) -> int | None:
    return None if value is None else int(_number(value, name))


def _number(value: object, name: str) -> float:
    # the comparison comes before any conversion: a huge integer fits no float
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_CASES:
        raise _rejected(Reason.SCHEMA, f"{name} {str(value)[:20]}")
    return float(value)


def _held(shareable: Shareable) -> str:
    value = shareable.get_header(Header.HELD)
    if not isinstance(value, str) or not value.isalnum() or not value.isascii() or len(value) > 64:
        raise _rejected(Reason.SCHEMA, "no digest of what the site holds")
    return value


def _rejected(reason: Reason, what: str) -> FedMedSegError:
    return FedMedSegError("reply", got=what, reason=reason)


def _sender(fl_ctx: FLContext) -> str:
    peer = fl_ctx.get_peer_context()
    name = peer.get_identity_name() if peer is not None else ""
    return name or "unknown"
