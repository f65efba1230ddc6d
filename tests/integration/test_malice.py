"""What sites and server of a real federation send each other against a study's rules costs the sender's reply alone."""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hospitals import Ended, Hospitals, allow
from stand_in_job import stand_in_job

from fedmedseg.core import admin
from fedmedseg.core.audit import FOLDER, read

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(600)]

ROUNDS = 9
MALICE = [
    {"site": "site-1", "round": 1, "kind": "replay"},
    {"site": "site-2", "round": 2, "kind": "planted"},
    {"site": "site-3", "round": 3, "kind": "swapped"},
    {"site": "site-1", "round": 4, "kind": "ten models"},
    {"site": "site-2", "round": 5, "kind": "300 000 keys"},
    {"site": "site-3", "round": 6, "kind": "a hundred models"},
    {"site": "site-1", "round": 7, "kind": "undecodable"},
    {"site": "site-2", "round": 8, "kind": "a hundred to fetch"},
]
PIECES = 16 * 2**20
"""Bytes that may have arrived before the first of them has been judged; FLARE frees them after some seconds."""


class Memory:
    """Resident memory of the server's job process, read all the time while a job runs."""

    def __init__(self, hospitals: Hospitals) -> None:
        self.hospitals = hospitals
        self.read: list[tuple[float, int]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(10)

    def _watch(self) -> None:
        process: psutil.Process | None = None
        while not self._done.wait(0.02):
            try:
                if process is None:
                    process = next((one for one in self.hospitals.running("localhost") if "-n" in one.cmdline()), None)
                else:
                    self.read.append((time.time(), process.memory_info().rss))
            except psutil.Error:
                process = None


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospitals]:
    made = Hospitals(tmp_path_factory.mktemp("malice"))
    for name in ("localhost", *made.sites):
        allow(made.kits / name, "malice.")
    with made:
        made.up()
        yield made


def study(folder: Path) -> Path:
    """A study of exactly two of three sites in every round but the first: nobody else's reply may be lost."""
    changes = {
        "stages": {"pretraining": {"rounds": ROUNDS}},
        "federation": {"quorum": 2, "wait_after_quorum": 25, "timeout": 60},
    }
    job = stand_in_job(folder / "study", changes)
    client, server = (job / "app" / "config" / f"config_fed_{side}.json" for side in ("client", "server"))
    content = json.loads(client.read_text())
    content["executors"][0]["executor"]["path"] = "malice.ReplayingExecutor"
    content["components"].append({"id": "malice", "path": "malice.MaliciousSite", "args": {}})
    client.write_text(json.dumps(content))
    content = json.loads(server.read_text())
    content["components"].append({"id": "malice", "path": "malice.MaliciousServer", "args": {}})
    server.write_text(json.dumps(content))
    return job


@pytest.fixture(scope="module")
def failed(hospitals: Hospitals, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """The study in which the same sites report an error in the same rounds."""
    hospitals.set_faults([{**fault, "kind": "raise"} for fault in MALICE])
    return hospitals.run(study(tmp_path_factory.mktemp("failed")))


@pytest.fixture(scope="module")
def spoiled(hospitals: Hospitals, failed: Ended, tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Memory]:
    hospitals.set_faults(MALICE)
    with Memory(hospitals) as memory:
        ended = hospitals.run(study(tmp_path_factory.mktemp("spoiled")), timeout=300)
    return ended, memory


def test_malice_leaves_the_shared_model_as_if_the_site_had_reported_an_error(
    failed: Ended, spoiled: tuple[Ended, Memory]
) -> None:
    ended, _ = spoiled
    for one in (failed, ended):
        assert one.status == admin.COMPLETED
        left_out = [sorted(set(each["sites"]) - set(each["accepted"])) for each in one.rounds()]
        assert left_out == [[], *[[fault["site"]] for fault in MALICE]]
    assert [one["shared_sha256"] for one in ended.rounds()] == [one["shared_sha256"] for one in failed.rounds()]
    assert ended.shared == failed.shared


def logged(ended: Ended, number: int, site: str, reason: str) -> list[float]:
    """When the server's log warned of a site's reply in a round, in seconds since the epoch."""
    lines = [
        line
        for line in (ended.folder / "log.txt").read_text().splitlines()
        if "WARNING" in line and f"round {number}: " in line and site in line and reason in line
    ]
    return [datetime.datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp() for line in lines]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (1, "STALE: round of another task"),
        (2, "UNKNOWN_TENSORS: tensors from the server"),
        (3, "TENSOR_SHAPE: tensors from the server"),
        (4, "OVERSIZE: a message of 5784569 bytes"),
        (5, "OVERSIZE: a message of "),
        # what is inside it, and the names of the pieces that its large tensors would be fetched in
        (6, "OVERSIZE: a message of 13333079 bytes"),
        (7, "UNREADABLE: a message that cannot be read"),
        (8, "OVERSIZE: tensors of more than "),
    ],
    ids=[fault["kind"] for fault in MALICE],
)
def test_each_is_named_with_its_reason_in_record_log_and_trail(
    hospitals: Hospitals, spoiled: tuple[Ended, Memory], number: int, reason: str
) -> None:
    """Fault rows 15 (replay), 17 (oversize), 37 (what cannot be decoded) and 43 (a crafted shared model)."""
    ended, _ = spoiled
    site = str(MALICE[number - 1]["site"])
    record = ended.rounds()[number]
    assert record["sites"][site]["reason"].startswith(reason), record["sites"][site]
    # what a site tried once more may come in the round after
    assert len([one for one in record["refusals"] if one["site"] == site]) == 1
    assert len(logged(ended, number, site, reason)) == 1
    told = [entry for entry in read(hospitals.server / FOLDER) if entry["job"] == ended.job_id]
    assert [entry["who"] for entry in told if reason in entry["reason"]] != []


@pytest.mark.parametrize("number", [2, 3])
def test_a_site_that_is_sent_a_crafted_model_writes_it_into_its_own_trail(
    hospitals: Hospitals, spoiled: tuple[Ended, Memory], number: int
) -> None:
    ended, _ = spoiled
    site = str(MALICE[number - 1]["site"])
    told = [entry for entry in read(hospitals.kits / site / FOLDER) if entry["job"] == ended.job_id]
    assert [entry["outcome"] for entry in told if entry["action"] == "task pretraining"] == ["refused"]


@pytest.mark.parametrize("number", [4, 5, 6], ids=["ten models", "300 000 keys", "a hundred models"])
def test_what_is_refused_unread_costs_the_server_some_pieces_and_never_the_whole(
    spoiled: tuple[Ended, Memory], number: int
) -> None:
    """Fault row 17: from just before the refusal until the site has tried again. Read and decoded, the largest would
    cost twice its 139 MB, most of which lie at the site to be fetched."""
    ended, memory = spoiled
    (told,) = logged(ended, number, str(MALICE[number - 1]["site"]), "OVERSIZE")
    before = [rss for when, rss in memory.read if told - 5 < when < told - 1]
    after = [rss for when, rss in memory.read if told - 1 <= when < told + 8]
    assert min(len(before), len(after)) > 10
    assert max(after) - max(before) < PIECES
