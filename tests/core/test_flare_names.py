"""Which names come through FLARE's start scripts as they are."""

from __future__ import annotations

import re

import pytest

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.flare_names import misread, require_kept


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
