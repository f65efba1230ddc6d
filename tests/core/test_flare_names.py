"""Which names come through FLARE's start scripts as they are."""

from __future__ import annotations

import re

import pytest

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.flare_names import is_address, is_host, misread, require_kept


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("n", "the truth value False"),
        ("No", "the truth value False"),
        ("f", "the truth value False"),
        ("y", "the truth value True"),
        ("t", "the truth value True"),
        ("yes", "the truth value True"),
        ("true", "the truth value True"),
        ("inf", "the number inf"),
        ("NaN", "the number nan"),
        ("1e5", "the number 100000.0"),
        ("1_0", "the number 10"),
        ("1", "the number 1"),
    ],
)
def test_a_name_that_flare_reads_as_something_else_is_refused(name: str, told: str) -> None:
    assert misread(name) == told
    with pytest.raises(ConfigurationError, match=re.escape(f"hands on as {told}")) as caught:
        require_kept(name, field="--sites")
    assert f"Remedy: write 'site-{name}'" in str(caught.value)
    assert misread(f"site-{name}") is None, "the remedy is one"


@pytest.mark.parametrize("name", ["hf-i", "hyp", "site-1", "hospital-1", "nn", "hospital_one", "on", "a"])
def test_any_other_name_is_kept(name: str) -> None:
    assert misread(name) is None
    require_kept(name, field="--sites")


@pytest.mark.parametrize(
    ("name", "host", "address"),
    [
        ("localhost", True, False),
        ("fl.example.org", True, False),
        ("192.0.2.7", True, False),
        ("admin@localhost", False, False),
        ("admin@192.0.2.7", False, False),
        ("ann@ward-a.example.org", False, True),
        ("two words", False, False),
        ("", False, False),
    ],
)
def test_hosts_and_peoples_addresses_are_what_flare_takes_for_them(name: str, host: bool, address: bool) -> None:
    assert (is_host(name), is_address(name)) == (host, address)
