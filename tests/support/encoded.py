"""Messages as FLARE encodes them, from any place in the tests.

FOBS keeps for the whole process what it first learned of a type: what is encoded before it knows FLARE's own types
changes every later message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nvflare.apis.utils.decomposers import flare_decomposers
from nvflare.fuel.utils import fobs

from fedmedseg.core import large_tensors


def sent(message: Any) -> bytes:
    """What leaves."""
    flare_decomposers.register()
    large_tensors.register()
    return fobs.dumps(message)


def arrived(message: Any) -> Any:
    """The same as its receiver has it."""
    return fobs.loads(sent(message))


@contextmanager
def another_process() -> Iterator[None]:
    """Within, FOBS knows nothing that this process has told it; afterwards, all of it again."""
    known = [
        (kept, type(kept)(kept))
        for kept in (fobs.fobs._decomposers, fobs.fobs._dot_handlers, fobs.fobs._type_name_whitelist)
    ]
    registered = fobs.fobs._decomposers_registered
    fobs.reset()
    try:
        yield
    finally:
        for kept, before in known:
            kept.clear()
            kept.update(before)
        fobs.fobs._decomposers_registered = registered
