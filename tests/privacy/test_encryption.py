"""The filter that encrypts, where FLARE calls it: after all others, on what they let pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.shareable import ReservedHeaderKey, Shareable

from fedmedseg.core.scopes import ORDER, privacy_policy
from fedmedseg.core.sealing import sealed_name
from fedmedseg.core.wire import Header, Meta

pytest.importorskip("tenseal", reason="the extra he is not installed")

from signed_keys import write_keys

from fedmedseg.core.ckks import GRID, SHARES
from fedmedseg.core.encryption_keys import SITE_FILE, load_cipher

Kit = Any
Make = Callable[..., Shareable]
ENTRY = sealed_name("training")
NOISE = {"multiplier": 2.0, "epsilon": 1000.0, "delta": 1e-5}


@pytest.fixture
def encrypted(kit: Kit, tmp_path: Path) -> Kit:
    """A kit with the key, and a study that asks for encryption."""
    write_keys(server=tmp_path / "server", sites=[kit.root / "startup"])
    file = kit.app / "experiment.yaml"
    study = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**study, "federation": {"encryption": "ckks"}}))
    return kit


def opened(sent: Shareable, kit: Kit, tmp_path: Path) -> torch.Tensor:
    """The six numbers of the toy system's reply."""
    assert sent.get_return_code() == ReturnCode.OK, sent.get_header(Header.REASON)
    tensors = from_shareable(sent).data
    assert set(tensors) == {ENTRY}
    assert tensors[ENTRY].dtype == torch.uint8
    server = load_cipher(tmp_path / "server", secret=False).cipher
    total = server.add(None, {"site-1": tensors[ENTRY]}, {"site-1": SHARES})
    return torch.from_numpy(load_cipher(kit.root / "startup", secret=True).cipher.decrypt(total, 6))


def refused(sent: Shareable, reason: str) -> None:
    assert sent.get_return_code() == ReturnCode.TASK_RESULT_FILTER_ERROR
    assert sent.get_header(Header.REASON) == reason
    assert set(sent) == {ReservedHeaderKey.HEADERS}


def test_encryption_comes_last() -> None:
    assert ORDER[-1] == "EncryptedDifferences"


def test_the_differences_leave_as_one_encrypted_entry_and_the_figures_in_plain(
    encrypted: Kit, reply: Make, tmp_path: Path
) -> None:
    tensors = {"a": torch.tensor([0.5, -0.25]), "b": torch.tensor([[1.0, 2.0], [3.0, -4.0]])}
    sent = encrypted.run(reply(tensors, metrics={"loss": 0.5}))
    expected = torch.tensor([0.5, -0.25, 1.0, 2.0, 3.0, -4.0])
    assert float((opened(sent, encrypted, tmp_path) - expected).abs().max()) <= GRID
    assert from_shareable(sent).meta == {
        Meta.EXAMPLES: 9,
        Meta.STEPS: 3,
        Meta.TRAIN_SECONDS: 0.5,
        Meta.METRICS: {"loss": 0.5},
    }


def test_a_study_without_encryption_sends_as_before(encrypted: Kit, reply: Make) -> None:
    file = encrypted.app / "experiment.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "federation": {}}))
    assert sorted(from_shareable(encrypted.run(reply())).data) == ["a", "b"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_in_plain(encrypted: Kit, reply: Make, value: float) -> None:
    spoiled = {"a": torch.tensor([1.0, value]), "b": torch.ones(2, 2)}
    refused(encrypted.run(reply(spoiled)), "PRIVACY: NOT_FINITE: tensors from this site")


def test_numbers_beyond_the_range_are_refused(encrypted: Kit, reply: Make) -> None:
    large = {"a": torch.full((2,), 65.0), "b": torch.ones(2, 2)}
    refused(encrypted.run(reply(large)), "PRIVACY: ENCRYPTION: numbers to encrypt")


def test_differences_are_clipped_before_they_are_encrypted(encrypted: Kit, reply: Make, tmp_path: Path) -> None:
    encrypted.site(privacy={"min_count": 0, "clip_norm": 0.5})
    found = opened(encrypted.run(reply()), encrypted, tmp_path)
    assert float(torch.linalg.vector_norm(found)) == pytest.approx(0.5, abs=1e-5)


def test_noise_is_added_before_encryption(encrypted: Kit, reply: Make, tmp_path: Path) -> None:
    encrypted.site(privacy={"min_count": 0, "clip_norm": 0.5, "noise": NOISE})
    first, second = (opened(encrypted.run(reply()), encrypted, tmp_path) for _ in range(2))
    assert float((first - second).abs().max()) > 0.01


def test_small_counts_are_withheld_all_the_same(encrypted: Kit, reply: Make) -> None:
    encrypted.site(privacy={"min_count": 10})
    assert from_shareable(encrypted.run(reply(examples=9))).meta[Meta.EXAMPLES] is None


def test_a_stage_of_figures_has_nothing_to_encrypt(encrypted: Kit, reply: Make) -> None:
    (encrypted.root / "startup" / SITE_FILE).unlink()
    sent = encrypted.run(reply(stage="testing", metrics={"dice/left": 0.5}), stage="testing")
    assert sent.get_return_code() == ReturnCode.OK
    assert from_shareable(sent).data == {}


def test_without_a_key_nothing_leaves(encrypted: Kit, reply: Make) -> None:
    (encrypted.root / "startup" / SITE_FILE).unlink()
    refused(encrypted.run(reply()), "PRIVACY: the reason does not leave this site")


def test_a_site_that_requires_encryption_lets_no_plain_differences_leave(kit: Kit, reply: Make) -> None:
    kit.site(privacy={"min_count": 0, "encryption": "required"})
    refused(kit.run(reply()), "PRIVACY: plain differences")
    figures = kit.run(reply(stage="testing", metrics={"dice/left": 0.5}), stage="testing")
    assert figures.get_return_code() == ReturnCode.OK


def test_one_that_does_not_lets_them(kit: Kit, reply: Make) -> None:
    assert kit.run(reply()).get_return_code() == ReturnCode.OK


def test_it_is_in_every_scope() -> None:
    for scope in privacy_policy()["scopes"]:
        assert scope["task_result_filters"][-1]["path"].endswith(".EncryptedDifferences")
