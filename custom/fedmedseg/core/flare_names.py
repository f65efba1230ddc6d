"""Names that FLARE takes, and that its start scripts hand on as they are.

``sub_start.sh`` passes a participant's name and organisation as ``uid=NAME org=ORG``, which FLARE reads back as numbers
and truth values where it can: a site called ``n`` then has no name, and asks the server for ever.
"""

from __future__ import annotations

from nvflare.apis.utils.format_check import name_check
from nvflare.fuel.utils.argument_utils import parse_vars

from fedmedseg.core.errors import ConfigurationError


def misread(name: str) -> str | None:
    """What FLARE makes of ``name``, in words, or None where the same text comes back."""
    found = parse_vars([f"uid={name}"])["uid"]
    if isinstance(found, str):
        return None if found == name else repr(found)
    # a truth value is an int too
    return f"the {'truth value' if isinstance(found, bool) else 'number'} {found}"


def require_kept(name: str, *, field: str, remedy: str = "") -> None:
    """Refuse a name that FLARE would read as something else when the participant starts.

    Raises:
        ConfigurationError: it would.
    """
    found = misread(name)
    if found is not None:
        raise ConfigurationError(
            field,
            got=f"{name!r}, which FLARE's start script hands on as {found}",
            expected="a name that is neither a number nor a word for yes or no",
            remedy=remedy or f"write {f'site-{name}'!r}",
        )


def is_host(name: str) -> bool:
    """Whether FLARE takes ``name`` for a server's."""
    refused, _ = name_check(name, "server")
    return not refused


def is_address(name: str) -> bool:
    """Whether FLARE takes ``name`` for a person's: an e-mail address."""
    refused, _ = name_check(name, "admin")
    return not refused
