"""A federation's description changed for one machine; starting and stopping processes of a kit."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from fedmedseg.provisioning.loopback import LoopbackFederation, bundle_project, loopback_project


def test_a_project_for_one_machine_keeps_administrators_and_builders() -> None:
    shipped = bundle_project()
    here = loopback_project(shipped, sites=["a-1", "b-2"], port=4321, profile="vpn")
    by_type: dict[str, list[dict]] = {}
    for one in here["participants"]:
        by_type.setdefault(one["type"], []).append(one)
    (server,) = by_type["server"]
    assert (server["name"], server["fed_learn_port"], server["admin_port"]) == ("localhost", 4321, 4321)
    assert [(one["name"], one["org"]) for one in by_type["client"]] == [("a-1", "org_a_1"), ("b-2", "org_b_2")]
    assert by_type["admin"] == [one for one in shipped["participants"] if one["type"] == "admin"]
    profiles = [one["args"]["profile"] for one in here["builders"] if "profile" in one["args"]]
    assert profiles == ["vpn"]
    assert [one["path"] for one in here["builders"]] == [one["path"] for one in shipped["builders"]]
    assert shipped == bundle_project(), "what was given stays as it was"


def kit_that(folder: Path, script: str) -> Path:
    """A kit whose start script is ``script``."""
    kit = folder / "one"
    (kit / "startup").mkdir(parents=True)
    (kit / "startup" / "sub_start.sh").write_text(script)
    return folder


def test_stop_ends_a_job_that_left_the_group_and_nothing_else(tmp_path: Path) -> None:
    bystander = subprocess.Popen(["sleep", "60"], cwd=tmp_path)
    try:
        kits = kit_that(tmp_path, "setsid sleep 61 &\necho said\nsleep 62\n")
        with LoopbackFederation(kits) as federation:
            federation.start("one")
            federation.wait_for("one", "said", timeout=10)
            deadline = time.monotonic() + 10
            while len(federation.running("one")) < 3:
                assert time.monotonic() < deadline, federation.running("one")
                time.sleep(0.05)
        assert federation.running("one") == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_process_that_ends_before_it_says_what_is_waited_for_is_told(tmp_path: Path) -> None:
    with LoopbackFederation(kit_that(tmp_path, "echo no such thing\n")) as federation:
        federation.start("one")
        with pytest.raises(TimeoutError, match=r"ended before it said 'ready'[^$]*no such thing"):
            federation.wait_for("one", "ready", timeout=10)


def test_the_end_of_processes_is_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    with LoopbackFederation(kit_that(tmp_path, "echo said\nsleep 60\n")) as federation:
        federation.start("one")
        federation.wait_for("one", "said", timeout=10)
        began = time.monotonic()
        federation.wait_for_end(timeout=0.3)
        assert 0.3 <= time.monotonic() - began < 5
        federation.stop("one")
        (tmp_path / "one" / "startup" / "sub_start.sh").write_text("sleep 0.5\n")
        federation.start("one")
        federation.wait_for_end(timeout=30)
        assert federation.processes["one"].returncode == 0


def test_everybody_who_has_come_up_is_told_of_server_first(tmp_path: Path) -> None:
    for name, words in (("localhost", "Server started"), ("a", "Successfully registered")):
        (tmp_path / name / "startup").mkdir(parents=True)
        (tmp_path / name / "startup" / "sub_start.sh").write_text(f"echo {words}\nsleep 60\n")
    up: list[str] = []
    with LoopbackFederation(tmp_path) as federation:
        federation.start_all(["a"], timeout=10, on_ready=up.append)
    assert up == ["localhost", "a"]


def test_the_environment_given_reaches_the_kits_script(tmp_path: Path) -> None:
    kits = kit_that(tmp_path, 'echo "colour $COLOUR"; echo "flag $1"; command -v python3; sleep 60\n')
    with LoopbackFederation(kits, environment={"COLOUR": "green"}) as federation:
        federation.start("one")
        federation.wait_for("one", "python3", timeout=10)
        assert "colour green\nflag --once" in federation.log("one")
        federation.stop("one")
        federation.start("one", watchdog=True)
        federation.wait_for("one", "flag \n", timeout=10)
