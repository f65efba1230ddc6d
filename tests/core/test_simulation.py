"""Calling the simulator: its command line, its workspace, its progress, and its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmedseg.core import simulation
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.simulation import JOB_ID, Simulation, prepare_workspace, read_record, run, stop_group


def call(tmp_path: Path, sites: tuple[str, ...] = ("site-1", "site-2")) -> Simulation:
    return Simulation(
        job=tmp_path / "job", workspace=tmp_path / "workspace", sites=sites, threads=2, log=tmp_path / "logs" / "log"
    )


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        (("site-1", "site-2"), ["-n", "2"]),
        (("site-1",), ["-n", "1"]),
        (("site-2", "site-1"), ["-c", "site-2,site-1"]),
        (("harbour", "mountain"), ["-c", "harbour,mountain"]),
    ],
)
def test_the_command_names_the_sites_as_flare_wants_them(
    tmp_path: Path, sites: tuple[str, ...], words: list[str]
) -> None:
    command = call(tmp_path, sites).command()
    assert command[:4] == [sys.executable, "-m", "fedmedseg.core.flare_simulator", "simulator"]
    assert command[4:] == [str(tmp_path / "job"), "-w", str(tmp_path / "workspace"), *words, "-t", "2"]


def test_a_workspace_holds_the_site_policy_and_nothing_else(tmp_path: Path) -> None:
    prepare_workspace(tmp_path / "workspace", {"class_allow_list": ["fedmedseg."]})
    assert [path.name for path in (tmp_path / "workspace").rglob("*")] == ["local", "resources.json"]
    policy = json.loads((tmp_path / "workspace" / "local" / "resources.json").read_text())
    assert policy == {"class_allow_list": ["fedmedseg."]}
    assert (tmp_path / "workspace.fedmedseg").is_dir()


def test_a_workspace_that_cannot_be_written_is_told_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"workspace.*choose another with -w"):
        prepare_workspace(tmp_path / "file" / "workspace", {})


def of_policy(folder: Path) -> None:
    (folder / "local").mkdir(parents=True)
    (folder / "local" / "resources.json").write_text("{}")


def of_a_person(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")


def of_a_person_with_a_local_folder(folder: Path) -> None:
    of_a_person(folder)
    (folder / "local").mkdir()


def of_a_project_with_a_servers_folder(folder: Path) -> None:
    of_a_person(folder)
    (folder / "server").mkdir()


def of_a_hospital(folder: Path) -> None:
    of_policy(folder)
    (folder / "startup").mkdir()
    (folder / "startup" / "fed_client.json").write_text("{}")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (of_a_person, "which holds thesis.txt. Expected a new or empty folder"),
        (of_a_person_with_a_local_folder, "which holds thesis.txt. Expected"),
        (of_a_project_with_a_servers_folder, "which holds server and 1 more. Expected"),
        (of_a_hospital, "a startup kit. Expected"),
    ],
)
def test_a_folder_that_no_run_wrote_is_refused_and_left_as_it_was(
    tmp_path: Path, make: Callable[[Path], None], told: str
) -> None:
    make(tmp_path / "precious")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigurationError, match=told) as caught:
        prepare_workspace(tmp_path / "precious", {"class_allow_list": []})
    assert "choose another with -w" in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is added either"


def of_an_earlier_run(folder: Path) -> None:
    of_policy(folder)
    (folder / "startup").mkdir()
    (folder / "server" / JOB_ID).mkdir(parents=True)
    (folder / "site-1").mkdir()


def of_a_run_that_ended_early(folder: Path) -> None:
    of_policy(folder)
    (folder / "startup").mkdir()
    (folder / "east").mkdir()


def of_flares_own_command(folder: Path) -> None:
    (folder / "startup").mkdir(parents=True)
    (folder / "server" / JOB_ID).mkdir(parents=True)


def of_site_files(folder: Path) -> None:
    (folder / "local" / "sites").mkdir(parents=True)


@pytest.mark.parametrize(
    "make", [Path.mkdir, of_policy, of_site_files, of_an_earlier_run, of_a_run_that_ended_early, of_flares_own_command]
)
def test_the_workspace_of_an_earlier_run_is_used_again(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "workspace")
    prepare_workspace(tmp_path / "workspace", {"class_allow_list": ["fedmedseg."]})
    assert "fedmedseg." in (tmp_path / "workspace" / "local" / "resources.json").read_text()


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b'"text"', b"\xff"])
def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "run.json"
    if content is not None:
        file.write_bytes(content)
    assert read_record(file) is None


def in_place_of_flare(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(Simulation, "command", lambda self: [sys.executable, "-c", script, str(self.workspace)])
    monkeypatch.setattr(simulation, "POLL_SECONDS", 0.05)


def test_a_run_is_judged_by_its_own_record_and_old_files_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place_of_flare(monkeypatch, "print('said', flush=True); raise SystemExit(0)")
    simulated = call(tmp_path)
    simulated.record_file.parent.mkdir(parents=True)
    simulated.record_file.write_text('{"outcome": "finished"}')
    old = tmp_path / "workspace" / "site-1" / JOB_ID / "progress.jsonl"
    old.parent.mkdir(parents=True)
    old.write_text('{"step": 99}\n')
    events: list[object] = []
    assert run(simulated, events.append) is None, "an exit status of 0 proves nothing"
    assert events == []
    assert simulated.log.read_text() == "said\n"


def test_progress_reaches_the_caller_and_the_record_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"""
import pathlib, sys
w = pathlib.Path(sys.argv[1])
for f, t in ((w / 'site-1/{JOB_ID}/progress.jsonl', '{{"step": 1}}\\n'),
             (w / 'server/{JOB_ID}/report/run.json', '{{"outcome": "finished"}}')):
    f.parent.mkdir(parents=True); f.write_text(t)
"""
    in_place_of_flare(monkeypatch, script)
    events: list[dict] = []
    assert run(call(tmp_path), events.append) == {"outcome": "finished"}
    assert events == [{"step": 1}]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stream:
        return stream.read().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the process table of Linux")
@pytest.mark.parametrize("stubborn", [False, True], ids=["asked", "insisted"])
def test_the_whole_group_ends_with_the_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stubborn: bool) -> None:
    """A worker of the simulator outlives its parent, and may ignore being asked."""
    monkeypatch.setattr(simulation, "STOP_SECONDS", 0.5)
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN);" if stubborn else ""
    worker = f"import signal, time; {ignore} print('up', flush=True); time.sleep(60)"
    parent = (
        "import subprocess, sys; w = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE);"
        "w.stdout.readline(); print(w.pid, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, worker], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert alive(pid)
    began = time.monotonic()
    stop_group(process)
    while alive(pid) and time.monotonic() - began < 5:
        time.sleep(0.02)
    assert not alive(pid)
    assert process.poll() is not None
    process.stdout.close()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the process table of Linux")
def test_a_call_that_is_told_to_terminate_takes_the_simulator_with_it(tmp_path: Path) -> None:
    """Python dies of SIGTERM without unwinding the stack unless somebody asks it to."""
    script = f"""
import sys
from pathlib import Path
from fedmedseg.core.simulation import Simulation, run
folder = Path({str(tmp_path)!r})
class Sleeping(Simulation):
    def command(self):
        return [sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); time.sleep(60)']
run(Sleeping(job=folder, workspace=folder / 'w', sites=('a',), threads=1, log=folder / 'log'), print)
"""
    caller = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while not ((tmp_path / "log").exists() and (tmp_path / "log").read_text().endswith("\n")):
        assert time.monotonic() < deadline
        assert caller.poll() is None
        time.sleep(0.05)
    pid = int((tmp_path / "log").read_text())
    caller.terminate()
    assert caller.wait(timeout=30) == 128 + 15
    assert not alive(pid)
