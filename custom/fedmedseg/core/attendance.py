"""Who takes part in a stage, and what each site has said in its present round."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from fedmedseg.core.rounds import LOST


class Attendance:
    """Sites that were asked, answered, declined or went away.

    A site that declined has left the quorum for the rest of the stage. One that is unfit (``wire.LASTING``) is asked no
    more either, and still needed; so is one whose process is gone, until it is back.

    What sites say comes on FLARE's threads, and somebody may look on meanwhile: ``replies`` changes under a lock.
    """

    def __init__(self) -> None:
        self.declined: dict[str, str] = {}
        self.unfit: dict[str, str] = {}
        self._lost: set[str] = set()
        self._replies: dict[str, dict[str, Any]] = {}
        self._unread: set[str] = set()
        self._lock = threading.Lock()

    def open_round(self) -> None:
        """Forget what was said in the round before."""
        with self._lock:
            self._unread = set()
            self._replies = {site: _said(reason) for site, reason in self.unfit.items()}
            self._replies |= {site: _said(LOST) for site in tuple(self._lost)}

    @property
    def replies(self) -> Mapping[str, dict[str, Any]]:
        """``reason`` (None where the reply counts) and ``seconds`` of each site that has said anything."""
        with self._lock:
            return {site: dict(reply) for site, reply in self._replies.items()}

    def lose(self, site: str) -> None:
        """A site's process is gone; a reply it has already given in this round stays."""
        self._lost.add(site)
        with self._lock:
            self._replies.setdefault(site, _said(LOST))

    def back(self, site: str) -> None:
        """Whoever asks for work is there."""
        self._lost.discard(site)

    def unread(self, sender: str, connected: Collection[str], reason: str) -> str | None:
        """A message that calls itself ``sender``'s was refused unread; who to call it, or None where that is known.

        FLARE's client sends again until its task is taken back: one note a round is enough. The name is the sender's
        own word, so a reply that comes after all takes its place.
        """
        site = sender if sender in connected else "somebody"
        with self._lock:
            if site in self._unread:
                return None
            self._unread.add(site)
            if site == sender:
                self._replies.setdefault(site, _said(reason))
        return site

    def note(self, site: str, reason: str | None, seconds: float, *, keep: bool) -> None:
        """A reply of ``site`` counts, or does not for ``reason``. ``keep``: what it said before stands."""
        with self._lock:
            if not keep:
                self._replies[site] = {"reason": reason, "seconds": seconds}

    def note_declined(self) -> None:
        """Sites that declined, in this round or before, stand in its record."""
        with self._lock:
            self._replies |= {site: _said(reason) for site, reason in dict(self.declined).items()}

    def counted(self, connected: Iterable[str]) -> list[str]:
        """Those that have not declined."""
        return [site for site in connected if site not in self.declined]

    def asked(self, counted: Iterable[str]) -> list[str]:
        """Those of them that can be asked."""
        return [site for site in counted if site not in self.unfit and site not in self._lost]

    def answered(self) -> set[str]:
        """Sites that are there and have said something in this round."""
        return set(self.replies) - self.declined.keys() - self.unfit.keys() - self._lost

    def failed(self, asked: Iterable[str], accepted: Collection[str]) -> list[str]:
        """Those of ``asked`` that can be asked again: who is gone cannot."""
        settled = {*accepted, *self.declined, *self.unfit, *self._lost}
        return [site for site in asked if site not in settled]


def _said(reason: str) -> dict[str, Any]:
    return {"reason": reason, "seconds": None}
