"""Bytes of tasks and replies as FLARE encodes them."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.shareable import ReservedHeaderKey, Shareable
from nvflare.fuel.f3.cellnet.utils import buffer_len, encode_payload
from nvflare.fuel.f3.message import Message

from fedmedseg.core import traffic as traffic_module
from fedmedseg.core.traffic import Traffic, encoded_bytes
from fedmedseg.core.wire import Header


def message(numbers: int, nonce: str = "n") -> Shareable:
    made = DXO(DataKind.WEIGHTS, data={"a": torch.zeros(numbers)}).to_shareable()
    made.set_header(Header.NONCE, nonce)
    made.set_header(Header.BASE, f"b{numbers}")
    return made


@pytest.mark.parametrize("numbers", [0, 10, 100_000, 262_144, 1_000_000])
def test_it_is_the_length_that_flare_sends(numbers: int) -> None:
    sent = message(numbers)
    assert encoded_bytes(sent) == encode_payload(Message({}, sent))
    assert encoded_bytes(sent) > 4 * numbers


def test_large_tensors_are_counted_to_the_byte_without_being_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any type and shape, several of one shape, in lists and headers, too."""
    large = torch.zeros(1025, 1025)
    tensors = {
        "a.weight": large, "b.weight": large.clone(), "half": torch.zeros(2, 3, 500, 500, dtype=torch.float16),
        "counts": torch.zeros(200_000, dtype=torch.int64), "small": torch.zeros(3),
        "bytes": torch.ones(2**21 + 1).byte(),
    }  # fmt: skip
    more = {"x": [1, large + 1, ("y", large + 2)]}
    sent = DXO(DataKind.WEIGHTS, data={name: one.clone() for name, one in tensors.items()}, meta=more).to_shareable()
    expected = encode_payload(Message({}, sent))
    encoded: list[int] = []
    dumps = traffic_module.fobs.dumps
    monkeypatch.setattr(
        traffic_module.fobs, "dumps", lambda *a, **k: [encoded.append(buffer_len(made := dumps(*a, **k))), made][1]
    )
    assert encoded_bytes(sent) == expected
    assert expected > 20_000_000 > encoded[0] * 10


def test_names_and_headers_count() -> None:
    short, long = message(10), message(10)
    long.set_header("x", "y" * 100)
    assert encoded_bytes(long) > encoded_bytes(short) + 100


def test_what_flare_adds_on_arrival_does_not() -> None:
    sent, arrived = message(10), message(10)
    arrived.set_header(ReservedHeaderKey.PEER_PROPS, {"x": "y" * 100})
    arrived.set_header(ReservedHeaderKey.PEER_CTX, object())
    assert encoded_bytes(arrived) == encoded_bytes(sent)
    assert arrived.get_header(ReservedHeaderKey.PEER_CTX) is not None, "the reply itself stays as it is"


def test_every_attempt_counts_and_equal_tasks_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedmedseg.core import traffic as module

    calls: list[int] = []
    monkeypatch.setattr(module, "encoded_bytes", lambda task: calls.append(1) or encoded_bytes(task))
    traffic = Traffic()
    for site in ("site-1", "site-2"):
        traffic.sent(site, message(10))
    assert len(calls) == 1
    traffic.sent("site-1", message(10, nonce="again"))
    traffic.sent("site-2", message(20))
    assert len(calls) == 3
    assert traffic.down["site-1"] == encoded_bytes(message(10)) + encoded_bytes(message(10, nonce="again"))
    traffic.received("site-1", message(10))
    traffic.received("site-1", message(10))
    assert traffic.up == {"site-1": 2 * encoded_bytes(message(10))}


def test_a_reply_that_cannot_be_encoded_costs_its_figure_alone(caplog: pytest.LogCaptureFixture) -> None:
    traffic, reply = Traffic(), message(1)
    reply["x"] = lambda: None
    with caplog.at_level(logging.WARNING):
        traffic.received("site-1", reply)
    assert traffic.up == {}
    assert "not in the bytes of its round" in caplog.text


def test_counting_leaves_other_messages_as_they_are() -> None:
    """In a process of its own: what counted first would otherwise decide how FLARE's own messages are encoded."""
    script = """
from nvflare.apis.shareable import Shareable
from nvflare.fuel.utils import fobs
from fedmedseg.core.traffic import encoded_bytes

encoded_bytes(Shareable())
from nvflare.apis.utils.decomposers import flare_decomposers

flare_decomposers.register()
sent = Shareable()
sent["certificate"] = b"pem"
assert fobs.loads(fobs.dumps(sent))["certificate"] == b"pem"
assert fobs.fobs._decomposers["nvflare.apis.shareable.Shareable"].__class__.__module__.startswith("nvflare."), "made up"
print(type(fobs.fobs._decomposers["nvflare.apis.shareable.Shareable"]).__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "DictDecomposer"
