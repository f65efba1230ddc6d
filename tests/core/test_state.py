"""What a site remembers: found again by its own run, set aside for any other."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from fedmedseg.core import checkpoint, state
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.core.state import FORMAT, SiteState, earlier_run, require_earlier

KEY = {"study": "heart", "experiment": "0123456789abcdef" * 4, "site": "site-1"}


def opened(root: Path, run: str = "first", **key: str) -> SiteState:
    return SiteState(root, run=run, **{**KEY, **key})


def test_the_same_run_finds_its_state_in_another_process(tmp_path: Path) -> None:
    opened(tmp_path).save("teacher", {"w": torch.tensor([1.0])})
    found = opened(tmp_path).load("teacher")
    assert found is not None
    assert found["w"].tolist() == [1.0]


def test_state_of_another_format_is_refused_and_not_taken_for_none(tmp_path: Path) -> None:
    mine = opened(tmp_path)
    mine.save("teacher", {"w": 1})
    file = mine.folder / "teacher.safetensors"
    checkpoint.save(file, {"format": FORMAT + 1, "tree": {}})
    with pytest.raises(FedMedSegError, match="of this version of the package"):
        mine.load("teacher")


def test_another_run_starts_empty_and_the_newest_earlier_state_is_kept_aside(tmp_path: Path) -> None:
    for run in ("first", "second", "third"):
        state = opened(tmp_path, run)
        assert state.load("teacher") is None
        state.save("teacher", {"run": run})
    aside = tmp_path / "heart" / "0123456789abcdef" / "earlier" / "site-1"
    assert checkpoint.load(aside / "teacher.safetensors")["tree"] == {"run": "second"}
    assert opened(tmp_path, "third").load("teacher") == {"run": "third"}


@pytest.mark.parametrize("other", [{"study": "liver"}, {"experiment": "f" * 64}, {"site": "site-2"}])
def test_studies_experiments_and_sites_do_not_see_each_other(tmp_path: Path, other: dict[str, str]) -> None:
    opened(tmp_path).save("teacher", 1)
    neighbour = opened(tmp_path, "another run", **other)
    assert neighbour.load("teacher") is None
    neighbour.save("teacher", 2)
    assert opened(tmp_path).load("teacher") == 1


def test_only_a_run_of_the_very_experiment_can_be_continued(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--resume: got no earlier run of heart\. .*drop --resume"):
        require_earlier(tmp_path, **KEY)
    opened(tmp_path, experiment="f" * 64)
    opened(tmp_path, experiment="e" * 64, study="liver")
    with pytest.raises(ConfigurationError, match=r"earlier runs of heart with other settings alone \(f{16}\)"):
        require_earlier(tmp_path, **KEY)
    with pytest.raises(ConfigurationError, match=r"no earlier run of lung, but of heart, liver"):
        require_earlier(tmp_path, **{**KEY, "study": "lung"})
    opened(tmp_path)
    require_earlier(tmp_path, **KEY)


def test_a_server_that_resumes_hands_out_the_run_that_left_state(tmp_path: Path) -> None:
    assert earlier_run(tmp_path, **KEY) is None
    opened(tmp_path, "first")
    assert earlier_run(tmp_path, **KEY) == "first"
    opened(tmp_path, "second")
    assert earlier_run(tmp_path, **KEY) == "second"


def test_a_process_that_outlived_its_run_cannot_touch_the_next_runs_state(tmp_path: Path) -> None:
    orphan = opened(tmp_path, "first")
    orphan.save("teacher", 1)
    opened(tmp_path, "second").save("teacher", 2)
    for touch in (lambda: orphan.save("teacher", 3), lambda: orphan.load("teacher"), lambda: orphan.remove("teacher")):
        with pytest.raises(FedMedSegError, match="another run") as caught:
            touch()
        assert caught.value.reason is Reason.STALE
    assert opened(tmp_path, "second").load("teacher") == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"run": 7}', b"\xff\xfe"])
def test_state_whose_owner_cannot_be_read_is_set_aside(tmp_path: Path, content: bytes) -> None:
    state = opened(tmp_path)
    state.save("teacher", 1)
    (state.folder / "run.json").write_bytes(content)
    assert earlier_run(tmp_path, **KEY) is None
    assert opened(tmp_path).load("teacher") is None
    assert (state.folder.parent / "earlier" / "site-1" / "teacher.safetensors").exists()


def test_what_was_removed_is_gone_with_its_generation(tmp_path: Path) -> None:
    state = opened(tmp_path)
    state.save("teacher", 1)
    state.save("teacher", 2)
    state.remove("teacher")
    assert state.load("teacher") is None
    state.remove("teacher")


def test_log_lines_name_no_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Fault row 44."""
    opened(tmp_path / "secret-folder", "first")
    opened(tmp_path / "secret-folder", "second")
    assert "set aside" in caplog.text
    assert "secret-folder" not in caplog.text


def test_a_state_is_held_by_one_process_until_it_lets_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "ORPHAN_SECONDS", 0.0)
    first = state.hold_alone(tmp_path, **KEY)
    with pytest.raises(ConfigurationError, match="heart, of which another job with these settings is running"):
        state.hold_alone(tmp_path, **KEY)
    state.hold_alone(tmp_path, **{**KEY, "study": "another"}).close()
    first.close()
    state.hold_alone(tmp_path, **KEY).close()


def test_an_orphan_is_waited_for(tmp_path: Path) -> None:
    orphan = state.hold_alone(tmp_path, **KEY)
    end = threading.Timer(0.3, orphan.close)
    end.start()
    state.hold_alone(tmp_path, **KEY).close()
    assert orphan.closed
