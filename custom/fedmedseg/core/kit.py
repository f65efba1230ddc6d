"""A participant's startup kit on disk: who it belongs to, whom it talks to, and where its certificates lie."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedmedseg.core.errors import ConfigurationError, called, why

Role = Literal["client", "server", "admin"]
STARTUP_FILES: dict[Role, str] = {"client": "fed_client.json", "server": "fed_server.json", "admin": "fed_admin.json"}


@dataclass(frozen=True, kw_only=True)
class Kit:
    """What ``startup`` says. Paths are absolute; files they name need not exist."""

    root: Path
    role: Role
    name: str
    """The participant's name, with those of its relays before it; empty where the kit does not say it (a server's)."""
    certificate: Path
    key: Path
    authority: Path
    """The federation's root certificate."""
    server: str
    """Name in the server's certificate, or empty."""
    host: str
    port: int
    scheme: str
    """FLARE's driver: ``grpc``, ``http`` or ``tcp``."""
    security: str
    """``mtls``, ``tls`` or ``clear``."""

    @property
    def local(self) -> Path:
        """Folder of what the site decides."""
        return self.root / "local"

    @property
    def startup(self) -> Path:
        """Folder of what provisioning wrote."""
        return self.root / "startup"


def is_kit(folder: Path) -> bool:
    """Whether ``folder`` is the root of a startup kit."""
    return any((folder / "startup" / file).is_file() for file in STARTUP_FILES.values())


def open_kit(folder: Path) -> Kit:
    """The kit whose root is ``folder``.

    Raises:
        ConfigurationError: no kit, or one whose startup file is damaged.
    """
    startup = folder.resolve() / "startup"
    for role, file in STARTUP_FILES.items():
        if (startup / file).is_file():
            content = read_json(startup / file)
            try:
                return _read(startup.parent, role, content)
            except (KeyError, IndexError, TypeError, ValueError, AttributeError):
                raise ConfigurationError(
                    f"startup/{file}",
                    got="entries missing or of another form",
                    expected="the file that provisioning wrote",
                    remedy="ask the federation's network administrator for the kit again",
                ) from None
    raise ConfigurationError(
        "startup kit",
        got=f"no kit at {folder}",
        expected=f"a folder with startup/{' or startup/'.join(STARTUP_FILES.values())}",
        remedy="name the folder that holds startup and local",
    )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ConfigurationError: absent, unreadable, or no JSON object. The error names the file, not its folder.
    """
    field = f"{path.parent.name}/{path.name}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(field, got="no such file", expected="a JSON file") from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(field, got=why(error), expected="a readable JSON file") from None
    if not isinstance(content, dict):
        raise ConfigurationError(field, got=called(content), expected="a JSON object")
    return content


def site_resources(local: Path) -> Path:
    """The resources file FLARE reads: the site's own where there is one, else the one that came with the kit."""
    own = local / "resources.json"
    return own if own.exists() else local / "resources.json.default"


def _read(root: Path, role: Role, content: dict[str, Any]) -> Kit:
    startup = root / "startup"
    if role == "admin":
        admin = content["admin"]
        return Kit(
            root=root,
            role=role,
            name=admin.get("username", ""),
            certificate=startup / admin.get("client_cert", "client.crt"),
            key=startup / admin.get("client_key", "client.key"),
            authority=startup / admin.get("ca_cert", "rootCA.pem"),
            server=admin.get("server_identity", ""),
            host=admin["host"],
            port=int(admin["port"]),
            scheme=admin.get("scheme", "grpc"),
            security=admin.get("connection_security", "mtls"),
        )
    server = content["servers"][0]
    host, _, port = str(server["service"]["target"]).rpartition(":")
    own = content["client"] if role == "client" else server
    stem = "client" if role == "client" else "server"
    return Kit(
        root=root,
        role=role,
        name=str(own.get("fqsn", "")) if role == "client" else "",
        certificate=startup / own.get("ssl_cert", f"{stem}.crt"),
        key=startup / own.get("ssl_private_key", f"{stem}.key"),
        authority=startup / own.get("ssl_root_cert", "rootCA.pem"),
        server=str(server.get("identity", server.get("admin_server", ""))),
        host=host.strip("[]"),
        port=int(port),
        scheme=server["service"].get("scheme", "grpc"),
        security=own.get("connection_security", "mtls"),
    )
