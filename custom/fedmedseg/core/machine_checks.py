"""Checks of the machine: Python, packages, disk, shared memory, clock."""

from __future__ import annotations

import ctypes
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from fedmedseg.core.findings import Finding, failed, passed, warned

PACKAGE = "fedmedseg"
MIB = 2**20
GIB = 2**30
SPARE_DISK = GIB
"""Free bytes below which a disk is nearly full, whatever is planned for it."""
LEAST_DISK = 64 * MIB
"""Free bytes that logs and one report need."""
LEAST_SHARED = 64 * MIB
"""What a container engine gives to /dev/shm where nobody asks for more."""
CUDA_SHARED = GIB
STEP = 0.05
"""Seconds for which the two clocks are compared."""
DRIFT = 0.02
"""Seconds by which they may differ over ``STEP``."""
READINGS = 3
"""How often they are compared: a process that has to wait between two readings looks like a clock that jumps."""
TIME_ERROR = 5
"""What the kernel answers when nothing disciplines its clock (adjtimex(2))."""


def python_version(found: str | None = None, wanted: str | None = None) -> Finding:
    """Whether this Python is one the package is for."""
    from packaging.specifiers import SpecifierSet

    check, found = "python", found or platform.python_version()
    wanted = wanted or _requires_python()
    if wanted is None:
        return warned(check, f"{found}; the package is not installed", "pip install the wheel that came with the kit")
    if found not in SpecifierSet(wanted, prereleases=True):
        return failed(check, f"{found}, not {wanted}", f"make the environment with a Python {wanted}")
    return passed(check, f"{found} ({wanted})")


def packages(
    needed: Iterable[str] | None = None,
    tested: Mapping[str, str] | None = None,
    installed: Callable[[str], str] = version,
) -> Finding:
    """Whether everything the package needs is there in a version it allows; other than tested ones are a WARN.

    ``needed`` are requirement lines as in pyproject.toml, ``tested`` versions by normalised name as in
    constraints.txt.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    check, mend = "packages", "pip install -c constraints.txt with the wheel that came with the kit"
    if needed is None:
        try:
            needed = requires(PACKAGE) or ()
        except PackageNotFoundError:
            return warned(check, f"{PACKAGE} is not installed as a package", mend)
    wrong, other, count = [], [], 0
    for line in needed:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            has = installed(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(has, prereleases=True):
            wrong.append(f"{requirement.name} {has}, not {requirement.specifier}")
            continue
        known = (tested or {}).get(canonicalize_name(requirement.name))
        # a local part such as +cu128 says how a wheel was built, not what is in it
        if known is not None and has.partition("+")[0] != known:
            other.append(f"{requirement.name} {has} (tested {known})")
    if wrong:
        return failed(check, "; ".join(wrong), mend)
    if other:
        return warned(check, "allowed, but not what was tested: " + ", ".join(other), mend)
    return passed(check, f"{count} in allowed versions" + (", as tested" if tested else ""))


def tested_versions(file: Path) -> dict[str, str]:
    """The versions a constraints file pins, by normalised name; none where there is no such file."""
    try:
        return pinned_versions(file.read_text(encoding="utf-8"))
    except OSError:
        return {}


def pinned_versions(text: str) -> dict[str, str]:
    """The versions that the text of a constraints file pins, by normalised name."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    pinned: dict[str, str] = {}
    for line in text.splitlines():
        try:
            requirement = Requirement(line.partition("#")[0].strip())
        except InvalidRequirement:
            continue
        exact = [one.version for one in requirement.specifier if one.operator == "=="]
        if exact:
            pinned[canonicalize_name(requirement.name)] = exact[0]
    return pinned


def disk(needs: Mapping[Path, Mapping[str, int]]) -> Finding:
    """Whether each file system has room for all that is planned on it.

    ``needs`` are bytes by folder and by what they are for. A folder need not exist yet; folders of one file system
    share its room.
    """
    check = "disk"
    places: dict[int, tuple[Path, dict[str, int]]] = {}
    for folder, parts in needs.items():
        there = next(one for one in (folder, *folder.parents) if one.exists())
        if not os.access(there, os.W_OK):
            return failed(
                check,
                f"the folder for {_listed(parts)} cannot be written",
                "change its owner, or the site file's folders",
            )
        _, together = places.setdefault(there.stat().st_dev, (there, {}))
        for name, size in parts.items():
            together[name] = together.get(name, 0) + size
    told, tight = [], False
    for there, together in places.values():
        status = os.statvfs(there)
        free, need = status.f_bavail * status.f_frsize, sum(together.values())
        text = f"{human(free)} free for {_listed(together)}" + (f" (about {human(need)})" if need else "")
        if free < max(need, LEAST_DISK):
            return failed(check, text, "free space, or set state_dir, cache_dir and models_dir to a larger disk")
        tight = tight or free < need + SPARE_DISK
        told.append(text)
    if tight:
        return warned(check, "; ".join(told), "free space soon: little is left beyond what this study needs")
    return passed(check, "; ".join(told))


def shared_memory(folder: Path = Path("/dev/shm"), *, cuda: bool = False) -> Finding:
    """Whether shared memory is there and can be written, with the room that a container engine often forgets.

    Python's semaphores lie in it, and NCCL's buffers where several GPUs of one machine work together.
    """
    check, mend = "shared memory", "run the container with --shm-size=1g (Kubernetes: an emptyDir with medium Memory)"
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        return failed(check, f"{folder} cannot be written ({type(error).__name__})", mend)
    status = os.statvfs(folder)
    free, wanted = status.f_bavail * status.f_frsize, CUDA_SHARED if cuda else LEAST_SHARED
    if free < wanted:
        return warned(check, f"{human(free)} free, {human(wanted)} wanted", mend)
    return passed(check, f"{human(free)} free")


def clock(
    *,
    wall: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    disciplined: Callable[[], bool | None] | None = None,
) -> Finding:
    """Whether this machine's clocks run, agree over a moment, and are kept in time by something.

    Both clocks are read one after the other, and on a busy machine this process may have to wait in between: where they
    disagree they are compared again, and the best of ``READINGS`` counts.

    How far the clock is from the server's is not measured: that needs the server. A clock off by more than the
    start of the certificates shows under "certificate dates".
    """
    check = "clock"
    jumps: list[tuple[float, float]] = []
    for _ in range(READINGS):
        began, began_wall = monotonic(), wall()
        sleep(STEP)
        took, took_wall = monotonic() - began, wall() - began_wall
        if took <= 0:
            stands = "the monotonic clock stands still or runs back: no timeout would work"
            return failed(check, stands, "mend the machine")
        jumps.append((took_wall - took, took))
        if abs(took_wall - took) <= DRIFT:
            break
    jump, took = min(jumps, key=lambda one: abs(one[0]))
    if abs(jump) > DRIFT:
        return failed(
            check,
            f"the date jumped by {jump:+.3f} s within {took:.2f} s, in each of {READINGS} readings",
            "something sets the clock in steps: use one time service (chrony or systemd-timesyncd)",
        )
    kept = (disciplined or kernel_clock)()
    unmeasured = "skew against the server not measured"
    if kept is False:
        return warned(
            check,
            f"it runs evenly, but the kernel knows of no time service; {unmeasured}",
            "start chrony or systemd-timesyncd (on the host, for a container or a virtual machine)",
        )
    return passed(check, "it runs evenly" + (", kept by a time service" if kept else "") + f"; {unmeasured}")


def kernel_clock() -> bool | None:
    """Whether the kernel says that its clock is kept in time; None where it does not tell."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    # struct timex is 208 bytes on 64-bit Linux; mode 0 reads and changes nothing
    answer = adjtimex(ctypes.create_string_buffer(512))
    return None if answer < 0 else answer != TIME_ERROR


def human(size: float) -> str:
    """Bytes for people."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(sorted(parts))


def _requires_python() -> str | None:
    try:
        found = metadata(PACKAGE)["Requires-Python"]
    except (PackageNotFoundError, KeyError):
        return None
    return str(found) if found else None
