"""The ledger: it counts over studies, survives a kill, refuses beyond the budget, and never starts again by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.privacy import ledger as module
from fedmedseg.privacy.accounting import epsilon_of, loss_of
from fedmedseg.privacy.ledger import LEDGER, charge, read_ledger

BUDGET: dict[str, Any] = {"multiplier": 2.0, "epsilon": 100.0, "delta": 1e-5}


def test_releases_add_up_over_studies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for study in ("first", "first", "second"):
        standing = charge(tmp_path, study=study, **BUDGET)
    assert standing.releases == 3
    assert standing.epsilon == pytest.approx(epsilon_of(3 * loss_of(2.0), 1e-5))
    kept = read_ledger(tmp_path / LEDGER)
    assert {name: account.releases for name, account in kept.studies.items()} == {"first": 2, "second": 1}
    assert (kept.loss, kept.epsilon) == (3.0, pytest.approx(standing.epsilon))
    assert f"release 3, epsilon {standing.epsilon:.4g} of 100 at delta 1e-05" in caplog.text


def test_beyond_the_budget_nothing_is_released_or_entered(tmp_path: Path) -> None:
    budget = {**BUDGET, "epsilon": epsilon_of(2 * loss_of(2.0), 1e-5) + 1e-6}
    for _ in range(2):
        charge(tmp_path, study="s", **budget)
    before = (tmp_path / LEDGER).read_bytes()
    with pytest.raises(FedMedSegError, match=r"budget is used up.*after 3 releases.*privacy\.noise\.epsilon") as caught:
        charge(tmp_path, study="another", **budget)
    assert caught.value.public == "PRIVACY: the privacy budget is used up"
    assert (tmp_path / LEDGER).read_bytes() == before
    assert charge(tmp_path, study="s", **BUDGET).releases == 3, "another budget is the site's own decision"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"releases": 1}',
        '{"releases": -1}',
        '{"format": 2}',
        '{"releases": 1, "loss": 9.0, "studies": {"s": {"releases": 1, "loss": 1.0}}}',
        '{"releases": 2, "loss": 1.0, "studies": {"s": {"releases": 1, "loss": 1.0}}}',
        '{"releases": 1, "loss": NaN, "studies": {"s": {"releases": 1, "loss": 1.0}}}',
        '{"forgotten": 0}',
    ],
)
def test_a_damaged_ledger_blocks_and_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    (tmp_path / LEDGER).write_text(content)
    with pytest.raises(FedMedSegError, match=r"cannot be read.*restore it from a backup") as caught:
        charge(tmp_path, study="s", **BUDGET)
    assert caught.value.reason is Reason.PRIVACY
    assert (tmp_path / LEDGER).read_text() == content


def test_a_full_disk_blocks_and_leaves_the_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    charge(tmp_path, study="s", **BUDGET)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_atomic", full)
    with pytest.raises(FedMedSegError, match=r"cannot be written.*free space") as caught:
        charge(tmp_path, study="s", **BUDGET)
    assert str(tmp_path) not in caught.value.local
    assert read_ledger(tmp_path / LEDGER).releases == 1


def test_releases_of_several_jobs_at_once_are_all_entered(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=lambda: [charge(tmp_path, study="s", **BUDGET) for _ in range(5)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_ledger(tmp_path / LEDGER).releases == 20


def test_a_killed_process_has_paid_for_all_that_it_may_have_sent(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom fedmedseg.privacy.ledger import charge\n"
        "while True:\n"
        "    charge(Path(sys.argv[1]), study='s', multiplier=100.0, epsilon=1e6, delta=1e-5)\n"
        "    sys.stdout.write('released\\n')\n    sys.stdout.flush()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stdout is not None
    for _ in range(5):
        assert process.stdout.readline() == "released\n"
    process.send_signal(signal.SIGKILL)
    sent = 5 + process.stdout.read().count("released\n")
    process.wait(30)
    assert sent <= read_ledger(tmp_path / LEDGER).releases <= sent + 1
    assert charge(tmp_path, study="s", **{**BUDGET, "epsilon": 1e6}).releases >= sent + 1


def test_the_file_is_for_people_too(tmp_path: Path) -> None:
    charge(tmp_path, study="s", **BUDGET)
    assert set(json.loads((tmp_path / LEDGER).read_text())) == {
        "format",
        "releases",
        "loss",
        "epsilon",
        "delta",
        "studies",
    }
