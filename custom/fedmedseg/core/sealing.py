"""What a study with ``federation.encryption`` keeps and sends: the plain start, and per stage an encrypted sum.

A stage whose replies are tensors has one entry of its own, ``sealed.<stage>``: the weighted mean differences of all
its rounds so far, added up under encryption. The shared tensors are the plain ones of the start plus those sums, so
that one payload brings a site everything, also where it missed a round, and a server that resumes needs nothing else.
Only a site can open it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedmedseg.core.ckks import Cipher, packed_shape
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.core.wire import Part, Schema, StageContract

if TYPE_CHECKING:
    from fedmedseg.core.config import Experiment

SEALED = "sealed."
"""Beginning of the names of encrypted entries; no shared tensor is called so."""
GUARDS_OFF = (
    "finite numbers (checked at the site before encryption)",
    "names, shapes and types of single tensors (at the site before encryption)",
    "norm of the differences (at the site before encryption)",
    "size of the numbers (at every site after decryption)",
    "which key a reply was encrypted with (at every site after decryption)",
    "no progress",
    "rules that compare replies",
)
"""What the server cannot do with replies that it cannot read, as the records and the report name it."""

Tensors = Mapping[str, torch.Tensor]
Contracts = Mapping[str, StageContract]


def sealed_name(stage: str) -> str:
    """Name of a stage's encrypted entry."""
    return SEALED + stage


def split(tensors: Tensors) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The plain tensors, and the encrypted entries."""
    sealed = {name: tensor for name, tensor in tensors.items() if name.startswith(SEALED)}
    return {name: tensor for name, tensor in tensors.items() if name not in sealed}, sealed


def numbers_in(schema: Schema) -> int:
    """How many numbers the tensors of ``schema`` hold."""
    return sum(math.prod(spec.shape) for spec in schema.specs.values())


def layouts(schema: Schema, contracts: Contracts, part: Part) -> dict[str, Schema]:
    """Per encrypted entry that bears on ``part``: the tensors that lie in it, one after the other in sorted order."""
    found = {}
    for stage, contract in contracts.items():
        if contract.returns == "shared":
            inside = schema.part(contract.returned)
            if any(part.holds(name) for name in inside.specs):
                found[sealed_name(stage)] = inside
    return found


def check_encryption(experiment: Experiment, contracts: Contracts) -> None:
    """Refuse encryption where the study has no use for it, or could not do with it.

    Raises:
        ConfigurationError: naming the field, what came, what was expected and how to mend it.
    """
    if experiment.federation.encryption == "none":
        return
    returning = [
        contract
        for stage, contract in contracts.items()
        if contract.returns == "shared" and experiment.stages[stage].rounds
    ]
    if not returning:
        raise _refused("a study of whose stages none returns tensors: there would be nothing to encrypt")
    if any(contract.returned_at or contract.extra for contract in returning):
        raise _refused("a stage that returns other tensors from round to round, which the server must read")
    if any(contract.personal for contract in returning):
        raise _refused("a stage that makes personal tensors, for which the server must read the replies")
    if any(contract.exchange is not None for contract in returning):
        raise _refused(
            "a stage in which sites exchange features: the server must read them to check them and to give every site "
            "the others', so that they would leave in plain",
            remedy="set federation.encryption to none, or turn the exchange off",
        )


def refuse_simulation(experiment: Experiment) -> None:
    """Refuse encryption where there are neither kits nor a site's own filters.

    Raises:
        ConfigurationError: the study asks for it.
    """
    if experiment.federation.encryption != "none":
        raise _refused(
            "a run without startup kits: keys lie in them, and sites' filters, which encrypt, run nowhere else",
            remedy="submit the job to a federation, or set federation.encryption to none",
        )


def seal(cipher: Cipher, differences: Tensors) -> torch.Tensor:
    """A reply's differences as one encrypted entry.

    Raises:
        FedMedSegError: a number is not finite, or too large.
    """
    parts = [differences[name].detach().cpu().double().reshape(-1).numpy() for name in sorted(differences)]
    return cipher.encrypt(np.concatenate(parts))


def unseal(cipher: Cipher, plain: Tensors, sealed: Tensors, inside: Mapping[str, Schema]) -> dict[str, torch.Tensor]:
    """The tensors ``plain`` with the sums that ``sealed`` holds added; types stay.

    Raises:
        FedMedSegError: an entry that does not bear on these tensors, of another form, or under another key.
    """
    if not sealed.keys() <= inside.keys():
        raise FedMedSegError(
            "encrypted tensors", expected="those of this study's stages", reason=Reason.UNKNOWN_TENSORS
        )
    opened = dict(plain)
    for entry in sorted(sealed):
        schema, start = inside[entry], 0
        numbers = cipher.decrypt(sealed[entry], numbers_in(schema))
        for name, spec in schema.specs.items():
            stop = start + math.prod(spec.shape)
            if name in opened:
                total = opened[name].double() + torch.from_numpy(numbers[start:stop]).reshape(spec.shape)
                opened[name] = total.to(spec.dtype)
            start = stop
    return opened


@dataclass(frozen=True)
class Sealing:
    """One stage's encrypted sum at the server, in one round."""

    cipher: Cipher
    name: str
    count: int
    """How many numbers a reply holds."""
    whole: Tensors = field(repr=False)
    """All that the server keeps, plain tensors and encrypted entries."""
    sent: Tensors = field(repr=False)
    """The encrypted entries that go along with the plain tensors of the round."""

    @classmethod
    def begin(
        cls, cipher: Cipher, *, stage: str, part: Part, schema: Schema, contracts: Contracts, whole: Tensors
    ) -> Sealing:
        """The sums as they stand before a round of ``stage`` that sends ``part`` of the tensors of ``schema``."""
        bearing = layouts(schema, contracts, part)
        return cls(
            cipher=cipher,
            name=sealed_name(stage),
            count=numbers_in(schema.part(contracts[stage].returned)),
            whole=whole,
            sent={name: tensor for name, tensor in split(whole)[1].items() if name in bearing},
        )

    def problem(self, tensors: object) -> tuple[Reason, str] | None:
        """The first reason why a reply's ``tensors`` may not be added, or None; see ``Cipher.problem``."""
        if not isinstance(tensors, Mapping):
            return Reason.TENSOR_TYPE, f"a {type(tensors).__name__} instead of a mapping of tensors"
        if set(tensors) != {self.name}:
            return Reason.UNKNOWN_TENSORS, f"{len(tensors)} tensor(s) that are not the one encrypted entry"
        return self.cipher.problem(tensors[self.name], self.count)

    def added(self, replies: Mapping[str, Tensors], shares: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """All that the server keeps after the round."""
        packed = {site: tensors[self.name] for site, tensors in replies.items()}
        return {**self.whole, self.name: self.cipher.add(self.whole.get(self.name), packed, shares)}

    @property
    def nbytes(self) -> int:
        """Bytes of one reply's entry."""
        return math.prod(packed_shape(self.count))


def _refused(got: str, *, remedy: str = "set federation.encryption to none") -> ConfigurationError:
    return ConfigurationError(
        "federation.encryption",
        got=got,
        expected="a federation of kits and a stage whose rule is a weighted mean",
        remedy=remedy,
    )
