"""Every FLARE timeout that a kit sets, for three kinds of network: one table instead of numbers in many files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fedmedseg.core.errors import ConfigurationError, choose

Holder = Literal["comm_config", "server", "server_top", "client", "admin"]
"""Where FLARE 2.9.0 reads a value: ``local/comm_config.json``; of ``local/resources.json`` the server's first entry
in ``servers``, its top level, the site's ``client`` or the administrator's ``admin``."""

PROFILES = ("lan", "wan", "vpn")


@dataclass(frozen=True)
class Timeout:
    """One setting of FLARE. All values are seconds."""

    name: str
    holder: Holder
    stock: float
    """What FLARE 2.9.0 does without it."""
    lan: float
    """One campus: losses are faults, so notice them soon."""
    wan: float
    """Hospitals over the internet: slow lines and pauses are normal."""
    vpn: float
    """Through tunnels and proxies: as ``wan``, and idle connections are cut in silence."""
    why: str


TIMEOUTS = (
    Timeout(
        "heartbeat_interval",
        "comm_config",
        60,
        60,
        45,
        15,
        "a connection silent for this long sends a ping: shorter than the idle limit of firewalls and tunnels",
    ),
    Timeout(
        "streaming_read_timeout",
        "comm_config",
        300,
        120,
        600,
        600,
        "a receiver gives a stream up after this long without the next piece",
    ),
    Timeout(
        "streaming_ack_wait",
        "comm_config",
        300,
        120,
        600,
        600,
        "a sender whose window is full waits this long for the receiver",
    ),
    Timeout(
        "streaming_ack_progress_timeout",
        "comm_config",
        60,
        60,
        240,
        240,
        "a sender gives up when nothing at all was confirmed for this long",
    ),
    Timeout(
        "streaming_send_timeout",
        "comm_config",
        30,
        30,
        120,
        120,
        "one write to a plain socket: a slow link must not look like a dead one",
    ),
    Timeout(
        "sfm_send_stall_timeout",
        "comm_config",
        45,
        45,
        150,
        150,
        "a send blocked for this long is logged as stalled; above streaming_send_timeout",
    ),
    Timeout(
        "heart_beat_timeout",
        "server",
        600,
        60,
        180,
        120,
        "a site unheard of for this long counts as gone; sites report every 10 s",
    ),
    Timeout(
        "check_engine_frequency",
        "server",
        3,
        0.5,
        0.5,
        0.5,
        "a job's process at the server looks this often whether its workflows have ended, and reports to its parent",
    ),
    Timeout(
        "admin_timeout",
        "server",
        10,
        10,
        30,
        30,
        "the server's wait for the sites' answers to an administrator's command",
    ),
    Timeout(
        "max_reg_duration",
        "server_top",
        60,
        60,
        180,
        180,
        "time for a site's whole registration, two messages each way and the check of its certificate",
    ),
    Timeout(
        "communication_timeout",
        "client",
        300,
        300,
        1800,
        1800,
        "a site's wait for a task or for the receipt of its result, the tensors' travel included",
    ),
    Timeout(
        "maint_msg_timeout",
        "client",
        30,
        30,
        60,
        60,
        "registration and the site's 10 s heartbeat, sent again when they fail",
    ),
    Timeout("login_timeout", "admin", 10, 10, 60, 60, "an administrator's login, the connection included"),
    Timeout("authenticate_msg_timeout", "admin", 2, 5, 20, 20, "one message of that login"),
    Timeout("idle_timeout", "admin", 900, 900, 900, 900, "an administrator who types nothing is logged out"),
)


def values(profile: str, holder: Holder) -> dict[str, Any]:
    """The settings of ``profile`` that ``holder`` takes, in seconds.

    Raises:
        ConfigurationError: no such profile.
    """
    if profile not in PROFILES:
        raise ConfigurationError(
            "profile",
            got=repr(profile),
            expected=f"one of {', '.join(PROFILES)}",
            remedy=choose(profile, PROFILES),
        )
    return {entry.name: getattr(entry, profile) for entry in TIMEOUTS if entry.holder == holder}
