"""Keys for encrypted replies: in the hospitals' kits alone, signed, the same for all, and kept."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmedseg.core.encryption_keys import KEY_FILE, SERVER_FILE, SITE_FILE, load_cipher
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.findings import Level
from fedmedseg.provisioning.check import check_kit

pytest.importorskip("tenseal", reason="the extra he is not installed")

ROOT = Path(__file__).parents[2]
OFF = "  # - path: fedmedseg.provisioning.encryption.EncryptionBuilder\n"
SERVER, SITES = "server.example.org", ("hospital-1", "hospital-2", "hospital-3")
ADMIN = "lead@hospital-two.example.org"
Copy = Callable[[str], Path]


def project() -> str:
    """project.yml with the line on that it comes with off."""
    text = (ROOT / "provisioning" / "project.yml").read_text()
    assert text.count(OFF) == 1
    return text.replace(OFF, OFF.replace("# ", ""))


def test_the_readmes_command_turns_the_builder_on_and_changes_nothing_else(tmp_path: Path) -> None:
    text = (ROOT / "provisioning" / "README.md").read_text()
    [command] = [line for line in text.splitlines() if line.startswith("sed ") and line.endswith("> encrypted.yml")]
    shutil.copytree(ROOT / "provisioning", tmp_path / "provisioning")
    subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True, timeout=20)
    assert (tmp_path / "encrypted.yml").read_text() == project()


@pytest.fixture(scope="module")
def sealed(build: Callable[[Path, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kits of a federation with encryption; only to be read."""
    return build(tmp_path_factory.mktemp("sealed") / "kits", project())


@pytest.fixture(scope="module")
def other(build: Callable[[Path, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of another federation."""
    return build(tmp_path_factory.mktemp("other") / "kits", project())


@pytest.fixture
def copy(sealed: Path, tmp_path: Path) -> Copy:
    return lambda name: Path(shutil.copytree(sealed / name, tmp_path / name, symlinks=True))


def level(kit: Path) -> tuple[Level, str]:
    """What the check says of the kit's keys."""
    [finding] = [one for one in check_kit(kit) if one.check == "encryption"]
    return finding.level, f"{finding.found} {finding.mend}"


def test_the_secret_key_is_in_the_hospitals_kits_alone(sealed: Path) -> None:
    holding = {name.parents[1].name for name in sealed.rglob(SITE_FILE)}
    assert holding == set(SITES)
    assert {name.parents[1].name for name in sealed.rglob(SERVER_FILE)} == {SERVER}
    assert {name.parents[1].name for name in sealed.rglob(KEY_FILE)} == {SERVER, *SITES}
    assert not load_cipher(sealed / SERVER / "startup", secret=False).cipher.private
    assert len({(sealed / name / "startup" / SITE_FILE).read_bytes() for name in SITES}) == 1


def test_keys_are_readable_by_their_owner_alone(sealed: Path) -> None:
    files = [*sealed.rglob("*.tenseal"), *(sealed.parent / "state").glob("*.tenseal")]
    assert len(files) == 6
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)


@pytest.mark.parametrize("name", [SERVER, *SITES, ADMIN])
def test_every_kit_passes_its_check_but_for_the_wheel_that_was_not_given(sealed: Path, name: str) -> None:
    assert [one.check for one in check_kit(sealed / name) if one.level] == ["release"], "no wheel was given"


@pytest.mark.parametrize("name", [SERVER, SITES[0]])
def test_a_kit_without_keys_passes_and_says_that_replies_are_plain(kits: Path, name: str) -> None:
    found = level(kits / name)
    assert found[0] is Level.PASS
    assert "plain" in found[1]


def test_another_hospital_later_gets_the_same_key(
    sealed: Path, build: Callable[[Path, str], Path], tmp_path: Path
) -> None:
    """FLARE's own builder makes another key at every call; the kits that are in use would be foreign to it."""
    workspace = Path(shutil.copytree(sealed.parents[1], tmp_path / "again", symlinks=True))
    again = build(workspace, project().replace("name: hospital-3\n", "name: hospital-9\n"))
    assert (sealed.name, again.name) == ("prod_00", "prod_01")
    before, after = (load_cipher(kits / "startup", secret=True) for kits in (sealed / SITES[0], again / "hospital-9"))
    assert before.key == after.key


def test_two_federations_have_two_keys(sealed: Path, other: Path) -> None:
    assert len({load_cipher(kits / SERVER / "startup", secret=False).key for kits in (sealed, other)}) == 2


def secret_at_the_server(kit: Path, sealed: Path, other: Path) -> None:
    shutil.copyfile(sealed / SITES[0] / "startup" / SITE_FILE, kit / "startup" / SITE_FILE)


def secret_in_the_servers_file(kit: Path, sealed: Path, other: Path) -> None:
    shutil.copyfile(sealed / SITES[0] / "startup" / SITE_FILE, kit / "startup" / SERVER_FILE)


def foreign_key(kit: Path, sealed: Path, other: Path) -> None:
    shutil.copyfile(other / SITES[0] / "startup" / SITE_FILE, kit / "startup" / SITE_FILE)


def flipped(kit: Path, sealed: Path, other: Path) -> None:
    file = kit / "startup" / SITE_FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def renamed_key(kit: Path, sealed: Path, other: Path) -> None:
    file = kit / "startup" / KEY_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "key": "0" * 64}))


def unsigned(kit: Path, sealed: Path, other: Path) -> None:
    (kit / "startup" / "signature.json").unlink()


def without(name: str) -> Callable[..., None]:
    return lambda kit, sealed, other: (kit / "startup" / name).unlink()


def readable(kit: Path, sealed: Path, other: Path) -> None:
    (kit / "startup" / SITE_FILE).chmod(0o640)


@pytest.mark.parametrize(
    ("name", "weaken", "words"),
    [
        (SERVER, secret_at_the_server, "which holds the sites' secret key"),
        (SERVER, secret_in_the_servers_file, "changed since it was signed"),
        (SERVER, without(SERVER_FILE), "no such file"),
        (SITES[0], foreign_key, "changed since it was signed"),
        (SITES[0], flipped, "changed since it was signed"),
        (SITES[0], renamed_key, "changed since it was signed"),
        (SITES[0], unsigned, "not signed"),
        (SITES[0], without(SITE_FILE), "no such file"),
        (SITES[0], without(KEY_FILE), "no such file"),
        (SITES[0], readable, "chmod 600"),
        (ADMIN, secret_at_the_server, "which holds the sites' secret key"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_key_that_lies_wrong_or_was_changed_fails_the_check(
    copy: Copy, sealed: Path, other: Path, name: str, weaken: Callable[[Path, Path, Path], Any], words: str
) -> None:
    kit = copy(name)
    assert level(kit)[0] is Level.PASS
    weaken(kit, sealed, other)
    found = level(kit)
    assert found[0] is Level.FAIL
    assert words in found[1]


@pytest.mark.parametrize(
    ("holder", "secret", "words"),
    [(SITES[0], False, "no such file"), (SERVER, True, "no such file")],
    ids=["a site's kit as the server's", "the server's kit as a site's"],
)
def test_a_kit_of_the_other_role_gives_no_cipher(sealed: Path, holder: str, secret: bool, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        load_cipher(sealed / holder / "startup", secret=secret)


def test_a_signed_server_file_with_the_secret_key_is_refused(
    build: Callable[[Path, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signature says who made a file, not that it was made well."""
    from fedmedseg.provisioning import encryption

    _, site = encryption.make_contexts()
    monkeypatch.setattr(encryption, "make_contexts", lambda: (site, site))
    kits = build(tmp_path / "kits", project())
    found = level(kits / SERVER)
    assert found[0] is Level.FAIL
    assert "a context with the secret key" in found[1]


def test_without_the_library_nothing_is_provisioned_and_the_check_fails(
    sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tenseal", None)
    found = level(sealed / SITES[0])
    assert found[0] is Level.FAIL
    assert "fedmedseg[he]" in found[1]
