"""Whose kit is asked for its site file, and whether a kit can take part in an encrypted study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.findings import Level
from fedmedseg.core.kit import Kit, open_kit
from fedmedseg.preflight.site import (
    SiteSettings,
    encryption,
    features_of_slices,
    read_site,
    site_file_of,
    what_may_leave,
)

OPEN = {"federation": {"encryption": "none"}}
SEALED = {"federation": {"encryption": "ckks"}, "fedata": {"server_aggregation": "fedavg"}}


def experiment(changes: dict[str, Any]) -> Any:
    from fedmedseg.core.jobs import find_job, read_settings

    return read_settings(find_job("fedata"), [changes])[1]


def site(folder: Path, word: str) -> SiteSettings:
    file = folder / "site.yaml"
    file.write_text(yaml.safe_dump({"datasets": {"cmr": {"list": "a.json"}}, "privacy": {"encryption": word}}))
    return read_site(file)


@pytest.fixture
def kit(federation: Any) -> Kit:
    """A hospital's, without keys."""
    return open_kit(federation.kit())


@pytest.mark.parametrize(
    ("changes", "word", "told"),
    [
        (OPEN, "optional", []),
        (OPEN, "required", ["the study sends differences in plain"]),
        (SEALED, "optional", ["the study asks for it: startup/"]),
        (SEALED, "required", ["the study asks for it: startup/"]),
    ],
)
def test_a_kit_without_keys_fails_where_study_or_site_want_encryption(
    kit: Kit, tmp_path: Path, changes: dict[str, Any], word: str, told: list[str]
) -> None:
    if changes is SEALED:
        pytest.importorskip("tenseal", reason="the extra he is not installed")
    found = encryption(kit, experiment(changes), site(tmp_path, word))
    assert len(found) == len(told)
    for one, beginning in zip(found, told, strict=True):
        assert one.level is Level.FAIL
        assert one.found.startswith(beginning)
        assert one.mend


def test_a_kit_with_its_key_passes(kit: Kit, tmp_path: Path) -> None:
    pytest.importorskip("tenseal", reason="the extra he is not installed")
    from signed_keys import write_keys

    write_keys(server=tmp_path / "server", sites=[kit.startup])
    (found,) = encryption(kit, experiment(SEALED), site(tmp_path, "required"))
    assert found.level is Level.PASS


def test_only_a_hospitals_kit_has_a_site_file(federation: Any, make_role: Callable[[str], Path]) -> None:
    hospital = federation.kit()
    assert site_file_of(hospital, "privacy.json").is_file()
    with pytest.raises(ConfigurationError, match="copy app_configs"):
        site_file_of(hospital, "fedmedseg.yaml")
    with pytest.raises(ConfigurationError, match=r"kit of the server.*name the hospital's kit"):
        site_file_of(make_role("server"), "fedmedseg.yaml")


@pytest.fixture
def make_role(tmp_path: Path) -> Callable[[str], Path]:
    """make_role("server"): a kit of that role, as far as its startup file goes."""

    def make(role: str) -> Path:
        startup = tmp_path / role / "startup"
        startup.mkdir(parents=True)
        (startup / f"fed_{role}.json").write_text(
            '{"servers": [{"service": {"target": "localhost:8002"}, "admin_server": "localhost"}]}'
        )
        return tmp_path / role

    return make


def exchanging(**fcl: Any) -> Any:
    from fedmedseg.core.jobs import find_job, read_settings

    return read_settings(find_job("fcl"), [{"fcl": fcl}])[1]


@pytest.mark.parametrize(
    ("privacy", "level", "words"),
    [
        (None, Level.WARN, "pretraining exchanges them, and the site file has no privacy.features: true"),
        ({"features": False}, Level.WARN, "this site would decline it"),
        (
            {"features": True, "clip_norm": 1.0, "noise": {"multiplier": 1.0, "epsilon": 8.0, "delta": 1e-5}},
            Level.WARN,
            "privacy.noise beside privacy.features: true",
        ),
        ({"features": True}, Level.PASS, "the site file lets them leave"),
    ],
)
def test_a_study_that_exchanges_features_asks_for_the_sites_word(
    tmp_path: Path, privacy: dict[str, Any] | None, level: Level, words: str
) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(yaml.safe_dump({"datasets": {"cmr": {"list": "a.json"}}, "privacy": privacy}))
    (found,) = features_of_slices(exchanging(), read_site(file))
    assert (found.level, words in found.found) == (level, True), found
    assert features_of_slices(exchanging(exchange=False), read_site(file)) == []


def test_what_may_leave_tells_of_features(tmp_path: Path) -> None:
    for allowed, words in ((True, "features of slices may"), (False, "features of slices stay")):
        file = tmp_path / "site.yaml"
        file.write_text(yaml.safe_dump({"datasets": {"cmr": {"list": "a"}}, "privacy": {"features": allowed}}))
        assert words in what_may_leave(read_site(file)).found
