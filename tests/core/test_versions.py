"""The rule of versions: exact for what speaks to each other, to the minor for what computes."""

from __future__ import annotations

import pytest

from fedmedseg.core.versions import LONGEST, differences, own_versions

HERE = {"fedmedseg": "0.1.0", "nvflare": "2.9.0", "torch": "2.13.0+cu128", "monai": "1.6.1"}


@pytest.mark.parametrize(
    "change", [{}, {"torch": "2.13.1"}, {"torch": "2.13.0+cpu"}, {"monai": "1.6.0"}, {"numpy": "9.9"}]
)
def test_the_same_or_near_enough_is_no_difference(change: dict[str, str]) -> None:
    assert differences({**HERE, **change}, HERE) == ""


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("fedmedseg", "0.1.1"),
        ("fedmedseg", "0.1.0+mine"),
        ("nvflare", "2.9.1"),
        ("nvflare", "2.9.0rc1"),
        ("torch", "2.14.0"),
        ("torch", "3.13.0"),
        ("monai", "1.5.1"),
        ("monai", "of.our.own"),
    ],
)
def test_a_difference_names_the_package_and_both_versions(package: str, version: str) -> None:
    assert differences({**HERE, package: version}, HERE) == f"{package} {HERE[package]} (server {version})"


@pytest.mark.parametrize("value", [None, 7, "", "1.0 beta", "../1.0", "1" * 33, "1.0\n"])
def test_what_is_no_version_differs_and_is_not_quoted(value: object) -> None:
    assert differences({**HERE, "nvflare": value}, HERE) == "nvflare 2.9.0 (server does not say)"


@pytest.mark.parametrize("server", [None, [], "0.1.0", {}])
def test_a_server_that_tells_nothing_differs_in_everything(server: object) -> None:
    assert differences(server, HERE).count("server does not say") == 4


def test_the_difference_stays_short() -> None:
    assert len(differences(dict.fromkeys(HERE, "1" * 32), dict.fromkeys(HERE, "2" * 32))) == LONGEST


def test_the_code_that_runs_is_told_and_not_what_an_installer_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    import fedmedseg

    monkeypatch.setattr(fedmedseg, "__version__", "7.7")
    assert own_versions()["fedmedseg"] == "7.7"
    assert set(own_versions()) == set(HERE)
