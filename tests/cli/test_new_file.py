"""Where a command may write the file that --out names."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmedseg.cli.new_file import require_new_file
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
    with pytest.raises(ConfigurationError, match="which is there"):
        require_new_file(folder, force=True)


def test_another_ending_and_a_file_in_a_folders_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"got x\.txt\. Expected a file that ends with \.json"):
        require_new_file(tmp_path / "x.txt", force=False, ending=".json")
    (tmp_path / "file").touch()
    for name in ("file/x.json", "file/deeper/x.json"):
        with pytest.raises(ConfigurationError, match=r"file, which is a file\. Expected a file in a folder"):
            require_new_file(tmp_path / name, force=False)
