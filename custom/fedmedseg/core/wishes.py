"""What a job wants of a site, in words for the local person who agrees to it or not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from fedmedseg.core.config import Experiment
from fedmedseg.core.schema import Strict
from fedmedseg.core.wire import Schema, StageContract

ID_LENGTH = 12
"""Characters of a wish's digest that a person types."""


class Submitter(Strict):
    """Who submitted a job."""

    name: str
    org: str
    role: str
    signed: bool
    """Whether their certificate, of this federation, signed the job; otherwise it is the server's word."""


class StageWish(Strict):
    """One stage."""

    rounds: int
    returns: Literal["shared", "metrics"]
    """Whether differences of shared tensors leave the site, or figures alone."""
    tensors: int
    """How many tensors leave in each round, at most."""
    nbytes: int
    """Bytes of them."""
    features: int = 0
    """How many feature vectors of single slices leave in each round, at most; the other sites receive them."""
    figures: tuple[str, ...]
    """Patterns of the figures that may leave; the site's own privacy section may hold back more."""


class Wish(Strict):
    """Everything a decision rests on: whatever differs in it is another wish and asks anew.

    ``run`` is the server's token of one submission. A resumed study goes on under its old one, so it need not ask
    again, unless somebody else submits it, under another scope or with other components.
    """

    format: int = Field(1, ge=1, le=1)
    study: str
    system: str
    experiment: str
    """SHA-256 over every setting that changes results."""
    run: str
    data: str
    """The role of the data it reads."""
    stages: dict[str, StageWish]
    submitter: Submitter | None
    """None where this site was not told."""
    scope: str
    """Privacy scope that the job names; empty for the site's default one."""
    components: str
    """SHA-256 of the job's config_fed_client.json, which says what runs here."""

    @property
    def digest(self) -> str:
        """SHA-256 over all of it."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def id(self) -> str:
        """What a person types."""
        return self.digest[:ID_LENGTH]


def make_wish(
    experiment: Experiment,
    *,
    contracts: Mapping[str, StageContract],
    schema: Schema,
    run: str,
    submitter: Submitter | None,
    scope: str,
    components: bytes,
) -> Wish:
    """The wish of a job; stages of no rounds are left out. ``components`` is its client configuration as it came."""
    stages = {}
    for name, contract in contracts.items():
        if experiment.stages[name].rounds == 0:
            continue
        leaving = schema.part(contract.returned) if contract.returns == "shared" else Schema({})
        stages[name] = StageWish(
            rounds=experiment.stages[name].rounds,
            returns=contract.returns,
            tensors=len(leaving.specs),
            nbytes=leaving.nbytes,
            features=contract.exchange.most_rows if contract.exchange else 0,
            figures=contract.metrics,
        )
    return Wish(
        format=1,
        study=experiment.study,
        system=experiment.system,
        experiment=experiment.digest,
        run=run,
        data=" or ".join(experiment.data.roles),
        stages=stages,
        submitter=submitter,
        scope=scope,
        components=hashlib.sha256(components).hexdigest(),
    )
