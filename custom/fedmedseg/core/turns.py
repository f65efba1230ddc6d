"""Which sites a round asks, where not all take part in every round."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fedmedseg.core.seeding import generator


def asked(participation: float, sites: int) -> int:
    """How many of ``sites`` a round asks: the share, rounded up.

    >>> [asked(0.5, sites) for sites in (1, 2, 3)]
    [1, 1, 2]
    """
    # 0.55 * 100 is a little more than 55 in floating point, and still means 55
    return max(1, math.ceil(participation * sites - 1e-9))


def taking_part(sites: Sequence[str], participation: float, *, seed: int, stage: str, number: int) -> list[str]:
    """The sites that round ``number`` (from 0) of ``stage`` asks, in the order of ``sites``.

    They take turns in an order that the seed draws anew each time all had theirs: a site comes as often as every other,
    give or take one, so that even a short study asks everybody. Drawn from seed, stage and round alone.
    """
    count = asked(participation, len(sites))
    if count == len(sites):
        return list(sites)
    waiting: list[str] = []
    chosen: list[str] = []
    deal = 0
    for _ in range(number + 1):
        chosen = []
        while len(chosen) < count:
            # who had the last turn of one deal and the first of the next has it a round later
            site = next((one for one in waiting if one not in chosen), None)
            if site is None:
                order = generator(seed, "participation", stage, deal).permutation(len(sites))
                waiting += [sites[place] for place in order]
                deal += 1
            else:
                waiting.remove(site)
                chosen.append(site)
    return [site for site in sites if site in chosen]
