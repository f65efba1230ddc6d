"""A site's account of what left it under noise: on its own disk, over all studies, written before a reply leaves."""

from __future__ import annotations

import fcntl
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.core.schema import Strict, parse
from fedmedseg.privacy.accounting import epsilon_of, loss_of

logger = logging.getLogger(__name__)

LEDGER = "privacy.ledger.json"
"""In the site's state_dir. The dot keeps it apart from studies, whose names have none."""


class Account(Strict):
    """Releases of one study and the sum of their losses."""

    releases: int = Field(ge=1)
    loss: float = Field(gt=0.0, allow_inf_nan=False)


class Ledger(Strict):
    """The file. ``epsilon`` and ``delta`` are for people: they are computed anew from the losses."""

    format: int = Field(1, ge=1, le=1)
    releases: int = Field(0, ge=0)
    loss: float = Field(0.0, ge=0.0, allow_inf_nan=False)
    epsilon: float = Field(0.0, ge=0.0)
    delta: float = Field(0.0, ge=0.0, lt=1.0)
    studies: dict[str, Account] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _adds_up(self) -> Ledger:
        accounts = self.studies.values()
        if self.releases != sum(account.releases for account in accounts) or not math.isclose(
            self.loss, math.fsum(account.loss for account in accounts), rel_tol=1e-9
        ):
            raise ValueError("sums over the studies that agree with the whole")
        return self


@dataclass(frozen=True)
class Standing:
    """Where a site stands after a release."""

    releases: int
    epsilon: float


def read_ledger(file: Path) -> Ledger:
    """The account so far; an empty one where nothing was ever released.

    Raises:
        FedMedSegError: reason PRIVACY; the file is damaged, and nobody can say what was released already.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return parse(Ledger, content, source=file.name)
    except FileNotFoundError:
        return Ledger.model_validate({})
    except (OSError, ValueError, ConfigurationError):
        raise FedMedSegError(
            "the privacy ledger cannot be read",
            expected=f"a whole {LEDGER} in state_dir",
            remedy="restore it from a backup; a new one would forget what has left this site",
            reason=Reason.PRIVACY,
        ) from None


def charge(folder: Path, *, study: str, multiplier: float, epsilon: float, delta: float) -> Standing:
    """Enter one release into the ledger in ``folder`` before it happens.

    A process that dies in between has paid for what it did not send; the other way round cannot happen. The budget
    is one for all studies of the site: they read the same patients.

    Raises:
        FedMedSegError: reason PRIVACY; the release would go beyond ``epsilon``, or the ledger can be neither read
            nor written. The ledger is then as it was.
    """
    file = folder / LEDGER
    try:
        with _alone(folder):
            before = read_ledger(file)
            loss = loss_of(multiplier)
            account = before.studies.get(study)
            own = Account(
                releases=1 + (account.releases if account else 0), loss=loss + (account.loss if account else 0.0)
            )
            studies = {**before.studies, study: own}
            total = math.fsum(one.loss for one in studies.values())
            after = epsilon_of(total, delta)
            if after > epsilon:
                raise FedMedSegError(
                    "the privacy budget is used up",
                    expected=f"at most epsilon {epsilon:g} at delta {delta:g}, with this reply it would be {after:.4g} "
                    f"after {before.releases + 1} releases",
                    remedy="take no part in further rounds, or decide at this site on another budget "
                    "(privacy.noise.epsilon) or more noise (privacy.noise.multiplier)",
                    reason=Reason.PRIVACY,
                )
            ledger = Ledger(
                format=1, releases=before.releases + 1, loss=total, epsilon=after, delta=delta, studies=studies
            )
            write_atomic(file, json.dumps(ledger.model_dump(mode="json"), indent=1, sort_keys=True).encode())
    except OSError as error:
        raise FedMedSegError(
            "the privacy ledger cannot be written",
            expected=f"a state_dir with room ({type(error).__name__})",
            remedy="free space on this site's disk, or mend the permissions of state_dir",
            reason=Reason.PRIVACY,
        ) from None
    logger.info("privacy: release %d, epsilon %.4g of %g at delta %g", ledger.releases, after, epsilon, delta)
    return Standing(releases=ledger.releases, epsilon=after)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time: two jobs of a site share the account."""
    with open(folder / f".{LEDGER}.lock", "a", encoding="ascii") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
