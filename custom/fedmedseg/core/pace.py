"""How long a site waits before it asks the server again for work, in a federation.

FLARE gives every site one interval for the whole job. A short one makes rounds of seconds quick and has a hundred
hospitals ask in vain fifty times a second through a round of hours; a long one does the opposite. Here it grows with
the round: what a site loses by asking late is a hundredth of what the round took anyway.
"""

from __future__ import annotations

SHORTEST, LONGEST = 0.02, 2.0
"""Seconds."""
SHARE = 0.02
"""Of the time since the round began; a site asks late by half of it on average."""


def request_interval(elapsed: float) -> float:
    """Seconds to wait, ``elapsed`` seconds after the round began."""
    return min(LONGEST, max(SHORTEST, SHARE * elapsed))
