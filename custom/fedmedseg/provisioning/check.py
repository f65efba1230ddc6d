"""Whether a startup kit still is as safe as it was made: what `fedmedseg site-policy --check` finds."""

from __future__ import annotations

import datetime
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.findings import Finding, Level, failed, passed, warned
from fedmedseg.core.kit import STARTUP_FILES, Kit, open_kit, read_json, site_resources
from fedmedseg.core.kit_checks import (
    certificate_chain,
    certificate_dates,
    certificate_key,
    class_allow_list,
    privacy_scopes,
    today,
)
from fedmedseg.core.package_files import package_files
from fedmedseg.core.release import installed, release
from fedmedseg.core.schema import parse, read_yaml
from fedmedseg.data.site import SITE_FILE, SiteFile
from fedmedseg.provisioning import policy
from fedmedseg.provisioning.encryption import encryption
from fedmedseg.provisioning.identity import federation_root, server_name, site_name
from fedmedseg.provisioning.own_files import CHECK, own_files
from fedmedseg.provisioning.rights import authorization
from fedmedseg.provisioning.timeouts import PROFILES
from fedmedseg.provisioning.wheel import Wheel, read_wheel, same_wheel

Look = Callable[[Kit], Iterator[Finding]]


def check_kit(
    root: Path,
    *,
    trusted_root: Path | None = None,
    wheel: Path | None = None,
    now: datetime.datetime | None = None,
) -> list[Finding]:
    """Look at everything in a kit that keeps a hospital safe.

    Args:
        root: the kit's folder.
        trusted_root: the federation's root certificate, from another source than the kit; without it a kit whose
            certificates were all exchanged passes.
        wheel: the wheel to install, or that was installed, to compare with what the kit names; with what is installed
            here too, unless that is a source tree.
        now: the time certificates are judged at.

    Raises:
        ConfigurationError: no kit, or no wheel of this package at ``wheel``.
    """
    kit, now, given = open_kit(root), now or today(), None if wheel is None else read_wheel(wheel)
    found = [certificate_chain(kit), certificate_dates(kit, now=now), certificate_key(kit)]
    if trusted_root is not None:
        found.append(federation_root(kit, trusted_root))
    if kit.role != "admin":
        found += [class_allow_list(kit), privacy_scopes(kit)]
    looks: list[tuple[str, Look]] = [("connection", _connection), ("release", _release), (CHECK, _own_files)]
    if given is not None:
        looks.append(("wheel", lambda kit: _wheel(kit, given)))
    if kit.role != "admin":
        looks += [
            ("components", _components),
            ("own code", _own_code),
            ("authorization", authorization),
            ("communication", _communication),
            ("signed jobs", _signed_jobs),
            ("pinned files", _pinned),
        ]
    if kit.role == "server":
        found.append(server_name(kit))
        looks.append(("stores", _stores))
    if kit.role == "client":
        found.append(site_name(kit))
        looks.append(("site file", _site_file))
    looks += [("encryption", encryption), ("spare files", _spare_files), ("permissions", _permissions)]
    return [*found, *(finding for check, look in looks for finding in _guarded(check, look, kit))]


def _guarded(check: str, look: Look, kit: Kit) -> list[Finding]:
    """What ``look`` finds; a file that cannot be read, or is of another shape, is a failure and not an end."""
    try:
        return list(look(kit))
    except ConfigurationError as error:
        return [failed(check, str(error), "provision the kit again")]
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        return [failed(check, f"of a shape FLARE does not know: {error!r}", "provision the kit again")]


def _resources(kit: Kit) -> dict[str, Any]:
    return read_json(site_resources(kit.local))


def _components(kit: Kit) -> Iterator[Finding]:
    check, resources = "components", _resources(kit)
    ours = policy.SERVER_COMPONENTS if kit.role == "server" else policy.SITE_COMPONENTS
    paths = [str(entry.get("path", entry.get("name"))) for entry in resources.get("components", [])]
    strange = sorted(set(paths) - set(ours.values()) - policy.CONTAINER_COMPONENTS)
    if strange:
        yield failed(check, f"started with FLARE, unknown to us: {', '.join(strange)}", "remove them from it")
    wanted = policy.class_policy(kit.role)["app_validator"]
    validator = resources.get("app_validator")
    if validator != wanted:
        found = "nothing looks" if validator is None else f"{validator.get('path')} looks"
        mend = f"set app_validator in it to {json.dumps(wanted)}"
        yield failed(check, f"{found} at a job's classes when it is deployed", mend)
    replaced = policy.REPLACED if _prepared(resources) else ()
    gone = [name for name, path in ours.items() if path not in paths and name not in replaced]
    if gone:
        yield failed(check, f"missing: {', '.join(gone)}", "take local/resources.json of the kit as provisioned")
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        yield failed(check, f"more than once: {', '.join(twice)}", "remove the second one")
    keys = sorted(set(resources) - policy.RESOURCE_KEYS[kit.role])
    if keys:
        yield failed(check, f"local/resources.json has {', '.join(keys)}, which is none of ours", "remove it")
    extra = [
        file.relative_to(kit.root).as_posix()
        for folder in (kit.local, kit.startup)
        for pattern in ("*__resources.json", "*__p_resources.json", "*__j_resources.json", "job_resources.json")
        for file in sorted(folder.glob(pattern))
    ]
    if extra:
        yield failed(check, f"FLARE adds to the resources: {', '.join(extra)}", "remove them")
    if not (strange or gone or twice or keys or extra) and validator == wanted:
        yield passed(check, f"{len(paths)}, all known")
    if resources.get("allow_log_streaming"):
        yield warned(
            "log streaming", "this site's logs go to the server while a job runs", "set allow_log_streaming to false"
        )


def _prepared(resources: Mapping[str, Any]) -> bool:
    """Whether `nvflare deploy prepare` has changed these resources."""
    return any(entry.get("path") in policy.CONTAINER_COMPONENTS for entry in resources.get("components", []))


def _own_files(kit: Kit) -> Iterator[Finding]:
    yield own_files(kit, prepared=kit.role != "admin" and _prepared(_resources(kit)))


def _communication(kit: Kit) -> Iterator[Finding]:
    check, found = "communication", read_json(kit.local / "comm_config.json")
    profiles = {name: policy.comm_config(name) for name in PROFILES}
    if _prepared(_resources(kit)):
        # how a job's container reaches its parent: FLARE's own choice there
        found, profiles = _but_internal(found), {name: _but_internal(one) for name, one in profiles.items()}
    for name, meant in profiles.items():
        if found == meant:
            yield passed(check, f"no connection past the server, patience of profile {name}")
            return
    known = {key for meant in profiles.values() for key in meant}
    strange = sorted(set(found) - known)
    why = f"unknown to us: {', '.join(strange)}" if strange else "other values than those of any profile"
    yield failed(check, f"local/comm_config.json: {why}", "take local/comm_config.json of the kit as provisioned")


def _but_internal(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != "internal"}


def _own_code(kit: Kit) -> Iterator[Finding]:
    folder = kit.local / "custom"
    if folder.is_dir() and any(folder.iterdir()):
        yield failed("own code", "local/custom is on Python's path", "remove local/custom")
    else:
        yield passed("own code", "none beside the installed packages")


def _connection(kit: Kit) -> Iterator[Finding]:
    if kit.security == "mtls":
        yield passed("connection", "both sides show a certificate")
    else:
        yield failed("connection", f"connection_security is {kit.security!r}", "set it to mtls")


def _release(kit: Kit) -> Iterator[Finding]:
    yield release(kit)


def _wheel(kit: Kit, wheel: Wheel) -> Iterator[Finding]:
    same = same_wheel(kit, wheel)
    yield same
    # what a foreign wheel holds proves nothing
    if same.level is Level.PASS and not installed().editable:
        yield package_files(wheel.record, of="the wheel")


def _signed_jobs(kit: Kit) -> Iterator[Finding]:
    if read_json(kit.startup / STARTUP_FILES[kit.role]).get("require_signed_jobs") is True:
        yield passed("signed jobs", "unsigned and changed jobs are refused")
    else:
        yield failed("signed jobs", "require_signed_jobs is not true in startup/fed_*.json", "set require_signed_jobs")


def _stores(kit: Kit) -> Iterator[Finding]:
    resources = _resources(kit)
    components = {entry["id"]: entry for entry in resources["components"]}
    store, manager = components["job_store"], components["job_manager"]
    snapshots = resources["snapshot_persistor"]["args"]["storage"]
    base = _root_of(store, kit)
    # an absolute uri starts at the store's root, as a relative one does
    jobs = Path(os.path.normpath(base / str(manager["args"]["uri_root"]).lstrip("/")))
    workspaces = [kit.root]
    if _prepared(resources):
        workspaces.append(Path(policy.CONTAINER_WORKSPACE))
    for name, folder in (("job store", jobs), ("snapshot store", _root_of(snapshots, kit))):
        inside = next((one for one in workspaces if one in folder.parents), None)
        if inside is not None:
            yield passed(name, f"{folder.relative_to(inside).as_posix()} in the workspace")
        else:
            yield failed(name, f"{folder} outside the server's workspace", f"put it under {policy.STORE}, relative")
    moved = os.environ.get("NVFL_JOB_STORE_ROOT")
    if moved:
        yield failed("job store", f"NVFL_JOB_STORE_ROOT moves it to {moved}", "unset NVFL_JOB_STORE_ROOT")


def _root_of(entry: Mapping[str, Any], kit: Kit) -> Path:
    """Root of a file store; FLARE's own takes the disk's root where none is given."""
    given = str(entry.get("args", {}).get("root_dir", "/"))
    return Path(os.path.normpath(kit.root / given if entry["path"] == policy.STORAGE else given))


def _site_file(kit: Kit) -> Iterator[Finding]:
    file = kit.local / SITE_FILE
    if not file.is_file():
        yield failed("site file", f"no local/{SITE_FILE}", "copy app_configs/sites/example.yaml there and fill it in")
        return
    settings = parse(SiteFile, read_yaml(file), source=SITE_FILE)
    yield passed("site file", f"offers {', '.join(sorted(settings.datasets))}")


def _pinned(kit: Kit) -> Iterator[Finding]:
    """``policy.PINNED`` says why."""
    startup = STARTUP_FILES[kit.role]
    meant = {name: kit.local / name for name in policy.PINNED} | {startup: kit.startup / startup}
    meant["resources.json"] = site_resources(kit.local)
    for name, file in meant.items():
        pin, target = kit.root / name, file.relative_to(kit.root).as_posix()
        if not pin.is_file():
            found = f"{name} is not in the kit's root: a job's own file of that name could be read in its stead"
        elif not file.is_file() or pin.read_bytes() != file.read_bytes():
            found = f"FLARE reads {name} in the kit's root, which differs from {target}"
        else:
            continue
        yield failed("pinned files", found, f"in the kit's root: ln -sf {target} {name}")
        return
    yield passed("pinned files", "no job's file can stand in for them")


def _spare_files(kit: Kit) -> Iterator[Finding]:
    for file in sorted([*kit.local.glob("*.default"), *kit.local.glob("*.sample")]):
        active = file.with_suffix("").name
        if (kit.local / active).is_file():
            found = f"local/{file.name} takes over as soon as {active} is gone"
            yield warned("spare files", found, f"remove local/{file.name}")


def _permissions(kit: Kit) -> Iterator[Finding]:
    open_to_all = [
        file.relative_to(kit.root).as_posix()
        for folder in (kit.startup, kit.local)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.stat().st_mode & stat.S_IWOTH
    ]
    if open_to_all:
        found = f"everybody on this machine may change {', '.join(open_to_all)}"
        yield failed("permissions", found, "chmod -R o-w startup local")
    else:
        yield passed("permissions", "nobody but the owner and the group may change the kit")
