"""How long a site waits before it asks the server again for work, and the simulator's server before it says no.

FLARE gives every site one interval for the whole job. A short one makes rounds of seconds quick and has a hundred
hospitals ask in vain fifty times a second through a round of hours; a long one does the opposite. Here it grows with
the round: what a site loses by asking late is a hundredth of what the round took anyway.

A simulated site sleeps half a second, which nobody can change, whenever it asked in vain. There the server keeps the
question for a while instead, until there is work.
"""

from __future__ import annotations

import time
from typing import Any

from nvflare.apis.fl_context import FLContext

SHORTEST, LONGEST = 0.02, 2.0
"""Seconds."""
SHARE = 0.02
"""Of the time since the round began; a site asks late by half of it on average."""
HOLD_SECONDS = 0.5
"""How long a question is kept: FLARE's simulated sites give one up after five seconds."""
LOOKS_A_SECOND = 200
"""How often, for all sites together, the server looks whether there is work by now."""
_MARK = "_holds_questions"


def request_interval(elapsed: float) -> float:
    """Seconds to wait, ``elapsed`` seconds after the round began."""
    return min(LONGEST, max(SHORTEST, SHARE * elapsed))


def hold_requests(runner: Any, sites: int) -> None:
    """Have FLARE's server runner keep the questions of so many sites, those between two stages too.

    Its own way to do it (``ServerRunner._try_to_get_task`` with a timeout) says no at once where no stage is at work.
    """
    if getattr(runner, _MARK, False):
        return
    ask, interval = runner._try_to_get_task, max(1, sites) / LOOKS_A_SECOND
    setattr(runner, _MARK, True)

    def held(client: Any, fl_ctx: FLContext) -> Any:
        end = time.monotonic() + HOLD_SECONDS
        while not (found := ask(client, fl_ctx))[0] and runner.status != "done" and time.monotonic() < end:
            time.sleep(interval)
        return found

    runner._try_to_get_task = held
