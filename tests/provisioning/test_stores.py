"""Jobs and snapshots are kept in the workspace, wherever it lies, and found again by the next process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from nvflare.apis.impl.job_def_manager import SimpleJobDefManager
from nvflare.apis.storage import StorageException

from fedmedseg.provisioning.stores import WorkspaceStorage


def test_a_store_starts_at_the_folder_the_server_works_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    WorkspaceStorage("store/snapshots").create_object("/one", b"content", {"a": 1})
    assert (tmp_path / "store" / "snapshots" / "one" / "data").read_bytes() == b"content"
    assert WorkspaceStorage("store/snapshots").get_meta("/one") == {"a": 1}


def test_flares_job_manager_finds_its_jobs_by_a_relative_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    manager, store = SimpleJobDefManager(uri_root="store/jobs"), WorkspaceStorage(".")
    job = "11111111-2222-3333-4444-555555555555"
    store.create_object(manager.job_uri(job), b"job", {"job_id": job})
    assert (tmp_path / "store" / "jobs" / job / "data").read_bytes() == b"job"
    [listed] = store.list_objects(manager.uri_root)
    assert store.get_meta(listed)["job_id"] == job
    records = Path(os.path.abspath(manager.submit_record_uri_root))
    assert records.is_relative_to(tmp_path / "store")


def test_nothing_gets_out_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store" / "jobs").mkdir(parents=True)
    (tmp_path / "store" / "jobs" / "way-out").symlink_to(tmp_path.parent)
    with pytest.raises(StorageException, match="escapes"):
        WorkspaceStorage("store/jobs").create_object("/way-out/x", b"", {})
