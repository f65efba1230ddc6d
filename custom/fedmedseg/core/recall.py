"""What a site remembers of each round: enough of two rounds that a round which is asked again begins as it did."""

from __future__ import annotations

from typing import Any

from fedmedseg.core.state import SiteState


def remember(state: SiteState, name: str, round: int, tree: dict[str, Any]) -> None:
    """Keep ``tree`` as what ``round`` left, beside what the round before it left."""
    earlier = _before(state, name, round)
    kept = ([earlier] if earlier is not None else []) + [{"round": round, "tree": tree}]
    state.save(name, {"rounds": kept})


def recall(state: SiteState, name: str, before: int) -> dict[str, Any] | None:
    """What the last remembered round before ``before`` left, or None.

    A memory of a later round is of a future that the server went back from: it must not leak into this one.
    """
    found = _before(state, name, before)
    return None if found is None else dict(found["tree"])


def _before(state: SiteState, name: str, round: int) -> dict[str, Any] | None:
    saved = state.load(name)
    rounds = [entry for entry in saved["rounds"] if entry["round"] < round] if saved is not None else []
    return max(rounds, key=lambda entry: int(entry["round"]), default=None)
