"""A server and a site as real processes of their kits, over mutual TLS: registered, asked for, refused, stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmedseg.core import admin
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.findings import Level
from fedmedseg.provisioning.check import check_kit
from fedmedseg.provisioning.loopback import (
    LoopbackFederation,
    bundle_project,
    free_port,
    loopback_project,
    provision,
)

ROOT = Path(__file__).parents[2]
SITE, ADMIN, MEMBER = "hospital-1", "admin@network.example.org", "member@hospital-three.example.org"
PATIENCE = 60
"""Seconds for one thing to happen, on a machine that has other work."""

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


def test_kits_start_as_they_are_and_a_foreign_site_stays_outside(tmp_path: Path) -> None:
    port = free_port()
    project = loopback_project(bundle_project(), sites=["hospital-1", "hospital-2"], port=port)
    kits, other = provision(project, tmp_path / "kits"), provision(project, tmp_path / "other")
    environment = {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    with (
        LoopbackFederation(kits, environment=environment) as federation,
        LoopbackFederation(other, environment=environment) as foreign,
    ):
        federation.start_all([SITE], timeout=PATIENCE)
        with admin.session(kits / ADMIN) as session:
            assert sorted(admin.last_seen(session)) == [SITE]
        store = kits / "localhost" / "store"
        assert (store / "jobs").is_dir()
        assert (store / "snapshots").is_dir()
        with (
            admin.session(kits / MEMBER) as session,
            pytest.raises(ConfigurationError, match="may not submit"),
        ):
            admin.submit(session, ROOT / "jobs" / "fedata")

        foreign.start("hospital-2")
        foreign.wait_for("hospital-2", "CERTIFICATE_VERIFY_FAILED", timeout=PATIENCE)
        assert "Successfully registered" not in foreign.log("hospital-2")
        assert "hospital-2" not in federation.log("localhost"), "it got no further than the handshake"

        with admin.session(kits / ADMIN) as session:
            session.shutdown("all")
        for process in federation.processes.values():
            assert process.wait(timeout=PATIENCE) == 0
    # what runs left behind weakens nothing
    for name in ("localhost", SITE):
        assert {one.check for one in check_kit(kits / name) if one.level > Level.PASS} == {"release"}, (
            "no wheel is named"
        )
