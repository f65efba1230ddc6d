"""The profile of a round: what a stack counts for, whose process it is, and how processor time is shared out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import round_profile
from round_profile import OTHER, Look, by_kind, kind_of, process_of, summary

SITE = "/env/lib/python3.11/site-packages"
SAMPLES = Counter({("sockets and TLS", "send (a.py)"): 2, ("sockets and TLS", "read (a.py)"): 1, (OTHER, "wait"): 1})


@pytest.mark.parametrize(
    ("frames", "kind"),
    [
        ([f"run ({SITE}/nvflare/fuel/f3/sfm/conn_manager.py:1)", "read (/usr/lib/ssl.py:2)"], "sockets and TLS"),
        ([f"send ({SITE}/nvflare/fuel/f3/cellnet/cell.py:1)", f"dumps ({SITE}/x/utils/fobs/f.py)"], "encoding"),
        # the innermost that is known, not the innermost: torch does it, who asked for it says why
        (["save (/x/fedmedseg/core/checkpoint.py:9)", "copy (/x/torch/_tensor.py:1)"], "files"),
        (["start (/x/fedmedseg/core/workflow.py:9)"], "the study"),
        (["loop (/usr/lib/threading.py:1)"], OTHER),
    ],
)  # fmt: skip
def test_a_stack_counts_for_the_innermost_function_that_is_known(frames: list[str], kind: str) -> None:
    assert kind_of(frames)[0] == kind


def test_a_function_is_told_with_its_file() -> None:
    assert kind_of([f"dumps ({SITE}/nvflare/utils/fobs/f.py:7)", "raw"]) == ("encoding", "dumps (fobs/f.py)")
    assert kind_of(["read"]) == (OTHER, "read")


def test_samples_are_counted_by_kind() -> None:
    folded = "\na (/usr/lib/ssl.py:2) 3\nb (/x/y.py:1);c (/usr/lib/ssl.py:4) 2\nd (/x/y.py:1) 5\n"
    assert by_kind(folded) == {
        ("sockets and TLS", "a (lib/ssl.py)"): 3, ("sockets and TLS", "c (lib/ssl.py)"): 2, (OTHER, "d (x/y.py)"): 5
    }  # fmt: skip


def test_processes_are_told_by_their_command() -> None:
    assert process_of(["python", "-m", "nvflare.private.fed.app.client.worker_process", "-m", "x"]) == "site, job"
    assert process_of(["python", "-m", "nvflare.private.fed.app.server.server_train"]) == "server, parent"
    assert process_of(["bash"]) is None


def test_processor_time_is_shared_out_by_samples_and_divided_by_rounds() -> None:
    """10 s are 20 rounds of 0.5 s; 4 s of a processor are 0.2 s a round, three quarters of them TLS."""
    seen = Look(10.0, {"site, job": 4.0, "server, job": 1.0}, {"site, job": SAMPLES})
    found = summary(seen, [0.4, 0.5, 0.6])
    assert found["processor_s"] == {"server, job": 0.05, "site, job": 0.2}
    assert found["kinds_s"] == {"sockets and TLS": {"site, job": 0.15}, OTHER: {"site, job": 0.05}}
    assert found["functions_s"]["site, job: send (a.py)"] == 0.1


def test_sizes_are_written_one_by_one_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = Look(10.0, {"site, job": 4.0}, {"site, job": SAMPLES})

    def measured(program: str, *, size: int, **_: Any) -> dict[str, Any]:
        assert program == "spy"
        return summary(seen, [0.5]) | {"void": size == 20}

    out = tmp_path / "found.json"
    round_profile.main(["--sizes", "1", "20", "--py-spy", "spy", "--out", str(out)], measured=measured)
    assert list(json.loads(out.read_text())) == ["1", "20"]
    said = capsys.readouterr().out
    assert "1 MB: a round of 0.500 s, 0.200 s of processors\n" in said
    assert "20 MB: a round of 0.500 s, 0.200 s of processors, void\n" in said
    assert said.index("sockets and TLS") < said.index(OTHER) < said.index("together")


def test_without_py_spy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_profile.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="pip install py-spy"):
        round_profile.main([])
