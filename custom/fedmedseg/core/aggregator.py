"""The guarded aggregator every system's server rule inherits: it checks everything before it touches anything.

It never raises in ``accept`` (FLARE would drop the other sites' results), sums in sorted site order (equal
bytes whatever the order of arrival), and keeps no result beyond its round.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.aggregator import Aggregator

from fedmedseg.core.averaging import alike, normalised_weights, single_threaded, weighted_mean
from fedmedseg.core.ckks import SHARES, whole_shares
from fedmedseg.core.contribution import Contribution, judge, rejected
from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.exchange import Pool, canonical
from fedmedseg.core.memory import free_messages
from fedmedseg.core.personal import Personal
from fedmedseg.core.place import place_of
from fedmedseg.core.question import Round
from fedmedseg.core.robust import clipped, combined, require_enough, running_median, survey
from fedmedseg.core.sealing import Sealing
from fedmedseg.core.spilled import FROM_BYTES, SpilledTensors, holds_fetched
from fedmedseg.core.wire import Schema, tensor_bytes


class GuardedAggregator(Aggregator):
    """Validates replies; a subclass adds ``combine``, one rule over state dicts."""

    separates = False
    """Whether the rule copes with replies that lack separable tensors (``StageContract.separable``)."""

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
        """Forget the round before and judge replies by ``round`` from now on.

        Raises:
            TypeError: replies of this stage may lack tensors, with which the rule does not cope.
        """
        if round.contract.separable and not self.separates:
            raise TypeError(f"{type(self).__name__} takes whole replies only; {round.stage} may get parts")
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
                contribution = _spilled(self._judged(site, shareable, fl_ctx), fl_ctx)
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
            measured=self.measured(current.shared),
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

    def measured(self, names: Iterable[str]) -> list[str]:
        """Those of the returned tensors that count in an update's length; here those that are compared."""
        return self.comparable(names)

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

    def _judged(self, site: str, shareable: Shareable, fl_ctx: FLContext) -> Contribution:
        if self.round is None or self._closed:
            raise rejected(Reason.STALE, "no round is open")
        if site in self.contributions:
            raise rejected(Reason.ALREADY_RECEIVED, "a second reply in one round")
        return judge(self.round, site, shareable, take_over=lambda tensors: _taken_over(tensors, fl_ctx))


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


def _spilled(contribution: Contribution, fl_ctx: FLContext) -> Contribution:
    """A reply whose tensors wait on the disk for the end of the round, where they are large.

    Without a job, as in one process for all sites, there is no folder to write to, and no server to spare.
    """
    on_disk = contribution.differences
    if not isinstance(on_disk, SpilledTensors):
        if tensor_bytes(on_disk) < FROM_BYTES or fl_ctx.get_job_id() is None:
            return contribution
        try:
            on_disk = SpilledTensors(on_disk, place_of(fl_ctx).run)
        except OSError as error:
            raise _no_room(error) from None
    # the messages of other sites, sent and received, which would wait for Python's collector
    free_messages()
    carried = on_disk.nbytes if contribution.carried is None else contribution.carried
    return dataclasses.replace(contribution, differences=on_disk, carried=carried)


def _taken_over(tensors: Any, fl_ctx: FLContext) -> Any:
    if not holds_fetched(tensors):
        return tensors
    try:
        return SpilledTensors(tensors, place_of(fl_ctx).run)
    except OSError as error:
        raise _no_room(error) from None


def _no_room(error: OSError) -> FedMedSegError:
    # the reply is good: whoever reads the reason must look at the server
    return rejected(Reason.DISK, f"the server could not keep it ({type(error).__name__})")


def _sender(fl_ctx: FLContext) -> str:
    peer = fl_ctx.get_peer_context()
    name = peer.get_identity_name() if peer is not None else ""
    return name or "unknown"
