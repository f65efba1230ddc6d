"""What the server asks of the sites in one round, and what a reply must match to count in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch

from fedmedseg.core.federation_settings import RobustSection
from fedmedseg.core.personal import Payload, Personal, extended, joined, payload_of, payloads
from fedmedseg.core.sealing import Sealing
from fedmedseg.core.transport import Codec
from fedmedseg.core.wire import Schema, StageContract


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
    ) -> Round:
        """Round ``number`` of a stage from all shared tensors, their schema, and the sites' own tensors.

        ``exchanged`` is what each site gets of the others' features, where the stage exchanges any. Sites that are
        ``behind`` are sent the contract's ``extra`` tensors besides. ``down`` encodes what is sent.
        """
        part, returned = contract.sent_in(number), contract.returned_in(number)
        sent = {**part.of(shared), **(sealing.sent if sealing is not None else {})}
        common = payload_of(sent, down)
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
        """Checksum of what ``site`` was sent."""
        return self.personal[site].base if site in self.personal else self.base

    def start_of(self, site: str) -> Mapping[str, torch.Tensor]:
        """The tensors, named as ``shared``, that the differences of ``site`` are added to: what it was sent, but for
        what rounding on the way took of that."""
        if site not in self.personal:
            return self.shared
        given = self.personal[site].kept
        return {name: given.get(name, tensor) for name, tensor in self.shared.items()}
