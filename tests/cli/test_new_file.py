"""Where a command may write the file that --out names."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmedseg.cli.new_file import require_new_file, writing
from fedmedseg.core.errors import ConfigurationError


def test_a_new_name_will_do_even_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    require_new_file(tmp_path / "a" / "b.json", force=False, ending=".json")
    require_new_file(tmp_path / "b", force=False)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_given_up_by_force_alone_and_a_folder_never(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    file.write_text("{}")
    with pytest.raises(ConfigurationError, match=r"--out: got .*scores\.json, which is there.*--force"):
        require_new_file(file, force=False)
    require_new_file(file, force=True)
    folder = tmp_path / "folder.json"
    folder.mkdir()
    for force in (False, True):
        with pytest.raises(ConfigurationError, match=r"got the folder .*folder\.json.*name a file in it"):
            require_new_file(folder, force=force)


def test_another_ending_and_a_file_in_a_folders_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"got x\.txt\. Expected a file that ends with \.json"):
        require_new_file(tmp_path / "x.txt", force=False, ending=".json")
    (tmp_path / "file").touch()
    for name in ("file/x.json", "file/deeper/x.json"):
        with pytest.raises(ConfigurationError, match=r"file, which is a file\. Expected a file in a folder"):
            require_new_file(tmp_path / name, force=False)


@pytest.mark.skipif(not Path("/proc/1").is_dir(), reason="no folder that nobody can write to")
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed() -> None:
    with pytest.raises(ConfigurationError, match=r"--out: got /proc \(") as caught:
        require_new_file(Path("/proc/scores.json"), force=False)
    assert "Remedy" in str(caught.value)


def test_what_the_disk_says_is_told_of_the_option_in_the_systems_words(tmp_path: Path) -> None:
    refused = pytest.raises(
        ConfigurationError, match=r"--out: got .*x\.json \(No space left on device\).*choose another"
    )
    with refused, writing(tmp_path / "x.json"):
        raise OSError(28, "No space left on device")
    refused = pytest.raises(ConfigurationError, match="Expected a folder that can be written")
    with refused, writing(tmp_path, expected="a folder that can be written"):
        raise PermissionError(13, "Permission denied")


def test_a_name_that_the_system_cannot_look_at_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--out: got .*File name too long"):
        require_new_file(tmp_path / ("a" * 300 + ".json"), force=False)
