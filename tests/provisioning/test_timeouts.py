"""One table of waits: complete, consistent, and under names that the installed FLARE reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nvflare
import pytest

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.provisioning.timeouts import PROFILES, TIMEOUTS, values

ROOT = Path(__file__).parents[2]
SOURCE = Path(nvflare.__file__).parent
READ_IN = {
    "comm_config": "fuel/f3/comm_config.py",
    "server": "private/fed/app",
    "server_top": "apis/fl_constant.py",
    "client": "private/fed/client/fed_client_base.py",
    "admin": "fuel/hci/client/api_spec.py",
}


@pytest.mark.parametrize("entry", TIMEOUTS, ids=lambda entry: entry.name)
def test_flare_reads_it_under_this_name_there(entry) -> None:  # type: ignore[no-untyped-def]
    place = SOURCE / READ_IN[entry.holder]
    sources = [place] if place.is_file() else sorted(place.rglob("*.py"))
    assert any(f'"{entry.name}"' in file.read_text() for file in sources)


@pytest.mark.parametrize("entry", TIMEOUTS, ids=lambda entry: entry.name)
def test_each_has_a_reason_and_no_wait_is_shorter_far_away_than_on_one_campus(entry) -> None:  # type: ignore[no-untyped-def]
    assert len(entry.why) > 20
    assert min(entry.lan, entry.wan, entry.vpn) > 0
    if entry.name == "heartbeat_interval":
        # not a wait: the more often the line must show life, the worse the network
        assert entry.vpn <= entry.wan <= entry.lan
    else:
        assert entry.lan <= entry.wan
        assert entry.lan <= entry.vpn


@pytest.mark.parametrize("profile", PROFILES)
def test_waits_that_build_on_each_other_agree(profile: str) -> None:
    comm, server, client = values(profile, "comm_config"), values(profile, "server"), values(profile, "client")
    assert comm["sfm_send_stall_timeout"] > comm["streaming_send_timeout"], "stalled is said after one write's wait"
    assert comm["streaming_ack_progress_timeout"] <= comm["streaming_ack_wait"]
    assert client["communication_timeout"] >= comm["streaming_read_timeout"], "a transfer may use all its patience"
    assert server["heart_beat_timeout"] >= 6 * 10, "six of the sites' ten-second reports"
    assert values(profile, "server_top")["max_reg_duration"] > client["maint_msg_timeout"]
    assert server["heart_beat_timeout"] > client["maint_msg_timeout"], "one slow report is not a lost site"


def test_another_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="write 'wan'"):
        values("wann", "client")


@pytest.mark.parametrize("profile", PROFILES)
def test_the_profile_named_in_the_project_reaches_every_file(
    tmp_path: Path, build: Callable[[Path, str], Path], profile: str
) -> None:
    text = (ROOT / "provisioning" / "project.yml").read_text()
    assert "profile: wan" in text
    made = build(tmp_path / "kits", text.replace("profile: wan", f"profile: {profile}"))

    def read(kit: str, name: str) -> dict:  # type: ignore[type-arg]
        return json.loads((made / kit / "local" / name).read_text())

    server = read("server.example.org", "resources.json")
    assert values(profile, "server").items() <= server["servers"][0].items()
    assert values(profile, "server_top").items() <= server.items()
    assert values(profile, "client").items() <= read("hospital-2", "resources.json")["client"].items()
    assert values(profile, "admin").items() <= read("admin@network.example.org", "resources.json")["admin"].items()
    for kit in ("server.example.org", "hospital-2"):
        assert values(profile, "comm_config").items() <= read(kit, "comm_config.json").items()
