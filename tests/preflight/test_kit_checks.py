"""Certificates, port, allow-list and scopes of a kit: each PASS, WARN and FAIL from files made by hand."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import kits
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedmedseg.core import kit_checks
from fedmedseg.core.allowed_classes import CLASS_ALLOW_LIST, OPTIONAL_AT_SERVER
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.findings import Level
from fedmedseg.core.kit import Kit, open_kit
from fedmedseg.core.scopes import privacy_policy

NOW = kits.NOW


@pytest.mark.parametrize(
    ("starts", "ends", "level", "told"),
    [
        (-30, 300, Level.PASS, "in 300 days"),
        (-30, 29, Level.WARN, "in 29 days"),
        (-300, -1, Level.FAIL, "ended on 2026-05-31"),
        (1, 300, Level.FAIL, "this clock says 2026-06-01"),
    ],
)
def test_a_certificate_is_judged_by_its_dates(federation: Any, starts: int, ends: int, level: Level, told: str) -> None:
    kit = federation.kit(start=NOW + timedelta(days=starts), end=NOW + timedelta(days=ends))
    found = kit_checks.certificate_dates(open_kit(kit), now=NOW)
    assert (found.level, told in found.found) == (level, True), found
    assert bool(found.mend) is (level is not Level.PASS)


def test_an_expired_root_ends_a_valid_certificate_too(federation: Any) -> None:
    root = federation.root(start=NOW - timedelta(days=30), end=NOW - timedelta(days=1))
    found = kit_checks.certificate_dates(open_kit(federation.kit(root=root)), now=NOW)
    assert (found.level, found.found) == (Level.FAIL, "the root certificate ended on 2026-05-31")


def test_a_self_signed_expired_certificate_fails_by_date_and_by_chain(federation: Any) -> None:
    kit = open_kit(federation.kit())
    key = ec.generate_private_key(ec.SECP256R1())
    dates = {"start": NOW - timedelta(days=60), "end": NOW - timedelta(days=30)}
    own = kits.certificate("hospital-1", key, issuer="hospital-1", issuer_key=key, **dates, authority=False)
    kits.write_certificate(kit.certificate, own)
    kits.write_key(kit.key, key)
    assert kit_checks.certificate_dates(kit, now=NOW).level is Level.FAIL
    assert kit_checks.certificate_chain(kit).level is Level.FAIL
    assert kit_checks.certificate_key(kit).level is Level.PASS


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_certificate_that_cannot_be_read_fails_every_check(federation: Any, content: bytes | None) -> None:
    kit = open_kit(federation.kit())
    kit.certificate.unlink() if content is None else kit.certificate.write_bytes(content)
    assert kit_checks.certificate_dates(kit, now=NOW).level is Level.FAIL
    assert kit_checks.certificate_key(kit).level is Level.FAIL
    assert kit_checks.certificate_chain(kit).level is Level.FAIL


def test_the_key_must_be_the_certificates_of_this_site_and_private(federation: Any, tmp_path: Path) -> None:
    kit = open_kit(federation.kit())
    assert kit_checks.certificate_key(kit).level is Level.PASS
    kit.key.chmod(0o644)
    assert kit_checks.certificate_key(kit).level is Level.WARN
    other = ec.generate_private_key(ec.SECP256R1())
    kits.write_key(kit.key, other)
    assert "does not belong" in kit_checks.certificate_key(kit).found
    kits.write_key(kit.key, other, password=b"secret")
    assert "no plain private key" in kit_checks.certificate_key(kit).found
    kit.key.unlink()
    assert kit_checks.certificate_key(kit).level is Level.FAIL
    taken = open_kit(federation.kit("hospital-2"))
    startup = json.loads((taken.startup / "fed_client.json").read_text())
    startup["client"]["fqsn"] = "hospital-3"
    (taken.startup / "fed_client.json").write_text(json.dumps(startup))
    assert kit_checks.certificate_key(open_kit(taken.root)).found == "the certificate is another participant's"


def test_a_site_behind_a_relay_is_known_by_the_last_part_of_its_name(federation: Any) -> None:
    kit = federation.kit("hospital-1")
    startup = json.loads((kit / "startup" / "fed_client.json").read_text())
    startup["client"]["fqsn"] = "relay-1.hospital-1"
    (kit / "startup" / "fed_client.json").write_text(json.dumps(startup))
    assert kit_checks.certificate_key(open_kit(kit)).level is Level.PASS


def test_the_chain_ends_at_the_kits_own_root(federation: Any, tmp_path: Path) -> None:
    kit = open_kit(federation.kit())
    assert kit_checks.certificate_chain(kit).level is Level.PASS
    foreign = kits.Federation(tmp_path / "other")
    kits.write_certificate(kit.authority, foreign.root())
    assert kit_checks.certificate_chain(kit).level is Level.FAIL
    dates = {"start": NOW, "end": NOW + timedelta(days=9)}
    both = {"key": federation.key, "issuer_key": foreign.key}
    middle = kits.certificate("federation", **both, issuer="above", **dates, authority=True)
    kits.write_certificate(kit.authority, middle)
    assert kit_checks.certificate_chain(kit).level is Level.WARN


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_closed_port_is_told_from_an_unknown_name_and_from_silence(
    federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = closed_port()
    found = kit_checks.server_port(open_kit(federation.kit("a", target=f"127.0.0.1:{port}")))
    assert (found.level, found.found) == (Level.FAIL, f"127.0.0.1:{port}: refused")
    unknown = open_kit(federation.kit("b", target="no-such-server.invalid:8002"))

    def no_name(*_: Any, **__: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    def silent(*_: Any, **__: Any) -> None:
        raise TimeoutError

    monkeypatch.setattr(kit_checks.socket, "create_connection", no_name)
    assert "DNS" in kit_checks.server_port(unknown).found
    monkeypatch.setattr(kit_checks.socket, "create_connection", silent)
    silence = kit_checks.server_port(unknown, timeout=0.5)
    assert "no answer within 0.5 s" in silence.found
    assert "outbound TCP to port 8002" in silence.mend


class Server:
    """Accepts one connection and speaks TLS with mutual certificates, then a word, or waits; or no TLS at all."""

    def __init__(self, context: ssl.SSLContext | None, *, word: bytes | None = b"\0\0\0\4\0\0\0\0\0") -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.context, self.word, self.done = context, word, threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        try:
            connection, _ = self.socket.accept()
            with connection:
                if self.context is None:
                    connection.sendall(b"HTTP/1.1 400\r\n\r\n")
                    return
                with self.context.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(1024)
                    if self.word is None:
                        self.done.wait(10)
                    else:
                        secure.sendall(self.word)
        except OSError:
            return

    def close(self) -> None:
        self.done.set()
        self.socket.close()
        self.thread.join(5)


def server_context(kit: Kit, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """A server that wants its clients' certificates, as FLARE's does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    context.load_cert_chain(kit.certificate, kit.key)
    context.load_verify_locations(kit.authority)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    return context


def dates(*, ends: int = 90) -> dict[str, Any]:
    now = kit_checks.today()
    return {"start": now - timedelta(days=9), "end": now + timedelta(days=ends)}


def test_a_server_of_the_same_federation_answers_with_its_certificate(tmp_path: Path) -> None:
    federation, foreign = kits.Federation(tmp_path), kits.Federation(tmp_path / "foreign")
    root, valid = federation.root(**dates()), dates()
    context = server_context(open_kit(federation.kit("server", **valid, root=root)))
    for owner, signed, level, told in (
        (federation, root, Level.PASS, f"server certificate valid until {valid['end']:%Y-%m-%d}"),
        (foreign, foreign.root(**dates()), Level.FAIL, "rootCA.pem does not vouch for"),
    ):
        server = Server(context)
        client = open_kit(owner.kit("client", target=f"127.0.0.1:{server.port}", root=signed, **valid))
        found = kit_checks.server_port(client)
        server.close()
        assert (found.level, told in found.found) == (level, True), found


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_refuses_the_certificate_is_told_whenever_tls_says_so(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """TLS 1.3 ends the handshake at the client before the server has looked at its certificate."""
    federation = kits.Federation(tmp_path)
    root = federation.root(**dates())
    server = Server(server_context(open_kit(federation.kit("server", **dates(), root=root)), version))
    expired = open_kit(federation.kit("client", target=f"127.0.0.1:{server.port}", root=root, **dates(ends=-1)))
    found = kit_checks.server_port(expired)
    server.close()
    assert (found.level, "refuses this kit's certificate" in found.found) == (Level.FAIL, True), found
    assert found.mend == kit_checks.ASK


@pytest.mark.parametrize(("word", "level"), [(b"", Level.FAIL), (None, Level.PASS)], ids=["hangs up", "is silent"])
def test_a_server_that_hangs_up_refuses_and_one_that_is_silent_does_not(
    tmp_path: Path, word: bytes | None, level: Level
) -> None:
    federation = kits.Federation(tmp_path)
    root = federation.root(**dates())
    context = server_context(open_kit(federation.kit("server", **dates(), root=root)))
    server = Server(context, word=word)
    client = open_kit(federation.kit("client", target=f"127.0.0.1:{server.port}", root=root, **dates()))
    found = kit_checks.server_port(client, timeout=0.5)
    server.close()
    assert found.level is level, found


def test_something_else_behind_the_port_is_no_server(federation: Any) -> None:
    server = Server(None)
    kit = federation.kit(target=f"127.0.0.1:{server.port}")
    found = kit_checks.server_port(open_kit(kit))
    server.close()
    assert (found.level, "does not speak TLS" in found.found) == (Level.FAIL, True)
    server = Server(None)
    startup = json.loads((kit / "startup" / "fed_client.json").read_text())
    startup["servers"][0]["service"]["target"] = f"127.0.0.1:{server.port}"
    startup["client"]["connection_security"] = "clear"
    (kit / "startup" / "fed_client.json").write_text(json.dumps(startup))
    assert kit_checks.server_port(open_kit(kit)).level is Level.WARN
    server.close()


def test_a_servers_own_kit_asks_for_its_port(tmp_path: Path) -> None:
    startup = tmp_path / "server" / "startup"
    startup.mkdir(parents=True)

    def found(port: int) -> Any:
        content = {"servers": [{"service": {"target": f"localhost:{port}"}, "admin_server": "localhost"}]}
        (startup / "fed_server.json").write_text(json.dumps(content))
        return kit_checks.server_port(open_kit(tmp_path / "server"))

    with socket.create_server(("", 0)) as held:
        assert found(held.getsockname()[1]).level is Level.WARN
    assert found(closed_port()).level is Level.PASS


OURS = list(CLASS_ALLOW_LIST)


@pytest.mark.parametrize(
    ("resources", "level"),
    [
        ({"class_allow_list": OURS}, Level.PASS),
        ({"class_allow_list": OURS[::-1]}, Level.PASS),
        ({"class_allow_list": OURS, "class_list_enforcement_mode": "enforce"}, Level.PASS),
        ({"class_allow_list": OURS, "class_list_enforcement_mode": "warn"}, Level.FAIL),
        ({"class_allow_list": [*OURS, "fedmedseg."]}, Level.FAIL),
        ({"class_allow_list": [*OURS, "subprocess.Popen"]}, Level.FAIL),
        ({"class_allow_list": [*OURS, "*"]}, Level.FAIL),
        ({"class_allow_list": OURS[1:]}, Level.FAIL),
        ({"class_allow_list": []}, Level.FAIL),
        ({"class_allow_list": "fedmedseg."}, Level.FAIL),
        ({}, Level.FAIL),
    ],
)
def test_an_allow_list_must_be_there_enforced_and_ours(
    federation: Any, resources: dict[str, Any], level: Level
) -> None:
    assert kit_checks.class_allow_list(open_kit(federation.kit(resources=resources))).level is level


def test_who_runs_a_server_may_add_flares_mlflow_receiver_and_a_site_may_not(federation: Any, tmp_path: Path) -> None:
    added = {"class_allow_list": [*OURS, *OPTIONAL_AT_SERVER]}
    assert kit_checks.class_allow_list(open_kit(federation.kit(resources=added))).level is Level.FAIL
    server = tmp_path / "server"
    for folder in ("startup", "local"):
        (server / folder).mkdir(parents=True)
    content = {"servers": [{"service": {"target": "localhost:1"}, "admin_server": "localhost"}]}
    (server / "startup" / "fed_server.json").write_text(json.dumps(content))
    for listed, level in ((added["class_allow_list"], Level.PASS), ([*OURS, "fedmedseg."], Level.FAIL)):
        (server / "local" / "resources.json").write_text(json.dumps({"class_allow_list": listed}))
        found = kit_checks.class_allow_list(open_kit(server))
        assert found.level is level
        assert ("added by hand: nvflare." in found.found) is (level is Level.PASS)


def test_the_list_of_the_kit_counts_where_the_site_has_none_of_its_own(federation: Any) -> None:
    kit = open_kit(federation.kit())
    (kit.local / "resources.json").rename(kit.local / "resources.json.default")
    assert kit_checks.class_allow_list(kit).level is Level.PASS
    (kit.local / "resources.json.default").unlink()
    assert kit_checks.class_allow_list(kit).level is Level.FAIL
    (kit.local / "resources.json").write_text("{")
    assert kit_checks.class_allow_list(kit).level is Level.FAIL


def without(name: str) -> dict[str, Any]:
    """Our policy, but for one filter of every scope."""
    policy = privacy_policy()
    for scope in policy["scopes"]:
        scope["task_result_filters"] = [one for one in scope["task_result_filters"] if not one["path"].endswith(name)]
    return policy


FOREIGN = [{"path": "nvflare.apis.filter.Filter", "args": {}}]


@pytest.mark.parametrize(
    ("privacy", "level"),
    [
        (privacy_policy(), Level.PASS),
        (privacy_policy(offered=["private"], default="private"), Level.WARN),
        (without("DeclaredContents"), Level.FAIL),
        (without("SmallCounts"), Level.FAIL),
        (without("BoundedDifferences"), Level.FAIL),
        ({"scopes": [{"name": "standard", "task_result_filters": FOREIGN}], "default_scope": "standard"}, Level.FAIL),
        ({**privacy_policy(), "default_scope": "c"}, Level.FAIL),
        ({"scopes": privacy_policy()["scopes"]}, Level.FAIL),
        ({"scopes": []}, Level.FAIL),
        ({}, Level.FAIL),
    ],
)
def test_a_privacy_scope_must_be_active_and_run_our_filters(
    federation: Any, privacy: dict[str, Any], level: Level
) -> None:
    assert kit_checks.privacy_scopes(open_kit(federation.kit(privacy=privacy))).level is level


def test_without_a_privacy_file_flare_filters_nothing(federation: Any) -> None:
    kit = open_kit(federation.kit())
    assert kit_checks.privacy_scopes(kit).level is Level.PASS
    (kit.local / "privacy.json").rename(kit.local / "privacy.json.sample")
    assert kit_checks.privacy_scopes(kit).level is Level.FAIL


def test_what_is_no_kit_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="name the folder that holds startup and local"):
        open_kit(tmp_path)
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup" / "fed_client.json").write_text('{"servers": []}')
    with pytest.raises(ConfigurationError, match="ask the federation's network administrator"):
        open_kit(tmp_path)
