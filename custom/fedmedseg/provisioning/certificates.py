"""Certificates with a lifetime that is written down."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

from cryptography import x509
from nvflare.lighter.constants import ParticipantType, PropKey
from nvflare.lighter.ctx import ProvisionContext
from nvflare.lighter.entity import Participant, Project
from nvflare.lighter.impl.cert import CertBuilder
from nvflare.lighter.utils import generate_keys


class DatedCertBuilder(CertBuilder):
    """FLARE's certificate builder with the participants' lifetime as an argument (FLARE fixes it at 360 days).

    Certificates that the workspace already holds are used again, so that adding a site changes no other kit; one
    that ends within ``renew_days`` is made anew, with a new key (FLARE would hand out an expired one again).

    Args:
        root_valid_days: days the federation's own root certificate is valid.
        valid_days: days a participant's certificate is valid, never longer than the root's.
        renew_days: days before its end from which provisioning replaces a certificate; fewer than ``valid_days``.
    """

    def __init__(self, root_valid_days: int, valid_days: int, renew_days: int) -> None:
        super().__init__(root_valid_days=root_valid_days)
        _require("valid_days", valid_days, least=1, most=root_valid_days)
        _require("renew_days", renew_days, least=0, most=valid_days - 1)
        self.valid_days = valid_days
        self.renew_days = renew_days

    def initialize(self, project: Project, ctx: ProvisionContext) -> None:
        """Take up the workspace's certificates, without those that end soon."""
        super().initialize(project, ctx)
        limit = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=self.renew_days)
        if self.root_cert is not None and self.root_cert.not_valid_after_utc <= limit:
            # the participants' cannot outlive it, and would be made anew each time
            return
        state = self.persistent_state
        for participant in project.get_all_participants():
            known = state.get_subject_cert(participant.subject)
            if known and x509.load_pem_x509_certificate(known.encode()).not_valid_after_utc <= limit:
                ctx.info(f"renewing the certificate of {participant.name}")
                state.content.pop(participant.subject)

    def get_pri_key_cert(self, participant: Participant) -> tuple[Any, Any]:
        """A new key and its certificate."""
        now = datetime.datetime.now(datetime.UTC)
        end = self.root_cert.not_valid_after_utc
        if end <= now:
            raise RuntimeError(f"the root certificate ended on {end:%Y-%m-%d}; provision in a new workspace")
        private, public = generate_keys()
        certificate = self._generate_cert(
            participant.subject,
            participant.org,
            self.issuer,
            self.pri_key,
            public,
            role=participant.get_prop(PropKey.ROLE) if participant.type == ParticipantType.ADMIN else None,
            server=participant if participant.type == ParticipantType.SERVER else None,
            not_valid_before=now,
            not_valid_after=min(end, now + datetime.timedelta(days=self.valid_days)),
        )
        return private, certificate

    def finalize(self, project: Project, ctx: ProvisionContext) -> None:
        """Keep keys and certificates for the next provisioning, readable by their owner only."""
        super().finalize(project, ctx)
        folder = Path(ctx.get_state_dir())
        folder.chmod(0o700)
        # holds the federation's root key
        os.chmod(folder / self.persistent_state.CERT_STATE_FILE, 0o600)


def _require(name: str, days: Any, *, least: int, most: int) -> None:
    if isinstance(days, bool) or not isinstance(days, int) or not least <= days <= most:
        raise ValueError(f"{name}: got {days!r}. Expected a whole number from {least} to {most}.")
