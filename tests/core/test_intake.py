"""The bound on messages, on FLARE's own receivers: what is too large is refused before anything of it is read."""

from __future__ import annotations

import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from nvflare.apis.fl_constant import ServerCommandNames
from nvflare.fuel.f3.cellnet.cell import Adapter
from nvflare.fuel.f3.cellnet.defs import CellChannel, Encoding, MessageHeaderKey
from nvflare.fuel.f3.cellnet.registry import Callback, Registry
from nvflare.fuel.f3.streaming.blob_streamer import BlobHandler
from nvflare.fuel.f3.streaming.cacheable import ItemConsumer
from nvflare.fuel.f3.streaming.stream_const import StreamHeaderKey
from nvflare.fuel.f3.streaming.stream_types import BlobSizeError, Stream, StreamError, StreamFuture

from fedmedseg.core.ckks import CHUNK_BYTES, SLOTS
from fedmedseg.core.intake import SPARE, Intake, bound_messages, most_bytes
from fedmedseg.core.wire import Schema

COMMANDS, FIGURES = "server_command:*", "aux_communication:*"


class Pieces(Stream):
    """A message of ``length`` bytes that says it has ``size``, and counts what is read of it."""

    def __init__(self, length: int, *, size: int, sender: str) -> None:
        super().__init__(size, {MessageHeaderKey.ORIGIN: sender})
        self.left, self.taken = length, 0

    def read(self, chunk_size: int) -> bytes:
        piece = b"x" * min(100, self.left)
        self.left, self.taken = self.left - len(piece), self.taken + len(piece)
        return piece


class Receiver:
    """A cell as far as its receivers go."""

    def __init__(self) -> None:
        self.byte_receiver = SimpleNamespace(registry=Registry())
        self.heard = threading.Event()
        for key in (COMMANDS, FIGURES):
            handler = BlobHandler(lambda future: self.heard.set())
            self.byte_receiver.registry.set(*key.split(":"), Callback(handler.handle_blob_cb, (), {}))

    def take(self, stream: Stream, key: str = COMMANDS) -> StreamFuture:
        future, callback = StreamFuture(1, stream.headers), self.byte_receiver.registry.find(*key.split(":"))
        callback.cb(future, stream, False, *callback.args, **callback.kwargs)
        assert self.heard.wait(10)
        return future


@pytest.fixture(autouse=True)
def unbound(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fetched in this process is as it was after a test."""
    monkeypatch.setattr(ItemConsumer, "consume", ItemConsumer.consume)


@pytest.fixture
def told() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def receiver(told: list[tuple[str, str]]) -> Receiver:
    made = Receiver()
    assert bound_messages(made, 1000, lambda sender, reason: told.append((sender, reason))) == 2
    return made


def test_a_study_takes_twice_its_tensors_and_some_words() -> None:
    schema = Schema({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.float16)})
    assert most_bytes(schema, encrypted=False) == 116 + SPARE


def test_encrypted_replies_are_as_long_as_their_ciphertexts() -> None:
    schema = Schema({"a": torch.zeros(2, SLOTS), "b": torch.zeros(5)})
    assert most_bytes(schema, encrypted=True) == 2 * 3 * CHUNK_BYTES + SPARE


def test_what_fits_arrives_whole_and_nothing_is_told(receiver: Receiver, told: list[Any]) -> None:
    future = receiver.take(Pieces(1000, size=1000, sender="site-1.job"))
    assert future.result(timeout=10) == b"x" * 1000
    assert told == []


@pytest.mark.parametrize("key", [COMMANDS, FIGURES])
def test_what_is_larger_is_refused_unread_and_its_sender_told(receiver: Receiver, told: list[Any], key: str) -> None:
    stream = Pieces(1001, size=1001, sender="site-1.job")
    with pytest.raises(BlobSizeError):
        receiver.take(stream, key).result(timeout=10)
    assert stream.taken == 0
    assert told == [("site-1", "OVERSIZE: a message of 1001 bytes, at most 1000")]


@pytest.mark.parametrize("size", [0, 500], ids=["unsaid", "understated"])
def test_what_is_larger_than_it_says_is_ended_at_the_bound(receiver: Receiver, size: int) -> None:
    stream = Pieces(10**6, size=size, sender="site-1.job")
    with pytest.raises(StreamError, match="more data than"):
        receiver.take(stream).result(timeout=10)
    assert stream.taken <= 1100


def test_the_next_stage_sets_its_own_bound_and_listener(receiver: Receiver, told: list[Any]) -> None:
    later: list[Any] = []
    assert bound_messages(receiver, 2000, lambda *what: later.append(what)) == 2
    assert receiver.take(Pieces(1500, size=1500, sender="site-1")).result(timeout=10)
    with pytest.raises(BlobSizeError):
        receiver.take(Pieces(2001, size=2001, sender="site-2")).result(timeout=10)
    assert (told, later) == ([], [("site-2", "OVERSIZE: a message of 2001 bytes, at most 2000")])


def test_a_note_that_fails_lets_nothing_pass(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    bound_messages(receiver, 10, lambda *what: 1 / 0)
    with pytest.raises(BlobSizeError):
        receiver.take(Pieces(11, size=11, sender="site-1")).result(timeout=10)
    assert "at most 10; not recorded (ZeroDivisionError)" in caplog.text


def test_flare_without_the_receivers_known_here_is_noticed() -> None:
    registry = Registry()
    registry.set("server_command", "*", Callback(print, (), {}))
    assert bound_messages(SimpleNamespace(byte_receiver=SimpleNamespace(registry=registry)), 1, print) == 0
    assert not isinstance(registry.find("server_command", "x").cb, Intake)


def test_what_cannot_be_decoded_is_an_error_of_that_message_and_ends_no_process(
    monkeypatch: pytest.MonkeyPatch, told: list[Any]
) -> None:
    """FLARE's own adapter, in a server's job, for the one topic for which it ends the process."""
    exits: list[int] = []
    monkeypatch.setattr("os._exit", exits.append)
    cell = MagicMock(decode_pass_through_channels=set(), decode_pass_through_topics=set())
    heard = threading.Event()
    adapter = Adapter(lambda request: heard.set(), SimpleNamespace(fqcn="server.job"), cell)
    registry = Registry()
    registry.set("server_command", "*", Callback(BlobHandler(adapter.call).handle_blob_cb, (), {}))
    receiver = SimpleNamespace(byte_receiver=SimpleNamespace(registry=registry))
    noted = threading.Event()

    def tell(sender: str, reason: str) -> None:
        told.append((sender, reason))
        noted.set()

    bound_messages(receiver, 1000, tell)
    stream = Pieces(10, size=10, sender="site-1.job")
    stream.headers |= {
        StreamHeaderKey.PAYLOAD_ENCODING: Encoding.FOBS,
        StreamHeaderKey.CHANNEL: CellChannel.SERVER_COMMAND,
        StreamHeaderKey.TOPIC: ServerCommandNames.SUBMIT_UPDATE,
    }
    registry.find("server_command", "x").cb(StreamFuture(1, stream.headers), stream, False)
    assert noted.wait(10)
    ((sender, reason),) = told
    assert (sender, reason.partition(" (")[0]) == ("site-1", "UNREADABLE: a message that cannot be read")
    assert exits == []
    assert not heard.is_set()


class Kept(ItemConsumer):
    """FLARE's consumer of what is fetched, as far as it counts here."""

    def consume_items(self, items: list[bytes], result: Any) -> Any:
        return (result or 0) + len(items)


def test_what_is_fetched_for_a_message_is_held_to_the_same_bound(receiver: Receiver) -> None:
    first, second = Kept(), Kept()
    for _ in range(2):
        assert first.consume("ref", {"n": 1}, [b"x" * 400, b"x" * 100]) == {"n": 1}
    with pytest.raises(StreamError, match="OVERSIZE: tensors of more than 1000 bytes"):
        first.consume("ref", {}, [b"x"])
    assert first.result == 4
    with pytest.raises(StreamError, match="an empty piece"):
        Kept().consume("ref", {}, [])
    second.consume("ref", {}, [b"x" * 1000])
    bound_messages(receiver, 2000, lambda sender, reason: None)
    second.consume("ref", {}, [b"x" * 1000])
    with pytest.raises(StreamError, match="more than 2000 bytes"):
        second.consume("ref", {}, [b"x"])


def test_why_nothing_more_was_fetched_is_told_of_its_sender(receiver: Receiver, told: list[Any]) -> None:
    """FLARE gives up the message with an error of its own, which does not say why."""

    def fetch(future: Any) -> None:
        with suppress(StreamError):
            Kept().consume("ref", {}, [b"x" * 1001])
        raise RuntimeError("failed to download")

    intake = receiver.byte_receiver.registry.find(*COMMANDS.split(":")).cb
    for intake._pass_on in (fetch, MagicMock(side_effect=RuntimeError("another"))):
        with pytest.raises(RuntimeError):
            intake._read(SimpleNamespace(headers={MessageHeaderKey.ORIGIN: "site-1.job"}))
    assert told == [
        ("site-1", "OVERSIZE: tensors of more than 1000 bytes to be fetched"),
        ("site-1", "UNREADABLE: a message that cannot be read (RuntimeError)"),
    ]
