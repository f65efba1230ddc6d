"""The builder that makes every startup kit safe by default."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from nvflare.lighter.constants import ParticipantType, PropKey, ProvFileName
from nvflare.lighter.ctx import ProvisionContext
from nvflare.lighter.entity import Participant, Project
from nvflare.lighter.spec import Builder

from fedmedseg.core.errors import ConfigurationError, nearest
from fedmedseg.core.flare_names import require_kept
from fedmedseg.core.jobs import bundle_roots
from fedmedseg.core.release import RELEASE_FILE
from fedmedseg.core.scopes import privacy_policy, scope_names
from fedmedseg.data.site import SITE_FILE
from fedmedseg.provisioning import policy
from fedmedseg.provisioning.own_files import digests
from fedmedseg.provisioning.wheel import make_release

FORSAKEN = ("resources.json.default", "authorization.json.default", "privacy.json.sample")
"""Files of FLARE's own kits that the ones written here replace. Left in place they would come back to life, with
FLARE's wider rights, as soon as somebody removed ours."""


class SafeKitBuilder(Builder):
    """Writes the local files of server, sites and administrators; list it after StaticFileBuilder and CertBuilder.

    Args:
        profile: kind of network: lan, wan or vpn (``timeouts.TIMEOUTS``).
        max_jobs: jobs the server runs at a time.
        max_sites: sites the server lets in.
        wheel: the wheel of this package that all participants are to install, from the folder in which the command is
            given; every kit then names its SHA-256 (``core.release``). Unset: the kits name the version installed
            here and say that there was no wheel.
    """

    def __init__(self, profile: str = "wan", max_jobs: int = 4, max_sites: int = 100, wheel: str = "") -> None:
        self.profile = profile
        self.max_jobs = max_jobs
        self.max_sites = max_sites
        self.wheel = wheel

    def build(self, project: Project, ctx: ProvisionContext) -> None:
        """Write every participant's files."""
        release = make_release(Path(self.wheel).expanduser() if self.wheel else None).model_dump(mode="json")
        if not self.wheel:
            ctx.info(f"no wheel was given: the kits name version {release['version']} and no SHA-256")
        for participant in project.get_all_participants():
            if participant.type == ParticipantType.RELAY:
                raise ConfigurationError(
                    f"participants.{participant.name}", got="a relay", expected="server, client or admin"
                )
            if participant.get_prop(PropKey.LISTENING_HOST):
                raise ConfigurationError(
                    f"participants.{participant.name}.listening_host",
                    got=participant.get_prop(PropKey.LISTENING_HOST),
                    expected="nothing: our jobs need no open port at a hospital",
                    remedy="remove listening_host",
                )
            _require_sense(participant)
        for participant in project.get_all_participants():
            self._write(participant, Path(ctx.get_local_dir(participant)))
            startup = Path(ctx.get_kit_dir(participant))
            _write_json(startup / RELEASE_FILE, {**release, "files": digests(startup.parent)})

    def _write(self, participant: Participant, local: Path) -> None:
        for name in FORSAKEN:
            (local / name).unlink(missing_ok=True)
        if participant.type == ParticipantType.ADMIN:
            _write_json(local / "resources.json", policy.admin_resources(self.profile))
            return
        _write_json(local / "authorization.json", policy.authorization())
        _write_json(local / "comm_config.json", policy.comm_config(self.profile))
        log = local / "log_config.json.default"
        if log.is_file():
            # the name FLARE reads first
            log.rename(local / "log_config.json")
        at_server = participant.type == ParticipantType.SERVER
        if at_server:
            resources = policy.server_resources(self.profile, max_jobs=self.max_jobs, max_sites=self.max_sites)
            privacy = scope_names(privacy_policy())
        else:
            capacity = participant.get_prop(PropKey.CAPACITY) or {}
            resources = policy.site_resources(
                self.profile,
                gpus=capacity.get(PropKey.NUM_GPUS, 0),
                gpu_memory=capacity.get(PropKey.GPU_MEM, 0),
                allow_log_streaming=bool(participant.get_prop_fb(PropKey.ALLOW_LOG_STREAMING, default=False)),
            )
            privacy = privacy_policy()
            shutil.copyfile(site_template(), local / SITE_FILE)
        _write_json(local / "privacy.json", privacy)
        _write_json(local / "resources.json", resources)
        startup = ProvFileName.FED_SERVER_JSON if at_server else ProvFileName.FED_CLIENT_JSON
        for name, folder in [*((name, "local") for name in policy.PINNED), (startup, "startup")]:
            # relative: the kit moves
            (local.parent / name).symlink_to(Path(folder) / name)


def _require_sense(participant: Participant) -> None:
    """Refuse what FLARE would write into a kit as it is, and fail on when the kit is started, or never.

    Raises:
        ConfigurationError: naming the participant's entry, what came and what was expected.
    """

    def refuse(field: str, got: object, expected: str, remedy: str = "") -> NoReturn:
        raise ConfigurationError(f"participants.{participant.name}.{field}", got=got, expected=expected, remedy=remedy)

    for name in (PropKey.FED_LEARN_PORT, PropKey.ADMIN_PORT):
        port = participant.get_prop(name)
        if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535):
            refuse(name, port, "a port, 1 to 65535")
    if participant.type == ParticipantType.CLIENT:
        require_kept(participant.name, field=f"participants.{participant.name}.name")
    if participant.type != ParticipantType.ADMIN:
        # an administrator's name is an address, and no start script of theirs hands their organisation on
        field, longer = f"participants.{participant.name}.org", f"org_{participant.org}"
        require_kept(participant.org, field=field, remedy=f"write {longer!r}, here and at its administrators")
    role = participant.get_prop(PropKey.ROLE)
    if participant.type == ParticipantType.ADMIN and role not in policy.ROLES:
        guess = nearest(str(role), policy.ROLES)
        refuse(PropKey.ROLE, role, f"one of {', '.join(policy.ROLES)}", f"write {guess!r}" if guess else "")
    if participant.type != ParticipantType.CLIENT:
        return
    for name in participant.props:
        guess = nearest(name, [PropKey.CAPACITY])
        if name != PropKey.CAPACITY and guess:
            refuse(name, participant.get_prop(name), "an entry that is read", f"write {guess!r}")
    capacity = participant.get_prop(PropKey.CAPACITY) or {}
    if not isinstance(capacity, Mapping):
        refuse(PropKey.CAPACITY, capacity, f"a mapping of {PropKey.NUM_GPUS} and {PropKey.GPU_MEM}")
    for name, value in capacity.items():
        if name not in (PropKey.NUM_GPUS, PropKey.GPU_MEM):
            guess = nearest(str(name), [PropKey.NUM_GPUS, PropKey.GPU_MEM])
            known = f"one of {PropKey.NUM_GPUS}, {PropKey.GPU_MEM}"
            refuse(f"{PropKey.CAPACITY}.{name}", value, known, f"write {guess!r}" if guess else "")
        whole = int if name == PropKey.NUM_GPUS else int | float
        if isinstance(value, bool) or not isinstance(value, whole) or value < 0:
            refuse(f"{PropKey.CAPACITY}.{name}", value, "a number that is not below 0")


def site_template() -> Path:
    """The annotated site file that a hospital fills in.

    Raises:
        ConfigurationError: neither the source tree nor the installed package holds it.
    """
    # the package's own, never one that happens to lie in the current folder
    for root in bundle_roots()[1:]:
        file = root / "app_configs" / "sites" / "example.yaml"
        if file.is_file():
            return file
    raise ConfigurationError("app_configs/sites/example.yaml", got="no such file", remedy="install fedmedseg again")


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
