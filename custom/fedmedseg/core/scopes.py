"""The content of a kit's local/privacy.json: which filters each scope runs. What they do, the site file decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedmedseg.core.errors import ConfigurationError, choose

FILTERS = "fedmedseg.privacy.filters."

STANDARD, BOUNDED, PRIVATE, FIGURES = "standard", "bounded", "private", "figures"

SCOPES: dict[str, dict[str, dict[str, Any]]] = {
    STANDARD: {},
    BOUNDED: {"BoundedDifferences": {"clip": "required"}},
    PRIVATE: {"BoundedDifferences": {"clip": "required", "noise": "required"}},
    FIGURES: {"DeclaredContents": {"tensors": False}},
}
"""Scope -> filter -> what it demands beyond the site file. A job may name a scope, and each only ever asks for more
than ``standard`` does: no job can get a site to tell more than its own file allows."""

ORDER = ("DeclaredContents", "SmallCounts", "BoundedDifferences", "EncryptedDifferences")
"""Encryption comes last: nothing that judges a reply could read it afterwards."""


def privacy_policy(*, offered: Sequence[str] = tuple(SCOPES), default: str = STANDARD) -> dict[str, Any]:
    """The content of ``local/privacy.json`` in a hospital's kit.

    Args:
        offered: scopes that jobs may name (``scope`` in their meta.json); FLARE refuses jobs that name another.
        default: the scope of jobs that name none.

    Raises:
        ConfigurationError: an unknown scope, none at all, or a default that is not offered.
    """
    for name in offered:
        if name not in SCOPES:
            raise ConfigurationError(
                "privacy scope",
                got=repr(name),
                expected=f"one of {', '.join(SCOPES)}",
                remedy=choose(name, SCOPES),
            )
    if default not in offered:
        raise ConfigurationError(
            "default privacy scope", got=repr(default), expected=f"one that is offered: {', '.join(offered) or 'none'}"
        )
    return {
        "scopes": [
            {"name": name, "properties": {}, "task_result_filters": _filters(name)} for name in dict.fromkeys(offered)
        ],
        "default_scope": default,
    }


def problems(content: object) -> list[str]:
    """Why ``content``, read from a kit's privacy.json, is not a policy of ours; empty where it is one.

    A scope must be one of ours, with exactly its filters: one filter less, or one more after the noise, is a
    problem. FLARE itself accepts a file without scopes and then filters nothing.
    """
    if not isinstance(content, dict) or set(content) != {"scopes", "default_scope"}:
        return ["privacy.json: expected scopes and default_scope, and nothing else"]
    scopes = content["scopes"]
    if not isinstance(scopes, list) or not scopes:
        return ["privacy.json: no scope, so FLARE would run no filter"]
    found = []
    names = [scope.get("name") if isinstance(scope, dict) else None for scope in scopes]
    for name, scope in zip(names, scopes, strict=True):
        if not isinstance(name, str) or name not in SCOPES:
            found.append(f"privacy.json: scope {name!r} is not one of {', '.join(SCOPES)}")
        elif scope != {"name": name, "properties": {}, "task_result_filters": _filters(name)}:
            found.append(f"privacy.json: scope {name} does not run exactly the filters {', '.join(ORDER)}")
    if len(set(map(str, names))) != len(names):
        found.append("privacy.json: a scope stands there twice")
    if content["default_scope"] not in names:
        found.append(f"privacy.json: default_scope {content['default_scope']!r} is no scope of it")
    return found


def choices(content: Mapping[str, Any]) -> list[str]:
    """What a hospital has decided otherwise than its kit was made, in a policy without ``problems``.

    It may offer fewer scopes and another default: jobs that name a scope it does not offer pass it by.
    """
    names = [scope["name"] for scope in content["scopes"]]
    found = [f"scope {name!r} is not offered" for name in SCOPES if name not in names]
    if content["default_scope"] != STANDARD:
        found.append(f"default_scope is {content['default_scope']!r} instead of {STANDARD!r}")
    return found


def scope_names(privacy: Mapping[str, Any]) -> dict[str, Any]:
    """Content of the server's ``local/privacy.json``: the scopes' names without their filters.

    The server refuses a job that names another scope. It must not filter: FLARE would run a server's filters over
    what the sites' own have already clipped and made noisy.
    """
    names = [{"name": scope["name"]} for scope in privacy["scopes"]]
    return {"scopes": names, "default_scope": privacy["default_scope"]}


def _filters(scope: str) -> list[dict[str, Any]]:
    return [{"path": f"{FILTERS}{name}", "args": dict(SCOPES[scope].get(name, {}))} for name in ORDER]
