"""The audit trail: what a line holds, that a removal shows, that its size is bounded, and what never enters it."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedmedseg.core import audit
from fedmedseg.core.audit import CURRENT, FIRST, Outcome, Trail, read, safe, verify
from fedmedseg.core.errors import ConfigurationError

JOB = "3f1c8a52-0000-4000-8000-000000000001"


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    return Trail(tmp_path / "audit", participant="site-1")


def fill(trail: Trail, number: int) -> None:
    for index in range(number):
        trail.append(action=f"act {index}", outcome=Outcome.ALLOWED)


def lines(trail: Trail) -> list[bytes]:
    return (trail.folder / CURRENT).read_bytes().splitlines(keepends=True)


def rewrite(trail: Trail, content: list[bytes]) -> None:
    (trail.folder / CURRENT).write_bytes(b"".join(content))


def test_a_line_says_when_who_what_and_how_it_ended(trail: Trail) -> None:
    trail.append(action="deploy", outcome=Outcome.REFUSED, who="lead@two.example.org", job=JOB, reason="BYOC")
    trail.append(action="start", outcome=Outcome.ALLOWED)
    first, second = read(trail.folder)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", first.pop("time"))
    assert first == {
        "number": 1,
        "participant": "site-1",
        "who": "lead@two.example.org",
        "action": "deploy",
        "job": JOB,
        "outcome": "refused",
        "reason": "BYOC",
        "previous": FIRST,
    }
    assert second["who"] == "site-1", "about the participant itself where nobody else is named"
    assert second["previous"] == audit.digest_of(lines(trail)[0].rstrip(b"\n"))


def test_only_the_owner_may_read_it(trail: Trail) -> None:
    fill(trail, 1)
    assert stat.S_IMODE(trail.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((trail.folder / CURRENT).stat().st_mode) == 0o600


def test_every_line_is_on_the_disk_before_the_call_returns(trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    fill(trail, 3)
    assert len(synced) == 3


def test_a_whole_trail_has_no_problems_and_tells_its_last_digest(trail: Trail) -> None:
    fill(trail, 5)
    found = verify(trail.folder)
    assert (found.lines, found.first, found.last, found.problems) == (5, 1, 5, [])
    assert found.digest == audit.digest_of(lines(trail)[-1].rstrip(b"\n"))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda found: found[:2] + found[3:], "line 4: the line before it was changed or removed"),
        (lambda found: found[1:], "line 2: the lines before it are gone, and no line says that"),
        (lambda found: [*found[:2], found[2].replace(b"allowed", b"refused"), *found[3:]], "line 4: the line before"),
        (lambda found: [found[1], found[0], *found[2:]], "the line before it was changed or removed"),
        (lambda found: [*found[:2], b"not a line\n", *found[2:]], "a line that is none"),
    ],
    ids=["removed", "first removed", "changed", "swapped", "put in"],
)
def test_a_removal_and_a_change_show(trail: Trail, spoil, told: str) -> None:  # type: ignore[no-untyped-def]
    fill(trail, 5)
    rewrite(trail, spoil(lines(trail)))
    found = verify(trail.folder).problems
    assert any(told in problem for problem in found), found


def test_a_cut_end_shows_to_whoever_noted_a_digest(trail: Trail) -> None:
    fill(trail, 5)
    noted = verify(trail.folder).digest
    fill(trail, 2)
    assert verify(trail.folder, known=noted).problems == []
    rewrite(trail, lines(trail)[:3])
    assert verify(trail.folder).problems == []
    (problem,) = verify(trail.folder, known=noted).problems
    assert "its end was cut" in problem


def test_half_a_line_of_a_killed_process_is_told_and_breaks_nothing_that_follows(trail: Trail) -> None:
    fill(trail, 3)
    rewrite(trail, [*lines(trail)[:2], lines(trail)[2][:40]])
    fill(trail, 2)
    assert [entry["number"] for entry in read(trail.folder)] == [1, 2, 4, 5]
    (problem,) = verify(trail.folder).problems
    assert problem == "after line 2: a line that is none (cut short by a crash, or changed)"


@pytest.fixture
def long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trail:
    """A trail that has let some of its files go; without the wait for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    trail = Trail(tmp_path / "long", participant="server", max_bytes=600, kept_files=2)
    fill(trail, 40)
    return trail


def set_aside(trail: Trail) -> list[Path]:
    return sorted(trail.folder.glob("trail-*.jsonl"))


def test_its_size_is_bounded_and_the_chain_goes_on_over_its_files(long: Trail) -> None:
    files = set_aside(long)
    assert len(files) == 2
    assert all(file.stat().st_size < 600 + 2 * 400 for file in (*files, long.folder / CURRENT))
    found = verify(long.folder, kept_files=2)
    assert found.problems == []
    assert 1 < found.first == found.let_go + 1, "what was let go is told by a line of the trail"
    acts = [entry for entry in read(long.folder) if entry["action"] == "let go"]
    assert {(entry["who"], entry["outcome"]) for entry in acts} == {("server", "allowed")}
    assert acts[-1]["reason"] == f"lines up to {found.let_go}"
    rest = [entry["action"] for entry in read(long.folder) if entry not in acts]
    assert rest == [f"act {number}" for number in range(40 - len(rest), 40)]


def cut(trail: Trail, files: int, lines_of_next: int = 0) -> None:
    """Remove the trail's beginning: whole files, and lines of the one after them."""
    rest = [*set_aside(trail), trail.folder / CURRENT]
    for file in rest[:files]:
        file.unlink()
    rest[files].write_bytes(b"".join(rest[files].read_bytes().splitlines(keepends=True)[lines_of_next:]))


@pytest.mark.parametrize(("files", "more"), [(1, 0), (2, 0), (0, 1), (1, 1), (2, 1)])
def test_a_beginning_that_was_cut_shows_although_older_lines_were_let_go(long: Trail, files: int, more: int) -> None:
    cut(long, files, more)
    (problem,) = verify(long.folder, kept_files=2).problems
    assert "no line says that they were let go" in problem


def test_a_beginning_that_was_cut_shows_although_somebody_wrote_that_it_was_let_go(long: Trail) -> None:
    forged = verify(long.folder).last
    long.append(action="let go", outcome=Outcome.ALLOWED, reason=f"lines up to {forged}")
    cut(long, 2)
    (problem,) = verify(long.folder, kept_files=2).problems
    assert "fewer than 2 full files are left" in problem


def test_a_crash_between_the_line_and_the_deed_is_no_cut(long: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(file: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", crash)
        with pytest.raises(KeyboardInterrupt):
            fill(long, 40)
    found = verify(long.folder, kept_files=2)
    assert found.problems == []
    assert found.first < found.let_go, "what was promised to go is still there"
    fill(long, 10)
    assert verify(long.folder, kept_files=2).problems == []
    assert len(set_aside(long)) == 2


@pytest.mark.parametrize("reason", ["lines up to", "lines up to x", "lines up to 1 and more", ""])
def test_a_line_that_says_nothing_of_the_kind_lets_nothing_go(trail: Trail, reason: str) -> None:
    fill(trail, 2)
    trail.append(action="let go", outcome=Outcome.ALLOWED, reason=reason)
    rewrite(trail, lines(trail)[1:])
    assert len(verify(trail.folder).problems) == 1


def test_a_file_that_is_gone_in_the_middle_shows(tmp_path: Path) -> None:
    trail = Trail(tmp_path, participant="server", max_bytes=600)
    fill(trail, 20)
    sorted(tmp_path.glob("trail-*.jsonl"))[1].unlink()
    assert any("it follows line" in problem for problem in verify(tmp_path).problems)


def _write(folder: Path, number: int) -> None:
    fill(Trail(folder, participant="site-1"), number)


def test_processes_of_one_kit_share_a_trail(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, 25)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    found = verify(tmp_path)
    assert (found.lines, found.last, found.problems) == (100, 100, [])


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("app does not pass signature verification", "app does not pass signature verification"),
        ("cannot read /data/ward/DOE^JANE/scan.nii.gz now", "cannot read <path> now"),
        (r"in C:\ward\DOE_JANE\x.dcm", "in <path>"),
        ("bad file DOE_JANE_1962.nii.gz, skipped", "bad file <file>, skipped"),
        ("patient.NII", "<file>"),
        ("two\nlines\x00and\u00e9", "two?lines?and?"),
        ('{"forged": 1}', '{"forged": 1}'),
        ("x=/data/a,y='b.json'", "x=<path>,y='<file>'"),
        ("https://server:8002/x/y.nii and z.png", "https:<path> and <file>"),
        (f"{'long ' * 239}DOE_JANE_1962.nii.gz", "long " * 60),
    ],
)
def test_words_lose_paths_file_names_and_line_ends(words: str, kept: str) -> None:
    assert safe(words) == kept


def test_a_name_that_is_cut_in_half_is_left_out() -> None:
    words = f"{'/' + 'x' * 1180} DOE_JANE_1962.nii.gz is damaged"
    assert "DOE" in words[:1200]
    assert ".nii.gz" not in words[:1200]
    assert safe(words) == "<path>"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("word", ["a", "a.", "a.nii", "a:", "C:", "=", "/", "\\", "./a", "a b", "a.niix"])
def test_a_stranger_cannot_make_the_writer_think_for_long(word: str) -> None:
    """The square of a million is a day; what grows with the length alone takes a blink."""
    words = word * (2**20 // len(word))
    audit._PATH.sub("<path>", words)
    audit._FILE.sub("<file>", words)


def test_no_more_is_looked_at_than_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []

    class Pattern:
        def sub(self, by: str, words: str) -> str:
            looked.append(len(words))
            return words

    for name in ("_PATH", "_FILE", "_CONTROL"):
        monkeypatch.setattr(audit, name, Pattern())
    assert safe("x" * 2**20, 100) == "x" * 100
    assert looked == [400] * 3


def test_words_are_made_fit_before_others_have_to_wait(trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    locked: list[bool] = []
    lock = trail._locked

    @contextmanager
    def watched() -> Iterator[None]:
        with lock():
            locked.append(True)
            yield
            locked.pop()

    def fit(words: object, most: int = 300) -> str:
        assert not locked
        return str(words)

    monkeypatch.setattr(trail, "_locked", watched)
    monkeypatch.setattr(audit, "safe", fit)
    fill(trail, 1)
    assert len(read(trail.folder)) == 1


def test_words_are_short(trail: Trail) -> None:
    entry = trail.append(action="a" * 999, outcome=Outcome.REFUSED, who="w" * 999, job="j" * 999, reason="r" * 9999)
    assert (len(entry.reason), len(entry.who), len(entry.action), len(entry.job)) == (300, 120, 120, 120)
    fill(trail, 1)
    assert verify(trail.folder).problems == []


def test_a_disk_that_is_full_stops_nobody_and_is_told(
    trail: Trail, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device", "/secret/path")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        trail.append(action="deploy", outcome=Outcome.REFUSED)
    trail.note(action="deploy", outcome=Outcome.REFUSED)
    assert "the audit trail could not be written (OSError): deploy refused" in caplog.text
    assert "secret" not in caplog.text


def test_no_trail_is_told_with_the_mend(tmp_path: Path) -> None:
    for look in (read, verify):
        with pytest.raises(ConfigurationError, match="a startup kit that has been started"):
            look(tmp_path)


def test_other_peoples_lines_are_no_entries(trail: Trail) -> None:
    fill(trail, 1)
    rewrite(trail, [*lines(trail), json.dumps({"number": "2"}).encode() + b"\n"])
    assert len(read(trail.folder)) == 1
    assert len(verify(trail.folder).problems) == 1
