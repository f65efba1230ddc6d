"""`fedmedseg init` writes what a study starts with, all of it valid, and nothing over what is there."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pexpect
import pytest
import yaml
from typed import bound, call, next_lines, words_of

from fedmedseg.cli import init as module
from fedmedseg.cli.simulate import _check_site_files, _place_site_files, _site_files_of
from fedmedseg.core.config import systems
from fedmedseg.core.jobs import EXPERIMENT, find_job, presets_of, read_settings
from fedmedseg.core.schema import parse, read_yaml
from fedmedseg.data.site import SiteFile
from fedmedseg.provisioning.starting import check_project

SITES = ("ward-a", "ward-b", "ward-c")
OPTIONS = ("--system", "fedata", "--sites", ",".join(SITES))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_study_is_written_whole_and_every_part_passes_its_own_reader(here: Path) -> None:
    code, said = call("init", "heart", *OPTIONS, "--server", "fl.example.org", "--lead", "ann@ward-a.example.org")
    assert code == 0, said
    assert sorted(path.name for path in (here / "heart").iterdir()) == ["job", "project.yml", "sites"]
    _, experiment = read_settings(here / "heart" / "job", [])
    assert (experiment.study, experiment.system) == ("heart", "fedata")
    meta = json.loads((here / "heart" / "job" / "meta.json").read_text())
    assert (meta["name"], meta["min_clients"]) == ("heart", 3)
    for site in SITES:
        settings = parse(SiteFile, read_yaml(here / "heart" / "sites" / f"{site}.yaml"), source=site)
        assert list(settings.datasets) == ["cmr"]
        assert settings.state_dir is None, "no folder of another machine's"
        assert settings.privacy is not None
    project = read_yaml(here / "heart" / "project.yml")
    check_project(project)
    assert [(one["name"], one["type"]) for one in project["participants"]] == [
        ("fl.example.org", "server"),
        *((site, "client") for site in SITES),
        ("admin@fl.example.org", "admin"),
        ("ann@ward-a.example.org", "admin"),
    ]
    shipped = read_yaml(find_job("fedata").parents[1] / "provisioning" / "project.yml")
    assert project["builders"] == shipped["builders"], "kits are made as safe as the package's own"


def test_its_next_lines_can_be_typed_and_make_a_job(here: Path) -> None:
    said = call("init", "heart", *OPTIONS)[1]
    simulate, job, provision = next_lines(said)
    assert bound(words_of(simulate)).params["clients"] == ",".join(SITES)
    assert "-w" in words_of(simulate)
    assert call(*words_of(job))[0] == 0
    assert read_settings(here / "heart-job", [])[1].study == "heart"
    assert provision == "nvflare provision -p heart/project.yml -w heart/kits"
    assert "heart/sites/ward-a.yaml becomes KIT/local/fedmedseg.yaml of ward-a" in said.rpartition(provision)[2]


def test_a_server_without_a_domain_needs_peoples_addresses(here: Path) -> None:
    people = ("--admin", "ann@ward-a.example.org", "--lead", "bob@ward-b.example.org")
    code, said = call("init", "heart", *OPTIONS, "--server", "localhost", *people)
    assert code == 0, said
    names = [one["name"] for one in read_yaml(here / "heart" / "project.yml")["participants"]]
    assert (names[0], *names[-2:]) == ("localhost", people[1], people[3])


@pytest.mark.parametrize(
    ("code", "words"), [(errno.EROFS, "Read-only file system"), (errno.ENOSPC, "No space left on device")]
)
def test_a_folder_that_cannot_be_written_is_named_with_the_reason(
    here: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module, "_write", refuse)
    status, said = call("init", "heart", *OPTIONS)
    assert status == 2
    assert f"--out: got heart ({words})" in " ".join(said.split())


def test_with_imported_data_the_trial_reads_their_lists(here: Path) -> None:
    counts = ("--training", "1", "--validation", "1", "--test", "1", "--unlabeled", "1", "--size", "48,48,4")
    call("data", "phantoms", "cine_mr", "--out", here / "imported", *counts)
    code, said = call("init", "heart", "--system", "fedata", "--data", "imported")
    assert code == 0, said
    context = bound(words_of(next_lines(said)[0]))
    assert context.params["sites"] == Path("heart/sites")
    _, experiment = read_settings(here / "heart" / "job", [])
    assert experiment.data.phantom is None, "nothing is drawn where there are data"
    _place_site_files(_site_files_of(context.params["sites"], ("site-1", "site-2")), here / "w")
    _check_site_files(here / "w" / "local" / "sites", ("site-1", "site-2"), experiment, left=False)
    placed = yaml.safe_load((here / "w" / "local" / "sites" / "site-1.yaml").read_text())
    assert placed["datasets"]["cmr"]["list"] == str(here / "imported" / "site-1" / "datalist.json")


def test_data_that_do_not_mark_what_the_study_does_are_told(here: Path) -> None:
    """A preset's data and the job's own have one role: their labels alone tell them apart."""
    for name in ("site-1", "site-2"):
        file = Path("imported/a/data") / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        cases = [{"image": "a.nii.gz", "label": "b.nii.gz"}]
        file.write_text(json.dumps({"labels": {"1": "left_ventricle"}, "training": cases}))
        site = Path("imported/sites") / f"{name}.yaml"
        site.parent.mkdir(parents=True, exist_ok=True)
        site.write_text(f"datasets: {{cmr: {{list: {file.resolve()}}}}}\n")
    code, said = call("init", "heart", "--system", "fedavg", "--data", "imported")
    words = " ".join(said.split())
    assert code == 0
    assert "warning: site-1, site-2: the list does not name 'myocardium', 'right ventricle', and 1 of its" in words
    assert "Remedy: choose the preset that is made for these labels" in words
    assert words.count("warning") == 1
    _, said = call("init", "one", "--system", "fedavg", "--data", "imported", "--sites", "site-2")
    assert "warning: site-2: the list" in " ".join(said.split()), "of sites that take no part nothing is said"
    code, said = call("init", "other", "--system", "fedavg", "--data", "imported", "--preset", "sunnybrook")
    assert (code, "warning" in said) == (0, False), said


@pytest.mark.parametrize(
    ("name", "remedy"), [("hérz", "write 'herz'"), ("my study", "write 'my-study'"), ("心", "choose another")]
)
def test_a_name_that_cannot_be_is_made_one(here: Path, name: str, remedy: str) -> None:
    code, said = call("init", name, "--system", "fedavg", "--sites", "a,b,c")
    assert code == 2
    assert f"Remedy: {remedy}" in " ".join(said.split())


@pytest.mark.parametrize("options", [(), ("--sites", "site-1,n")])
def test_an_imported_site_whose_name_flare_misreads_is_refused_until_its_file_has_another(
    here: Path, options: tuple[str, ...]
) -> None:
    counts = ("--training", "1", "--validation", "1", "--test", "1", "--unlabeled", "1", "--size", "48,48,4")
    call("data", "phantoms", "cine_mr", "--out", here / "imported", "--sites", "2", *counts)
    sites = here / "imported" / "sites"
    (sites / "site-2.yaml").rename(sites / "n.yaml")
    code, said = call("init", "heart", "--system", "fedata", "--data", "imported", *options)
    assert code == 2, said
    assert "rename sites/n.yaml in --data, say to site-n.yaml" in " ".join(said.split())
    (sites / "n.yaml").rename(sites / "site-n.yaml")
    code, said = call("init", "heart", "--system", "fedata", "--data", "imported")
    assert code == 0, said
    placed = read_yaml(here / "heart" / "sites" / "site-n.yaml")
    assert placed["datasets"]["cmr"]["list"] == str(here / "imported" / "site-2" / "datalist.json")


def test_settings_are_laid_over_the_job(here: Path) -> None:
    code, said = call("init", "heart", *OPTIONS, "--preset", "sunnybrook", "--set", "seed=5")
    assert code == 0, said
    _, experiment = read_settings(here / "heart" / "job", [])
    assert (experiment.study, experiment.seed, experiment.data.phantom) == ("heart", 5, None)
    assert "a trial needs the data lists" in said
    assert [line.split()[1] for line in next_lines(said)] == ["job", "provision"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["heart"], "--system: got nothing, and no terminal to ask at. Expected one of cardiac_ct, fcl.*add --system"),
        (["heart", "--system", "fedata"], "--sites: got nothing, and no terminal"),
        (["a/b", *OPTIONS], "STUDY: got 'a/b'"),
        (["heart", "--system", "fedatta", "--sites", "a"], "--system: got 'fedatta'.*write 'fedata'"),
        (["heart", "--system", "fedata", "--sites", "a,A"], "--sites: got a,A. Expected different names"),
        (["heart", "--system", "fedata", "--sites", "a,server"], "--sites: got 'server'"),
        (["heart", "--system", "fedata", "--sites", "a,Network"], "--sites: got 'Network'.*another name than"),
        (
            ["heart", "--system", "fedata", "--sites", "a,1"],
            "got '1'. Expected a name that begins with a letter.*'site-1'",
        ),
        (["heart", "--system", "fedata", "--sites", "a,-b"], "got '-b'. Expected a name that begins with a letter"),
        (["heart", "--system", "fedata", "--sites", "a,"], "got ''. Expected a name that begins with a letter"),
        (
            ["heart", "--system", "fedata", "--sites", "a,b_c"],
            "got 'b_c'. Expected a name of letters, digits and dashes",
        ),
        (["heart", "--system", "fedata", "--sites", "a," + 64 * "b"], "Expected a name of at most 63 characters"),
        (["heart", "--system", "fedata", "--sites", "a,n"], "got 'n', which FLARE.*truth value False.*write 'site-n'"),
        (["heart", "--system", "fedata", "--sites", "a,inf"], "got 'inf', which FLARE.*the number inf"),
        (["heart", "--system", "fedata", "--data", "nowhere"], "--data: got no site file in nowhere/sites"),
        (["heart", *OPTIONS, "--set", "seed=x"], "--set seed: got 'x'"),
        (["heart", *OPTIONS, "--set", "federation.quorum=4"], "federation.quorum: got 4. Expected at most 3"),
        (["heart", *OPTIONS, "--lead", "no address"], "--lead: got 'no address'. Expected an e-mail address"),
        (["heart", *OPTIONS, "--server", "fl example"], "--server: got 'fl example'. Expected a host name"),
        (["heart", *OPTIONS, "--server", "localhost"], "--server: got localhost.*add --admin NAME@.* and --lead NAME@"),
        (["heart", *OPTIONS, "--server", "localhost", "--admin", "a@x.org"], "Remedy: add --lead NAME@[a-z.]*$"),
    ],
)
def test_what_cannot_be_is_told_and_nothing_is_written(here: Path, words: list[str], told: str) -> None:
    import re

    code, said = call("init", *words)
    assert code == 2, said
    assert re.search(told, " ".join(said.split())), said
    assert list(here.iterdir()) == []


def test_nothing_is_overwritten(here: Path) -> None:
    (here / "heart").mkdir()
    (here / "heart" / "mine.txt").write_text("kept")
    code, said = call("init", "heart", *OPTIONS)
    assert (code, "nothing is overwritten" in said) == (2, True)
    assert [path.name for path in here.rglob("*")] == ["heart", "mine.txt"]


PATIENCE = 60
"""Seconds a question may take to come."""


class Person:
    """Somebody at a real terminal who types what is asked for."""

    def __init__(self, *words: str) -> None:
        environment = {**os.environ, "COLUMNS": "200", "TERM": "dumb"}
        command = str(Path(sys.executable).parent / "fedmedseg")
        self.terminal = pexpect.spawn(
            command, list(words), env=environment, encoding="utf-8", timeout=PATIENCE, dimensions=(50, 200)
        )

    def answers(self, question: str, answer: str = "") -> None:
        """Waits for a question and answers it; with Enter alone unless told otherwise."""
        self.terminal.expect_exact(question)
        self.terminal.sendline(answer)

    def reads(self, words: str) -> None:
        """Waits until the terminal shows ``words``."""
        self.terminal.expect_exact(words)

    def end(self) -> int:
        """The command's code."""
        self.terminal.expect(pexpect.EOF)
        self.terminal.close()
        return int(self.terminal.exitstatus)


def test_at_a_terminal_it_asks_for_what_no_option_says_and_again_where_an_answer_cannot_be(here: Path) -> None:
    person = Person("init", "heart")
    person.answers("Which method", "fcl")
    person.answers("Which settings (a preset)")
    person.answers("Folder that `fedmedseg data import` wrote", "nowhere")
    person.reads("Error: --data: got no site file in nowhere/sites")
    person.answers("Folder that `fedmedseg data import` wrote")
    person.answers("Names of the hospitals", "east, 1")
    person.reads("begins with a letter")
    person.answers("Names of the hospitals", "east, west")
    person.answers("Address of the server", "localhost")
    person.answers("E-mail address of the network's administrator")
    person.reads("Error: --admin: got ''")
    person.answers("E-mail address of the network's administrator", "it@east.example.org")
    person.answers("E-mail address of the one who submits the study", "ann@east.example.org")
    person.reads("next: nvflare provision")
    assert person.end() == 0
    assert read_settings(here / "heart" / "job", [])[1].system == "fcl"
    assert [file.name for file in sorted((here / "heart" / "sites").iterdir())] == ["east.yaml", "west.yaml"]
    assert (here / "heart" / "job" / EXPERIMENT).is_file()
    names = [one["name"] for one in read_yaml(here / "heart" / "project.yml")["participants"]]
    assert {"localhost", "east", "west", "it@east.example.org", "ann@east.example.org"} <= set(names)


def test_enter_alone_takes_what_is_usual(here: Path) -> None:
    person = Person("init", "heart")
    for question in ("method", "preset", "Folder", "hospitals", "server", "administrator", "submits"):
        person.answers(question)
    assert person.end() == 0
    names = [one["name"] for one in read_yaml(here / "heart" / "project.yml")["participants"]]
    assert {"server.example.org", "hospital-3", "admin@server.example.org", "lead@server.example.org"} <= set(names)


def test_the_data_that_are_named_say_which_hospitals_there_are(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = ("--training", "1", "--validation", "1", "--test", "1", "--unlabeled", "1", "--size", "48,48,4")
    call("data", "phantoms", "cine_mr", "--out", here / "imported", "--sites", "2", *counts)
    asked = []
    answers = {"Which settings (a preset)": "none", "Folder that `fedmedseg data import` wrote": "imported"}

    def ask(question: str, *, default: str, **options: object) -> str:
        asked.append(question)
        return answers.get(question, default)

    monkeypatch.setattr(module.Prompt, "ask", ask)
    monkeypatch.setattr(module, "_may_ask", lambda: True)
    code, said = call(
        "init", "heart", "--system", "fedata", "--server", "fl.example.org", "--admin", "it@a.example.org"
    )
    assert code == 0, said
    assert asked == [*answers, "E-mail address of the one who submits the study"]
    placed = read_yaml(here / "heart" / "sites" / "site-2.yaml")
    assert placed["datasets"]["cmr"]["list"] == str(here / "imported" / "site-2" / "datalist.json")
    assert "--sites heart/sites" in said, "the trial reads the data"


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_the_list_of_jobs_names_every_preset_in_its_own_words(columns: int) -> None:
    code, said = call("job", "--list", env={"COLUMNS": str(columns)})
    assert code == 0
    assert "\N{HORIZONTAL ELLIPSIS}" not in said
    for preset in (name for system in systems() for name in presets_of(system)):
        assert preset in said
    if columns == 80:
        return  # a table whose last column is folded
    said = " ".join(said.split())
    for words in ("fedata", "sunnybrook", "fed_mae", "Baseline: the transformer trained in the federation"):
        assert words in said
