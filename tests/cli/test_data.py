"""`fedmedseg data` as a user types it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner

from fedmedseg.cli.console import fail, friendly_errors
from fedmedseg.cli.data import data_app
from fedmedseg.core.errors import ConfigurationError, DataError
from fedmedseg.data.datalist import read_datalist
from fedmedseg.data.phantoms import write_site

runner = CliRunner()


def run(*arguments: object, code: int = 0) -> str:
    """Output of one call with both streams, in one line of text."""
    result = runner.invoke(data_app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, (result.output, result.exception)
    return " ".join(result.output.replace("│", " ").split())


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Ten labelled volumes in images/ and labels/."""
    root = tmp_path / "raw" / "knees"
    rng = np.random.default_rng(0)
    for index in range(10):
        for folder, voxels in (("images", rng.integers(0, 99, (8, 8, 8))), ("labels", rng.integers(0, 3, (8, 8, 8)))):
            path = root / folder / f"knee_{index}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.Nifti1Image(voxels.astype(np.int16), np.eye(4)).to_filename(path)
    return root


def test_an_import_makes_sites_that_the_data_list_reader_accepts(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = run("import", "decathlon", plain, "--out", out, "--sites", "2", "--split", "0.6,0.2,0.2")
    assert "site-1 5 3 1 1 0" in text
    assert f"next: fedmedseg data check {out}/sites/site-1.yaml --labels 2" in text
    for site in ("site-1", "site-2"):
        file = out / "sites" / f"{site}.yaml"
        list_ = file.parent / yaml.safe_load(file.read_text())["datasets"]["knees"]["list"]
        sections = read_datalist(list_, salt="for the test")
        assert {name: len(cases) for name, cases in sections.items()} == {
            "training": 3,
            "validation": 1,
            "test": 1,
            "unlabeled": 0,
        }


def test_the_same_seed_gives_the_same_sites_and_another_seed_others(plain: Path, tmp_path: Path) -> None:
    lists = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("import", "decathlon", plain, "--out", tmp_path / name, "--sites", 2, "--seed", seed)
        lists.append((tmp_path / name / "site-1" / "datalist.json").read_text())
    assert lists[0] == lists[1] != lists[2]


def test_cardiac_phantoms_annotate_as_the_published_hospitals_and_one_is_only_tested(tmp_path: Path) -> None:
    out, options = tmp_path / "o", ("--sites", 3, "--size", "32,32,24", "--annotation", "published", "--heart")
    counts = ("--training", 2, "--validation", 0, "--test", 1, "--unlabeled", 3, "--unseen", 3)
    run("phantoms", "cardiac_ct", "--out", out, *options, *counts)
    lists = [json.loads((out / f"site-{number}" / "datalist.json").read_text()) for number in (1, 2, 3)]
    assert [len(one["training"]) for one in lists] == [2, 1, 0]
    assert [len(one["unlabeled"]) for one in lists] == [1, 2, 0]
    assert lists[0]["training"][0]["annotated_labels"] == [1, 2]
    assert (out / "site-3" / lists[2]["test"][0]["heart"]).is_file()
    assert "cardiac_ct" in run("phantoms", "cine_mr", "--out", tmp_path / "p", "--heart", code=2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("decatlon",), "'decathlon'"),
        (("sunnybrook",), "cases.csv"),
        (("decathlon", "--sites", "11"), "1 to 10"),
        (("decathlon", "--sites", "a=X"), "no groups"),
        (("decathlon", "--split", "1,1,1"), "--split"),
        (("decathlon", "--role", "My Role"), "--role"),
        (("decathlon", "--myocardium"), "--myocardium"),
    ],
)
def test_a_wrong_import_ends_with_code_2_and_says_why(
    plain: Path, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    text = run("import", arguments[0], plain, "--out", tmp_path / "out", *arguments[1:], code=2)
    assert "Error:" in text
    assert told in text
    assert not (tmp_path / "out").exists()


def test_an_import_never_writes_into_or_around_its_source(plain: Path) -> None:
    for out in (plain, plain / "out", plain.parent):
        assert "apart from" in run("import", "decathlon", plain, "--out", out, "--force", code=2)
    assert sorted(path.name for path in plain.iterdir()) == ["images", "labels"]


def imported(plain: Path, tmp_path: Path) -> Path:
    run("import", "decathlon", plain, "--out", tmp_path / "out", "--sites", "1")
    site = tmp_path / "out" / "site-1"
    content = json.loads((site / "datalist.json").read_text())
    content["labels"] = {"0": "background", "1": "a", "2": "b"}
    (site / "datalist.json").write_text(json.dumps(content))
    return site


def test_check_counts_what_would_be_used_and_ends_well(plain: Path, tmp_path: Path) -> None:
    site = imported(plain, tmp_path)
    for path in (site / "datalist.json", site.parent / "sites" / "site-1.yaml"):
        text = run("check", path)
        assert "training 6 6 0" in text
        assert "test 2 2 0" in text


def test_check_names_a_case_that_would_be_set_aside_and_ends_with_code_1(plain: Path, tmp_path: Path) -> None:
    site = imported(plain, tmp_path)
    entry = json.loads((site / "datalist.json").read_text())["test"][0]
    damaged = site / entry["image"]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    text = run("check", site / "datalist.json", code=1)
    assert "test 2 1 1" in text
    assert entry["image"] in text


def test_check_asks_for_labels_that_a_list_does_not_name(plain: Path, tmp_path: Path) -> None:
    run("import", "decathlon", plain, "--out", tmp_path / "out", "--sites", "1")
    list_ = tmp_path / "out" / "site-1" / "datalist.json"
    content = json.loads(list_.read_text())
    assert content["labels"] == {"0": "background", "1": "label 1", "2": "label 2"}, "what the import found"
    assert "training 6 6 0" in run("check", list_)
    list_.write_text(json.dumps(content | {"labels": {"0": "background"}}))
    assert "--labels" in run("check", list_, code=2)
    assert "training 6 6 0" in run("check", list_, "--labels", 2)
    assert "label values outside 0..1" in run("check", list_, "--labels", 1, code=1)


def test_check_of_a_missing_file_says_so(tmp_path: Path) -> None:
    assert "no file at" in run("check", tmp_path / "x.json", code=2)


def test_phantoms_make_sites_that_differ_and_pass_the_check(tmp_path: Path) -> None:
    out = tmp_path / "out"
    counts = ("--training", 1, "--validation", 1, "--test", 1, "--unlabeled", 1)
    run("phantoms", "cine_mr", "--out", out, "--sites", 2, "--size", "48,48,4", *counts)
    for site in ("site-1", "site-2"):
        file = out / "sites" / f"{site}.yaml"
        assert "cmr" in yaml.safe_load(file.read_text())["datasets"]
        assert "training 1 1 0" in run("check", file)
    first, second = ((out / site / "images" / "phantom-001.nii.gz").read_bytes() for site in ("site-1", "site-2"))
    assert first != second
    assert "--force" in run("phantoms", "cine_mr", "--out", out, code=2)
    run("phantoms", "cine_mr", "--out", out, "--sites", 1, "--size", "48,48,4", *counts, "--force")
    assert sorted(path.name for path in (out / "sites").iterdir()) == ["site-1.yaml"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("cine",), "family"),
        (("cine_mr", "--size", "1,2"), "--size"),
        (("cine_mr", "--size", "1,2,3"), "size"),
        (("cine_mr", "--size", "100000,100000,100000"), "100000 x 100000 x 100000. Expected at most 134217728 voxels"),
        (("cine_mr", "--role", "a b"), "--role: got 'a b'"),
        (("cine_mr", "--sites", "2", "--unseen", "3"), "--unseen: got 3. Expected a number of one of the 2 sites"),
    ],
)
def test_wrong_phantoms_are_refused(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    said = run("phantoms", *arguments, "--out", tmp_path / "out", code=2)
    assert "Error:" in said
    assert told in said


def test_a_set_of_fewer_patients_than_the_usual_number_of_sites_becomes_as_many(tmp_path: Path) -> None:
    for index in range(7):
        for folder in ("images", "labels"):
            path = tmp_path / "raw" / folder / f"knee_{index}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.Nifti1Image(np.ones((8, 8, 8), np.int16), np.eye(4)).to_filename(path)
    run("import", "decathlon", tmp_path / "raw", "--out", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "sites").iterdir()) == ["site-1.yaml", "site-2.yaml"]


def test_a_friendly_error_goes_to_stderr_whole_and_unstyled_text_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, friendly_errors():
        raise DataError("a [field]", got="x" * 300, expected="y")
    assert ended.value.exit_code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == f"Error: a [field]: got {'x' * 300}. Expected y.\n"
    with pytest.raises(typer.Exit):
        fail(ConfigurationError("b"))
    with pytest.raises(ZeroDivisionError), friendly_errors():
        _ = 1 / 0


def test_the_real_sunnybrook_set_becomes_four_sites(tmp_path: Path) -> None:
    folder = os.environ.get("FEDMEDSEG_DATA")
    if not folder or not (Path(folder) / "sunnybrook").is_dir():
        pytest.skip("FEDMEDSEG_DATA with sunnybrook/ is not set")
    source = Path(folder) / "sunnybrook"
    text = run("import", "sunnybrook", source, "--out", tmp_path / "four")
    for row in ("hf-i 12", "hf-ni 12", "hyp 12", "n 9"):
        assert row in text
    text = run(
        "import", "sunnybrook", source, "--out", tmp_path / "two", "--sites", "a=HF-I,HF-NI", "--sites", "b=HYP,N"
    )
    assert "a 24" in text
    assert "b 21" in text


def test_late_enhancement_phantoms_serve_the_role_of_late_enhancement(tmp_path: Path) -> None:
    """Their label 3 is an infarct, where that of cine, whose role is another, is the right ventricle."""
    counts = ["--training", 1, "--validation", 0, "--test", 0, "--unlabeled", 0]
    run("phantoms", "late_enhancement_mr", "--out", tmp_path / "o", "--sites", 1, "--size", "48,48,4", *counts)
    content = yaml.safe_load((tmp_path / "o" / "sites" / "site-1.yaml").read_text())
    assert list(content["datasets"]) == ["lge"]


def test_a_list_is_checked_against_the_labels_of_its_own_role(tmp_path: Path) -> None:
    """Late enhancement has four structures where cine has three: each list is judged by its own data set."""
    datasets = {}
    for role, family in (("cmr", "cine_mr"), ("lge", "late_enhancement_mr")):
        counts = {"unlabeled": 0, "training": 1, "validation": 0, "test": 1}
        listed = write_site(family, site_index=0, out=tmp_path / role, seed=1, counts=counts, size=(64, 64, 6))
        datasets[role] = {"list": str(listed)}
    file = tmp_path / "site.yaml"
    file.write_text(yaml.safe_dump({"datasets": datasets}))
    said = run("check", file, "--job", "fedcrld")
    assert "cmr training 1 1 0" in said
    assert "lge training 1 1 0" in said
    file.write_text(yaml.safe_dump({"datasets": {"cmr": datasets["lge"]}}))
    assert "set aside" in run("check", file, "--job", "fedcrld", code=1), "as cine they have labels beyond the map"


def test_tables_say_what_their_numbers_count_and_an_import_tells_where_it_is(plain: Path, tmp_path: Path) -> None:
    text = run("import", "decathlon", plain, "--out", tmp_path / "out", "--sites", "1")
    assert [text.count(word) for word in ("patients", "train", "val", "volumes")] == [1, 1, 1, 4]
    assert f"reading decathlon: {plain} reading: 1 of 10 reading: 10 of 10" in text
    assert "site-1: 1 of 10 site-1: 10 of 10" in text
    text = run("check", tmp_path / "out" / "site-1" / "datalist.json", "--labels", 2)
    assert [text.count(word) for word in ("patients", "volumes", "admitted", "set aside")] == [1, 2, 1, 1]
