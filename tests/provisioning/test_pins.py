"""A job's files are never read as the kit's: FLARE looks for its settings by name in the whole workspace."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

JOBS = 30
"""Run folders with a planted file each: a walk in any order meets one before ``local`` almost surely."""

LOOK = """
import json, os, sys
os.chdir(sys.argv[1])
from nvflare.fuel.utils.config_service import ConfigService
ConfigService.initialize({"startup": sys.argv[2], "resources": "resources.json"}, [sys.argv[1]])
from nvflare.fuel.f3.comm_config import CommConfigurator
from nvflare.fuel.f3 import communicator
communicator.load_comm_drivers()
print(json.dumps({
    "driver": CommConfigurator().get_comm_driver_path("none"),
    "planted": [n for n in ("startup", "resources") if "planted" in ConfigService.get_section(n)],
    "ran": "planted_driver" in sys.modules,
}))
"""


def plant(kit: Path, startup: str) -> None:
    """What jobs of a malicious submitter leave in a workspace, without an `app/custom` among them."""
    for number in range(JOBS):
        folder = kit / f"{number:08d}-0000-0000-0000-000000000000" / "app_x" / "config"
        folder.mkdir(parents=True)
        # the processes change into the workspace, so a submitter need not know where it lies
        (folder / "comm_config.json").write_text(json.dumps({"comm_driver_path": folder.relative_to(kit).as_posix()}))
        for name in ("resources.json", startup):
            (folder / name).write_text('{"planted": true, "allow_log_streaming": true}')
        (folder / "planted_driver.py").write_text("")


def look(kit: Path, startup: str) -> dict[str, object]:
    """What a FLARE process of this kit takes for its settings."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(kit), startup], capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "startup"), [("hospital-1", "fed_client.json"), ("server.example.org", "fed_server.json")]
)
def test_planted_settings_are_not_read_and_planted_code_does_not_run(
    copy: Callable[[str], Path], name: str, startup: str
) -> None:
    kit = copy(name)
    plant(kit, startup)
    assert look(kit, startup) == {"driver": "none", "planted": [], "ran": False}


def test_without_the_pins_flare_runs_planted_code(copy: Callable[[str], Path]) -> None:
    """What they are for. Should this fail with a later FLARE, they can go."""
    kit = copy("hospital-1")
    plant(kit, "fed_client.json")
    for name in ("comm_config.json", "resources.json", "fed_client.json"):
        (kit / name).unlink()
    # FLARE's own kits have none
    (kit / "local" / "comm_config.json").unlink()
    assert look(kit, "fed_client.json")["ran"] is True
