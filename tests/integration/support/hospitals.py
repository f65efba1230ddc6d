"""A provisioned federation of three hospitals on this machine, whose executors may be the tests' stand-ins."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fedmedseg.core import admin
from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.checkpoint import content_sha256, load
from fedmedseg.provisioning.loopback import (
    LoopbackFederation,
    bundle_project,
    free_port,
    loopback_project,
    provision,
)

SUPPORT = Path(__file__).parent
PACKAGE = Path(__file__).parents[3] / "custom"
SITES = ("site-1", "site-2", "site-3")
ADMIN, LEAD = "admin@network.example.org", "lead@hospital-two.example.org"


class Hospitals(LoopbackFederation):
    """Kits of a server, three sites and the administrators, ready for jobs with stand-in executors.

    With ``stand_ins`` false the kits stay as they are made, and take part in our own jobs alone.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sites: Sequence[str] = SITES,
        faults: Sequence[Mapping[str, Any]] = (),
        encryption: bool = False,
        stand_ins: bool = True,
    ) -> None:
        self.folder = folder
        self.sites = tuple(sites)
        self.port = free_port()
        project = loopback_project(bundle_project(), sites=self.sites, port=self.port, encryption=encryption)
        (folder / "home").mkdir(parents=True, exist_ok=True)
        self.faults = folder / "faults.json"
        self.set_faults(faults)
        environment = {
            # FLARE writes into the home folder
            "HOME": str(folder / "home"),
            "PYTHONPATH": f"{SUPPORT}:{PACKAGE}",
            "OMP_NUM_THREADS": "1",
            "FEDMEDSEG_FAULT_FILE": str(self.faults),
        }
        super().__init__(provision(project, folder / "kits"), environment=environment)
        for name in ("localhost", *self.sites) if stand_ins else ():
            allow(self.kits / name, "stand_ins.")
        for site in self.sites:
            self.write_site_file(site, {"privacy": {"min_count": 0}})

    @property
    def server(self) -> Path:
        """The server's kit."""
        return self.kits / "localhost"

    @property
    def admin(self) -> Path:
        """The kit of the network's administrator."""
        return self.kits / ADMIN

    def set_faults(self, faults: Sequence[Mapping[str, Any]]) -> None:
        """What is to go wrong from now on, in every process."""
        # the sites' processes read it all the time
        write_atomic(self.faults, json.dumps(list(faults)).encode())

    def write_site_file(self, site: str, content: Mapping[str, Any]) -> None:
        """The hospital's own file."""
        data = {"datasets": {"cmr": {"list": "cmr.json"}}, **content}
        # stand-ins read no case, but the site's filters look at the list
        (self.kits / site / "local" / "cmr.json").write_text('{"training": [], "validation": [], "test": []}')
        (self.kits / site / "local" / "fedmedseg.yaml").write_text(yaml.safe_dump(data))

    def up(self, *, watchdog: bool = False, timeout: float = 90.0) -> None:
        """Start server and sites."""
        self.start_all(self.sites, watchdog=watchdog, timeout=timeout)

    def run(self, job: Path, *, kit: Path | None = None, timeout: float = 150.0) -> Ended:
        """Submit a job, wait for its end and fetch what it left."""
        with admin.session(kit or self.admin) as session:
            job_id = admin.submit(session, job)
            meta = admin.wait(session, job_id, timeout=timeout)
            return self.fetch(session, job_id, meta)

    def fetch(self, session: Any, job_id: str, meta: Mapping[str, Any]) -> Ended:
        """What an ended job left."""
        return Ended(job_id, admin.status_of(meta), admin.download(session, job_id, self.folder / "results"))


class Ended:
    """A job that has ended, and the run folder the server handed out."""

    def __init__(self, job_id: str, status: str, folder: Path) -> None:
        self.job_id = job_id
        self.status = status
        self.folder = folder

    @property
    def record(self) -> dict[str, Any]:
        """The run's record."""
        content = json.loads((self.folder / "report" / "run.json").read_text())
        assert isinstance(content, dict)
        return content

    def rounds(self, stage: str = "pretraining") -> list[dict[str, Any]]:
        """The records of a stage's rounds."""
        return [one for one in self.record["rounds"] if one["stage"] == stage]

    @property
    def shared(self) -> str:
        """SHA-256 of the shared model."""
        saved = load(self.folder / "models" / "shared.safetensors")
        assert saved is not None
        return content_sha256(saved["tensors"])


def resumed_as(said: str) -> str:
    """The new job's id, of what `fedmedseg resume` prints."""
    found = re.search(r"continues as ([0-9a-f-]{36})", said)
    assert found is not None, said
    return found.group(1)


def allow(kit: Path, prefix: str) -> None:
    """Let jobs name the tests' own classes at this participant."""
    file = kit / "local" / "resources.json"
    content = json.loads(file.read_text())
    content["class_allow_list"].append(prefix)
    file.write_text(json.dumps(content))
