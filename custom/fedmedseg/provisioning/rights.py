"""Who may do what under a kit's local/authorization.json, found out by asking FLARE's own authorizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nvflare.fuel.sec.authz import AuthzContext, Person, parse_policy_config
from nvflare.security.security import COMMAND_CATEGORIES

from fedmedseg.core.findings import Finding, failed, passed
from fedmedseg.core.kit import Kit, read_json
from fedmedseg.provisioning import policy

STRANGER = ("somebody", "another organisation")
"""Name and organisation of a person who is neither of the site nor the submitter of anything."""


def authorization(kit: Kit) -> Iterator[Finding]:
    """Findings on code that jobs bring and on rights across organisations.

    Raises:
        ConfigurationError: no policy, or one that is not JSON.
    """
    own = kit.local / "authorization.json"
    # without it FLARE takes the file of its own kits
    content = read_json(own if own.exists() else own.with_name(f"{own.name}.default"))
    rules, error = parse_policy_config(content, COMMAND_CATEGORIES)
    if rules is None:
        yield failed("authorization", f"FLARE cannot read it: {error}", "provision the kit again")
        return

    def may(role: str, right: str, *, own: bool, submitter: bool = False) -> bool:
        """Whether FLARE lets ``role`` do it at a site of its own organisation or another's."""
        name, org = STRANGER
        user = Person(name, org, role)
        context = AuthzContext(right, user, user if submitter else Person("submitter", "submitting organisation", ""))
        permitted, _ = rules.evaluate(org if own else "organisation of the site", context)
        return bool(permitted)

    roles = sorted({*rules.get_roles(), *policy.ROLES})
    # those who could be named one by one, as n:somebody or o:somewhere, cannot be tried out
    named = _named(content)
    bringing = [
        role
        for role in roles
        if any(may(role, right, own=True, submitter=True) for right in policy.CODE_RIGHTS)
        or named.intersection((role, right) for right in policy.CODE_RIGHTS)
    ]
    if bringing:
        yield failed("BYOC", f"{', '.join(bringing)} may bring code", 'set byoc to "none" for every role, one by one')
    else:
        yield passed("BYOC", f"off for {', '.join(roles)}")
    mend = "restore local/authorization.json as provisioned"
    wrong = [
        *(f"{role} may read files of other organisations' sites" for role in roles if may(role, "cat", own=False)),
        *(f"{role} may submit jobs" for role in ("org_admin", "member") if may(role, "submit_job", own=True)),
        *(
            f"{role} may {right} of other people's jobs"
            for role in ("org_admin", "lead", "member")
            for right in ("abort_job", "delete_job", "download_job", "clone_job", "get_job_log")
            if may(role, right, own=True)
        ),
        *(
            f"{role} may {right} sites of other organisations"
            for role in ("org_admin", "lead", "member")
            for right in ("shutdown", "restart")
            if may(role, right, own=False)
        ),
        *(f"a role of its own: {role}" for role in roles if role not in policy.ROLES),
    ]
    for one in wrong:
        yield failed("rights", one, mend)
    if not wrong:
        yield passed("rights", "across no organisation but the network's own")


def _named(content: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Role and right wherever a rule for a right to code says more than "none"."""
    found = set()
    for role, rights in content["permissions"].items():
        for right in policy.CODE_RIGHTS:
            rule = rights.get(right, "none") if isinstance(rights, Mapping) else rights
            said = rule if isinstance(rule, list) else [rule]
            if any(str(word).lower().split() not in (["none"], ["no"]) for word in said):
                found.add((role, right))
    return found
