"""The pages: links lead somewhere, commands can be typed, tables say what the code says, named tests are there."""

from __future__ import annotations

import ast
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from shown import anchors, commands, links, prose, typed
from statement import PAGE, VARIANTS, filled
from typed import bound
from typed import commands as all_commands

import fedmedseg
from fedmedseg.comparison.study import find_comparison
from fedmedseg.core.federation_settings import FederationSection
from fedmedseg.core.jobs import find_job, find_preset, read_settings, setting
from fedmedseg.core.schema import read_yaml
from fedmedseg.core.wire import Header, Meta

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for folder in ("docs", "jobs", "provisioning", "custom", "benchmarks", "app_configs", "tests", "")
    for path in (ROOT / folder).glob("**/*.md" if folder else "*.md")
)
SYSTEMS = sorted(path.name for path in (ROOT / "jobs").iterdir() if path.is_dir())
LONGEST, LONGEST_FRONT = 250, 120
COMMANDS = [(page, program, words) for page in PAGES for program, words in typed(page.read_text(encoding="utf-8"))]
LEAVES = dict(all_commands())


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_there_are_pages_and_commands_to_judge() -> None:
    assert {name_of(page) for page in PAGES} >= {"README.md", "docs/README.md", "jobs/fcl/README.md"}
    programs = [program for _, program, _ in COMMANDS]
    assert min(programs.count(program) for program in ("fedmedseg", "nvflare", "make", "python")) >= 5


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in links(text_of(page)):
        if target.startswith(("https://", "http://")):
            continue
        file, _, heading = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        assert there.is_relative_to(ROOT), target
        assert not heading or heading in anchors(text_of(there)), target


def sources(text: str) -> set[str]:
    """DOIs and arXiv ids that a text links to."""
    return set(re.findall(r"https://(?:doi\.org/|arxiv\.org/abs/)([^)\s]+)", text))


def test_every_paper_of_the_table_of_systems_is_linked_and_cited() -> None:
    """Links that lead outside are not followed here: they must be those of the one list of papers."""
    cited = text_of(ROOT / "CITATION.cff")
    for page in (ROOT / "README.md", DOCS / "citing.md"):
        found = sources(text_of(page))
        assert len(found) >= 6
        for source in found:
            assert source in cited, f"{page.name}: {source}"


def test_no_page_calls_a_study_to_be_run_whose_results_are_there() -> None:
    state = dict(
        re.findall(r"^\| \[.*?\]\(\.\./jobs/(\w+)/README\.md\) \|.*\| (.*) \|$", text_of(DOCS / "systems.md"), re.M)
    )
    assert set(state) == set(SYSTEMS)
    for system, said in state.items():
        worth = text_of(ROOT / "jobs" / system / "README.md").partition("## What it is worth")[2]
        assert not ("to be run" in said and "|" in worth), system


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_is_long(page: Path) -> None:
    assert len(text_of(page).splitlines()) <= (LONGEST_FRONT if page == ROOT / "README.md" else LONGEST)


def test_every_page_of_docs_is_in_its_index() -> None:
    named = {(DOCS / target.partition("#")[0]).resolve() for target in links(text_of(DOCS / "README.md"))}
    assert {page for page in PAGES if page.parent == DOCS and page.name != "README.md"} <= named
    assert {ROOT / "jobs" / system / "README.md" for system in SYSTEMS} <= named
    assert set((ROOT / "provisioning" / "runbooks").glob("*.md")) <= named


def named_files(text: str) -> Iterator[str]:
    """Paths of this project that a page names as code."""
    for word in re.findall(r"`([^`\s]+)`", prose(text)):
        place = re.match(r"(?:custom|tests|benchmarks|provisioning|app_configs|jobs|docs)/[\w./-]*\w", word)
        if place and not re.search(r"[<>{}*$]", word) and not word.endswith("..."):
            yield place.group()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    for name in named_files(text_of(page)):
        # newsys is a name for a system that is yet to be written
        places = (ROOT / name, ROOT / "tests" / name, page.parent / name)
        assert "newsys" in name or any(place.exists() for place in places), name


def functions_of(file: Path) -> set[str]:
    return {node.name for node in ast.parse(text_of(file)).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", [DOCS / "faults.md", DOCS / "threat-model.md"], ids=name_of)
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    file, found = None, 0
    for name, test in re.findall(r"`((?:[\w/]+\.py)?)(?:::(test_\w+))?(?: -k [\w ]+)?`", text_of(page)):
        if name.rpartition("/")[2].startswith("test_"):
            file = ROOT / "tests" / name
            assert file.is_file(), name
        if test:
            assert file is not None
            assert test in functions_of(file), f"{file}::{test}"
            found += 1
    assert found >= 10


def shown(program: str) -> list[Any]:
    return [
        pytest.param(words, id=f"{name_of(page)}: {' '.join(words)[:60]}")
        for page, made_by, words in COMMANDS
        if made_by == program
    ]


@pytest.mark.parametrize("words", shown("fedmedseg"))
def test_a_command_of_ours_is_one_that_is_understood(words: list[str]) -> None:
    if words in (["job", "--list"], ["--version"], ["--install-completion"]):
        return
    context = bound(words)
    # settings that need the reader's own file are not judged without it
    if context.command.name in {"simulate", "job", "federation"} and "--start" not in words:
        check_settings(context.params["job"], words)
    if context.command.name == "compare":
        assert find_comparison(context.params["study"]).is_file()


def check_settings(job: str, words: list[str]) -> None:
    """The job is one of ours; presets and settings make a valid study, but for files of the reader's own."""
    given = [(words[place], words[place + 1]) for place in range(len(words) - 1)]
    presets = [value for option, value in given if option == "--preset" and not value.endswith(".yaml")]
    changes = [value for option, value in given if option == "--set"]
    folder = find_job(job)
    read_settings(folder, [read_yaml(find_preset(job, one)) for one in presets] + [setting(one) for one in changes])


@pytest.mark.parametrize("words", shown("nvflare"))
def test_a_command_of_flare_is_one_that_it_understands(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nvflare.cli import parse_args

    monkeypatch.setattr(sys, "argv", ["nvflare", *words])
    try:
        parse_args("nvflare")
    except SystemExit:
        pytest.fail(capsys.readouterr().err[-2000:])
    if words[0] == "simulator":
        assert (ROOT / words[1]).is_dir()


@pytest.mark.parametrize("words", shown("make"))
def test_a_goal_of_make_is_one_that_it_has(words: list[str]) -> None:
    goals = re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE)
    assert set(words) <= set(goals)


@pytest.mark.parametrize("words", shown("python"))
def test_a_script_is_there_and_knows_its_options(words: list[str]) -> None:
    if words[0] == "-m":
        return
    script = ROOT / words[0]
    assert script.is_file()
    # options may be those of what several scripts share
    known = text_of(script) + text_of(ROOT / "benchmarks" / "worth.py")
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in known, option


def inline(text: str) -> Iterator[list[str]]:
    """Words of the commands of ours that stand in sentences."""
    for line in re.findall(r"`(fedmedseg [^`]+)`", prose(text).replace("\n", " ")):
        yield from (words for program, words in commands(line.replace("...", "")) if program == "fedmedseg")


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name_of)
def test_a_command_in_a_sentence_exists_with_its_options(page: Path) -> None:
    for words in inline(text_of(page)):
        if words[0] == "COMMAND" or words[0].startswith("--"):
            continue
        path = next((tuple(words[:n]) for n in (2, 1) if tuple(words[:n]) in LEAVES), None)
        groups = {name[0] for name in LEAVES if len(name) > 1}
        assert path is not None or (len(words) == 1 and words[0] in groups), words
        if path is not None:
            known = {option for parameter in LEAVES[path].params for option in parameter.opts} | {"--help"}
            assert {word for word in words if word.startswith("-")} <= known, words


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("fedmedseg job --list  # it's all", [("fedmedseg", ["job", "--list"])]),
        ("a=$(nvflare job list | grep x)", [("nvflare", ["job", "list"])]),
        ("timeout 9 bash -c 'until nvflare system status; do sleep 1; done'", [("nvflare", ["system", "status"])]),
        ("site/bin/fedmedseg audit kit || [ $? -eq 1 ]", [("fedmedseg", ["audit", "kit"])]),
        ("pip install fedmedseg", []),
    ],
)
def test_commands_are_found_where_a_shell_would_run_them(line: str, found: list[tuple[str, list[str]]]) -> None:
    assert list(commands(line)) == found


def test_links_and_headings_are_read_as_pages_show_them() -> None:
    page = "# A page\n## What `x` is, 2.0\n## Twice\n## Twice\n```\n# none [a](b)\n```\nsee [it](c.md#d), `[no](e)`\n"
    assert anchors(page) == {"a-page", "what-x-is-20", "twice", "twice-1"}
    assert links(page) == ["c.md#d"]


def test_the_page_of_commands_names_every_command_with_its_own_words() -> None:
    rows = re.findall(r"^\| `fedmedseg ([^`]+)` \| (.+) \|$", text_of(DOCS / "commands.md"), re.MULTILINE)
    assert rows == [(" ".join(path), str(command.help).splitlines()[0]) for path, command in LEAVES.items()]


def rows_of_systems() -> dict[str, str]:
    table = text_of(ROOT / "README.md").split("## The systems")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| [")]
    return {match.group(1): row for row in rows if (match := re.search(r"`jobs/(\w+)`", row))}


def test_the_table_of_systems_has_every_job_with_its_own_executors_and_rules() -> None:
    rows = rows_of_systems()
    assert sorted(rows) == SYSTEMS
    for system, row in rows.items():
        config = ROOT / "jobs" / system / "app" / "config"
        client, server = (json.loads(text_of(config / f"config_fed_{side}.json")) for side in ("client", "server"))
        executors = [one["executor"]["path"].rpartition(".")[2] for one in client["executors"]]
        used = {
            workflow["args"].get("aggregator_id", workflow["args"].get("aggregator"))
            for workflow in server["workflows"]
        }
        rules = {one["id"]: one["path"].rpartition(".")[2] for one in server["components"] if one["id"] in used}
        cell = row.split(" | ")[2]
        said = [set(re.findall(r"`(\w+)`", part)) for part in cell.split(";")]
        assert said[0] == set(executors), system
        left_out = {"MetricsAggregator"} | (
            {"SharedKeysAggregator"} if "fine_tuning" in text_of(config / "config_fed_server.json") else set()
        )
        assert said[1] | left_out >= set(rules.values()), system
        assert said[1] <= set(rules.values()), system
        assert "not yet measured" in row or "#what-" in row, system


@pytest.mark.parametrize("job", SYSTEMS)
def test_the_statement_of_privacy_says_what_the_code_declares(job: str) -> None:
    """`python tests/support/statement.py` writes the tables anew."""
    text = text_of(PAGE)
    assert job in VARIANTS
    assert text.count(f"<!-- table: {job} -->") == 1
    assert filled(text, jobs={job}) == text


def test_a_table_that_is_no_longer_right_is_seen() -> None:
    text = text_of(PAGE)
    stale = text.replace("32 tensors", "31 tensors")
    assert stale != text
    assert filled(stale, jobs={"fedcrld"}) == text
    assert filled(stale, jobs={"fcl"}) == stale


def test_the_statement_of_privacy_names_every_header_and_field() -> None:
    words = set(re.findall(r"`(\w+)`", text_of(PAGE)))
    headers = {value.removeprefix("fedmedseg.") for name, value in vars(Header).items() if name.isupper()}
    fields = {value for name, value in vars(Meta).items() if name.isupper()}
    assert headers | fields <= words


def test_every_setting_that_changes_the_form_of_what_travels_is_in_the_statement_of_privacy() -> None:
    forms = [name for name in FederationSection.model_fields if name.startswith(("transport", "encryption"))]
    assert len(forms) == 3
    for name in forms:
        assert f"`federation.{name}`" in text_of(PAGE)


@pytest.mark.parametrize("folder", ["custom", "benchmarks", "tests"])
def test_every_page_that_code_names_is_there(folder: str) -> None:
    for file in sorted((ROOT / folder).rglob("*.py")):
        for page in re.findall(r"\bdocs/[\w-]+\.md\b", text_of(file)):
            assert (ROOT / page).is_file(), f"{name_of(file)}: {page}"


def test_the_picture_of_the_architecture_stands_alone_and_is_drawn_for_light_and_dark() -> None:
    text = text_of(DOCS / "architecture.svg")
    picture = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    assert picture.find(f"{space}title") is not None
    assert picture.find(f"{space}desc") is not None
    assert "prefers-color-scheme: dark" in text
    kinds = {element.tag.removeprefix(space) for element in picture.iter()}
    assert not kinds & {"script", "image", "foreignObject", "use"}
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}


def test_the_citation_is_of_this_version_and_names_the_six_papers() -> None:
    cited = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert (cited["cff-version"], cited["license"]) == ("1.2.0", "Apache-2.0")
    assert cited["version"] == fedmedseg.__version__
    page = text_of(DOCS / "citing.md")
    assert len(cited["references"]) >= 6
    for paper in cited["references"]:
        assert {"type", "title", "authors", "year"} <= paper.keys()
        assert paper["title"] in page
        assert all(set(author) <= {"family-names", "name"} for author in paper["authors"])
        sources = [paper.get("doi", ""), *(one["value"].partition(":")[2] for one in paper.get("identifiers", []))]
        assert all(source in page for source in sources)
