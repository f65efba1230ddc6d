"""A whole federation on this machine: kits as hospitals get them, real processes, mutual TLS, loopback only."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.jobs import bundle_roots
from fedmedseg.core.schema import read_yaml

SERVER = "localhost"
"""The server's name must be the address it is reached under."""
STOP_SECONDS = 15.0
ENCRYPTION = "fedmedseg.provisioning.encryption.EncryptionBuilder"
SIGNATURES = "nvflare.lighter.impl.signature.SignatureBuilder"


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def loopback_project(
    project: Mapping[str, Any], *, sites: Sequence[str], port: int, profile: str = "lan", encryption: bool = False
) -> dict[str, Any]:
    """A federation's description changed so that all of it runs on one machine.

    Args:
        project: content of ``provisioning/project.yml``.
        sites: names of the hospitals; none offers a GPU.
        port: the server's port.
        profile: kind of network, as ``SafeKitBuilder`` takes it.
        encryption: whether the kits hold keys for encrypted replies.
    """
    by_type: dict[str, list[dict[str, Any]]] = {"server": [], "client": [], "admin": []}
    for one in project["participants"]:
        by_type[one["type"]].append(dict(one))
    server = {**by_type["server"][0], "name": SERVER, "fed_learn_port": port, "admin_port": port}
    clients = [{"name": site, "type": "client", "org": f"org_{site.replace('-', '_')}"} for site in sites]
    builders: list[dict[str, Any]] = []
    for builder in project["builders"]:
        if encryption and builder["path"] == SIGNATURES:
            builders.append({"path": ENCRYPTION})
        arguments = dict(builder.get("args") or {})
        if "profile" in arguments:
            arguments["profile"] = profile
        builders.append({**builder, "args": arguments})
    return {**project, "participants": [server, *clients, *by_type["admin"]], "builders": builders}


def provision(project: Mapping[str, Any], workspace: Path) -> Path:
    """Write signed kits, as `nvflare provision` does; returns the folder that holds them.

    Raises:
        ConfigurationError: FLARE refused the description.
    """
    content = copy.deepcopy(dict(project))
    result = Provisioner(str(workspace), prepare_builders(content)).provision(prepare_project(content))
    if result.get("build_error"):
        raise ConfigurationError("provisioning", got="an error of FLARE's builders", expected="signed kits")
    return Path(result.get_result_location())


def processes_where(wanted: Callable[[list[str], Path], bool]) -> list[psutil.Process]:
    """The processes of this machine that still run, are ours to look at, and are wanted.

    Args:
        wanted: by the words a process was called with and the folder it works in.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            running = process.status() != psutil.STATUS_ZOMBIE
            if running and wanted(process.cmdline(), Path(process.cwd())):
                found.append(process)
    return found


class LoopbackFederation:
    """Processes of kits, each started by the kit's own script.

    Use it as a context manager: whatever happens inside, at the end everything that was started here is stopped.

    Args:
        kits: folder with one kit for each participant.
        environment: variables the processes get beside this process's own.
    """

    def __init__(self, kits: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self.kits = kits
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        commands = Path(sys.executable).parent
        # the kits' scripts call python3
        self.environment = {
            **os.environ,
            "PATH": f"{commands}{os.pathsep}{os.environ.get('PATH', '')}",
            **(environment or {}),
        }

    def __enter__(self) -> LoopbackFederation:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def log(self, name: str) -> str:
        """What a participant's processes have said so far."""
        file = self._log_file(name)
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""

    def start(self, name: str, *, watchdog: bool = False) -> None:
        """Start one participant.

        Args:
            name: the kit's folder.
            watchdog: as a hospital does it, by FLARE's script that starts the process again when it dies; without,
                the process alone.
        """
        script = ["bash", "startup/sub_start.sh", *([] if watchdog else ["--once"])]
        with open(self._log_file(name), "ab") as log:
            self.processes[name] = subprocess.Popen(
                script,
                cwd=self.kits / name,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, name: str, words: str, *, timeout: float) -> None:
        """Wait until a participant has said ``words``.

        Raises:
            TimeoutError: it has not, or its process has ended.
        """
        end = time.monotonic() + timeout
        while words not in self.log(name):
            if self.processes[name].poll() is not None:
                raise TimeoutError(f"{name} ended before it said {words!r}:\n{self.log(name)[-3000:]}")
            if time.monotonic() > end:
                raise TimeoutError(f"{name} has not said {words!r} in {timeout:g} s:\n{self.log(name)[-3000:]}")
            time.sleep(0.2)

    def start_all(
        self,
        sites: Sequence[str],
        *,
        watchdog: bool = False,
        timeout: float = 60.0,
        on_ready: Callable[[str], None] = lambda name: None,
    ) -> None:
        """Start the server and, once it listens, the sites; returns when all are registered.

        ``on_ready`` is called with the name of each participant that has come up.
        """
        self.start(SERVER, watchdog=watchdog)
        self.wait_for(SERVER, "Server started", timeout=timeout)
        on_ready(SERVER)
        for site in sites:
            self.start(site, watchdog=watchdog)
        for site in sites:
            self.wait_for(site, "Successfully registered", timeout=timeout)
            on_ready(site)

    def wait_for_end(self, *, timeout: float) -> None:
        """Wait until the processes started here have ended by themselves, ``timeout`` seconds at most."""
        end = time.monotonic() + timeout
        while any(one.poll() is None for one in self.processes.values()) and time.monotonic() < end:
            time.sleep(0.2)

    def stop(self, *names: str) -> None:
        """End participants started here, all of them where none is named, with the jobs they run."""
        chosen = {name: self.processes.pop(name) for name in list(names or self.processes)}
        for how in (psutil.Process.terminate, psutil.Process.kill):
            running = [one for name in chosen for one in self.running(name)]
            for one in running:
                with suppress(psutil.NoSuchProcess):
                    how(one)
            psutil.wait_procs(running, timeout=STOP_SECONDS)
        for process in chosen.values():
            process.wait(timeout=STOP_SECONDS)

    def running(self, name: str) -> list[psutil.Process]:
        """The processes that work in a participant's kit: the script, FLARE's parent, one for each job.

        FLARE gives a job a process group of its own, and a job outlives its parent for a while: both are known by
        the kit's folder, which every one of them is called with or was started in.
        """
        kit = (self.kits / name).resolve()
        return processes_where(lambda words, folder: str(kit) in words or folder == kit)

    def _log_file(self, name: str) -> Path:
        return self.kits / f"{name}.log"


def bundle_project() -> dict[str, Any]:
    """The description of a federation that comes with the package.

    Raises:
        ConfigurationError: it is not there.
    """
    return dict(read_yaml(bundle_project_file()))


def bundle_project_file() -> Path:
    """Where it lies: the package's own, never one that happens to lie in the current folder.

    Raises:
        ConfigurationError: it is not there.
    """
    for root in bundle_roots()[1:]:
        file = root / "provisioning" / "project.yml"
        if file.is_file():
            return file
    raise ConfigurationError("provisioning/project.yml", got="no such file", remedy="install fedmedseg again")
