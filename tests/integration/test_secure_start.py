"""A server and a site as real processes of their kits, over mutual TLS: registered, asked for, refused, stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner

from fedmedseg.core.findings import Level
from fedmedseg.provisioning.check import check_kit

ROOT = Path(__file__).parents[2]
COMMANDS = Path(sys.executable).parent
SITE, ADMIN, MEMBER = "hospital-1", "admin@network.example.org", "member@hospital-three.example.org"
PATIENCE = 40
"""Seconds for one thing to happen, on a machine that has other work."""

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


class Federation:
    """Kits for this machine, and the processes started from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        home = folder / "home"
        home.mkdir()
        # FLARE writes into the home folder
        self.environment = {
            **os.environ,
            "HOME": str(home),
            "PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }

    def provision(self, name: str, port: int) -> Path:
        """Kits of a federation whose server is this machine."""
        text = (ROOT / "provisioning" / "project.yml").read_text().replace("server.example.org", "localhost")
        content = yaml.safe_load(text.replace("8002", str(port)).replace("profile: wan", "profile: lan"))
        # as `nvflare provision` does, without its seconds of imports
        provisioner = Provisioner(str(self.folder / name), prepare_builders(content))
        return Path(provisioner.provision(prepare_project(content)).get_result_location())

    def flare(self, *arguments: str, fails: bool = False) -> str:
        """What an `nvflare` command says."""
        done = subprocess.run(
            [str(COMMANDS / "nvflare"), *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        said = done.stdout + done.stderr
        assert (done.returncode != 0) is fails, said
        return said

    def start(self, kit: Path) -> Callable[[], str]:
        """Start a kit's own script, without its watchdog; what it has said so far."""
        log = kit.with_name(f"{kit.name}.log")
        with log.open("wb") as stream:
            self.processes.append(
                subprocess.Popen(
                    ["bash", "startup/sub_start.sh", "--once"],
                    cwd=kit,
                    env=self.environment,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        return lambda: log.read_text(errors="replace")

    def stop(self) -> None:
        """End the processes started here, and what they started."""
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            finally:
                process.wait(timeout=10)


def wait_for(said: Callable[[], str], words: str) -> None:
    end = time.monotonic() + PATIENCE
    while words not in said():
        assert time.monotonic() < end, f"{words!r} was not said:\n{said()[-3000:]}"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    started = Federation(tmp_path)
    try:
        yield started
    finally:
        started.stop()


def test_kits_start_as_they_are_and_a_foreign_site_stays_outside(federation: Federation) -> None:
    port = free_port()
    kits = federation.provision("kits", port)
    server = federation.start(kits / "localhost")
    wait_for(server, "Server started")
    site = federation.start(kits / SITE)
    wait_for(site, "Successfully registered")

    status = federation.flare("system", "status", "--startup-kit", str(kits / ADMIN))
    assert SITE in status
    assert "Registered clients: 1" in status

    store = kits / "localhost" / "store"
    assert (store / "jobs").is_dir()
    assert (store / "snapshots").is_dir()
    refused = federation.flare(
        "job", "submit", "-j", str(ROOT / "jobs" / "fedata"), "--startup-kit", str(kits / MEMBER), fails=True
    )
    assert "not authorized" in refused

    other = federation.provision("other", port)
    foreign = federation.start(other / "hospital-2")
    wait_for(foreign, "CERTIFICATE_VERIFY_FAILED")
    assert "Successfully registered" not in foreign()
    assert "hospital-2" not in server(), "it got no further than the handshake"

    federation.flare("system", "shutdown", "all", "--force", "--startup-kit", str(kits / ADMIN))
    for process in federation.processes[:2]:
        assert process.wait(timeout=PATIENCE) == 0
    # what runs left behind weakens nothing
    for name in ("localhost", SITE):
        assert [one for one in check_kit(kits / name) if one.level > Level.PASS] == []
