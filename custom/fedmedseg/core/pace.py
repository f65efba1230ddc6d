"""How long a site waits before it asks the server again for work, and the simulator's server before it says no.

FLARE gives every site one interval for the whole job. A short one makes rounds of seconds quick and has a hundred
hospitals ask in vain fifty times a second through a round of hours; a long one does the opposite. Here it grows with
the round: what a site loses by asking late is a hundredth of what the round took anyway.

A simulated site sleeps half a second, which nobody can change, whenever it asked in vain. There the server keeps the
question for a while instead, until there is work.
"""

from __future__ import annotations

from functools import partial
from typing import Any

SHORTEST, LONGEST = 0.02, 2.0
"""Seconds."""
SHARE = 0.02
"""Of the time since the round began; a site asks late by half of it on average."""


def request_interval(elapsed: float) -> float:
    """Seconds to wait, ``elapsed`` seconds after the round began."""
    return min(LONGEST, max(SHORTEST, SHARE * elapsed))


HOLD_SECONDS = 0.5
"""How long a question is kept: FLARE's simulated sites give one up after five seconds."""
LOOKS_A_SECOND = 200
"""How often, for all sites together, the server looks whether there is work by now."""


def hold_requests(runner: Any, sites: int) -> None:
    """Have FLARE's server runner keep the questions of so many sites.

    It can (`nvflare/private/fed/server/server_runner.py`, ``_try_to_get_task``), and nothing in FLARE 2.9.0 asks it to.
    """
    if not isinstance(runner._try_to_get_task, partial):
        interval = max(1, sites) / LOOKS_A_SECOND
        runner._try_to_get_task = partial(runner._try_to_get_task, timeout=HOLD_SECONDS, retry_interval=interval)
