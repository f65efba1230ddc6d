"""The runner of all benchmarks, with benchmarks that take no time: what it runs, keeps, ends, and says of goals."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
RESULTS = FOLDER / "results"
FAKE = """
import json, pathlib, sys, time
count = pathlib.Path(__file__).with_suffix(".count")
count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
if "--fail" in sys.argv:
    sys.exit("void: the machine drifted")
if "--sleep" in sys.argv:
    import subprocess
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path(__file__).with_suffix(".child").write_text(str(child.pid))
    time.sleep(600)
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
out.write_text("{" if "--damaged" in sys.argv else json.dumps({"value": 0.5, "arguments": sys.argv[1:]}))
"""

PIECES = """
import pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("--results") + 1]) / "deep"
folder.mkdir(parents=True, exist_ok=True)
for name in "ab":
    if not (folder / name).exists():
        (folder / name).write_text("new")
"""


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("goals", "bench"):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake(bench: ModuleType, tmp_path: Path) -> Callable[..., Any]:
    """fake("one", quick=(), goal=0.4): a benchmark whose figure is 0.5."""

    def make(name: str, *, quick: tuple[str, ...] | None = (), full: tuple[str, ...] = ("--long",), **goal: Any) -> Any:
        script = tmp_path / f"{name}.py"
        script.write_text(FAKE)

        def read(file: Path) -> list[Any]:
            return [bench.Figure("P1", f"figure of {name}", json.loads(file.read_text())["value"], **goal)]

        return bench.Benchmark(name, quick, full, read, script=script)

    return make


def runs(tmp_path: Path, name: str) -> int:
    count = tmp_path / f"{name}.count"
    return int(count.read_text()) if count.exists() else 0


def test_figures_stand_beside_their_goals_and_what_nothing_shows_is_in_the_table(
    bench: ModuleType, fake: Callable[..., Any], tmp_path: Path
) -> None:
    made = [
        fake("least", goal=0.4), fake("most", goal=0.4, side="most"), fake("told"), fake("long", quick=None),
        fake("drifted", goal=0.4, void=True),
    ]  # fmt: skip
    outcomes = bench.run(made, tmp_path / "out", full=False, minutes=5)
    assert [(one.name, one.state) for one in outcomes] == [
        ("least", "done"), ("most", "done"), ("told", "done"), ("drifted", "done"),
    ]  # fmt: skip
    rows = bench.rows_of(outcomes, [bench.Missing("P8", "memory of a server", "no benchmark yet")])
    assert {row["what"]: row["verdict"] for row in rows} == {
        "figure of least": "reached", "figure of most": "missed", "figure of told": "-", "figure of drifted": "void",
        "memory of a server": "missing",
    }  # fmt: skip
    lines = bench.table(rows).splitlines()
    assert "| P1 | figure of least | 0.5 | >= 0.4 | reached |" in lines
    assert "| P1 | figure of most | 0.5 | <= 0.4 | missed |" in lines
    assert "| P1 | figure of told | 0.5 | - | - |" in lines
    assert lines[-1] == "| P8 | memory of a server | - | - | missing (no benchmark yet) |"


def test_a_full_run_goes_on_where_it_was_interrupted(
    bench: ModuleType, fake: Callable[..., Any], tmp_path: Path
) -> None:
    made, out = [fake("one"), fake("two")], tmp_path / "out"
    bench.run(made[:1], out, full=True)
    outcomes = bench.run(made, out, full=True)
    assert [(one.state, len(one.figures)) for one in outcomes] == [("kept", 1), ("done", 1)]
    assert (runs(tmp_path, "one"), runs(tmp_path, "two")) == (1, 1)
    assert json.loads((out / "two.json").read_text())["arguments"][0] == "--long"
    # a damaged result, a changed script, and --again
    (out / "one.json").write_text("{")
    made[1].file.write_text(FAKE + "\n")
    assert [one.state for one in bench.run(made, out, full=True)] == ["done", "done"]
    assert [one.state for one in bench.run(made, out, full=True)] == ["kept", "kept"]
    assert [one.state for one in bench.run(made, out, full=True, again=True)] == ["done", "done"]
    # a quick run is made anew, and is no full one
    assert [one.state for one in bench.run(made, out, full=False, minutes=5)] == ["done", "done"]
    assert [one.state for one in bench.run(made, out, full=True)] == ["done", "done"]


def test_one_that_goes_on_piece_by_piece_goes_on_with_its_own_pieces_alone(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces of an interrupted run are gone on with; those of another script, or before --again, are measured anew."""
    script, out = tmp_path / "pieces.py", tmp_path / "out"
    script.write_text(PIECES)

    def read(folder: Path) -> list[Any]:
        return [bench.Figure("P8", "measured", float(sum("new" in file.read_text() for file in folder.iterdir())))]

    made = bench.Benchmark("pieces", None, (), read, script=script, pieces="deep")

    def measured(**options: bool) -> tuple[str, float]:
        for file in out.glob("pieces/deep/*"):
            file.write_text("earlier")
        (one,) = bench.run([made], out, full=True, **options)
        return one.state, one.figures[0].value if one.figures else -1.0

    (out / "pieces" / "deep").mkdir(parents=True)
    (out / "pieces" / "deep" / "a").write_text("")
    assert measured() == ("done", 2.0), "nobody knows of what run the first piece is"
    assert measured() == ("kept", 0.0)
    assert measured(again=True) == ("done", 2.0)
    script.write_text(PIECES + "sys.exit(1)\n")
    assert measured() == ("failed", -1.0)
    (out / "pieces" / "deep" / "b").unlink()
    assert measured() == ("failed", -1.0)
    assert sorted(file.read_text() for file in out.glob("pieces/deep/*")) == ["earlier", "new"]


def test_a_result_of_an_earlier_run_is_not_taken_for_one_that_was_not_written(
    bench: ModuleType, fake: Callable[..., Any], tmp_path: Path
) -> None:
    made = fake("one")
    assert [one.state for one in bench.run([made], tmp_path / "out", full=False)] == ["done"]
    made.file.write_text("")
    assert [one.state for one in bench.run([made], tmp_path / "out", full=False)] == ["failed"]


def test_one_that_fails_costs_its_own_figures_alone(
    bench: ModuleType, fake: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [fake("void", quick=("--fail",)), fake("torn", quick=("--damaged",)), fake("whole")]
    outcomes = bench.run(made, tmp_path / "out", full=False)
    assert [one.state for one in outcomes] == ["failed", "failed", "done"]
    assert "void: the machine drifted" in capsys.readouterr().out
    assert "cannot be read" in outcomes[1].problem
    verdicts = {row["what"]: row["verdict"] for row in bench.rows_of(outcomes, [])}
    assert verdicts == {"void": "failed", "torn": "failed", "figure of whole": "-"}


def test_time_that_is_up_ends_a_benchmark_with_what_it_started_and_begins_no_other(
    bench: ModuleType, fake: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "LEAST_SECONDS", 0.5)
    made = [fake("slow", quick=("--sleep",)), fake("after")]
    outcomes = bench.run(made, tmp_path / "out", full=False, minutes=6 / 60)
    assert [one.state for one in outcomes] == ["no time", "no time"]
    assert runs(tmp_path, "after") == 0
    child = int((tmp_path / "slow.child").read_text())
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split(")")[1][:3]:
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process of the benchmark outlived it")


def test_rounds_and_growth_are_read_as_they_are_written_and_are_missing_no_more(
    bench: ModuleType, tmp_path: Path
) -> None:
    import goals

    one = {
        "simulator": {"median_s": 0.4},
        "deployed": {"median_s": 0.2},
        "void": False,
        "of_flower": {"deployed": {"ratio": 1.1, "goal": 1.2}},
        "job_of_flower": {"deployed": {"ratio": 1.3, "goal": 1.25}},
    }
    work = {"goal": 0.88, "simulator": {"efficiency": 0.9}, "deployed": {"efficiency": 0.8}}
    file = tmp_path / "rounds.json"
    file.write_text(json.dumps({"rounds": {"1": one}, "efficiency": {"work": {"10 s": work}, "void": False}}))
    folder = tmp_path / "scale"
    folder.mkdir()
    for sites in (2, 4, 8):
        cell = {"where": "deployed", "sites": sites, "megabytes": 250.0, "void": False}
        (folder / f"{sites}.json").write_text(json.dumps(cell | {"server_megabytes": 1000 + 50 * sites}))
    figures = [*goals.round_overhead(file), *goals.scale(folder)]
    assert " ".join(f"{one.id} {one.verdict}" for one in figures) == (
        "P2 reached P3 missed - - - - P1 reached P1 missed P8 missed"
    )
    assert figures[-1].value == pytest.approx(0.2)
    rows = bench.rows_of([bench.Outcome("all", "", "done", figures=tuple(figures))], goals.MISSING)
    assert [row["id"] for row in rows if row["verdict"] == "missing"] == ["P6"]


def test_one_that_wants_a_gpu_runs_where_there_is_one(
    bench: ModuleType, fake: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    made = [fake("anywhere"), replace(fake("fast"), gpu=True)]
    for gpu, ran in ((False, ["anywhere"]), (True, ["anywhere", "fast"])):
        monkeypatch.setattr(bench.torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert [one.name for one in bench.run(made, tmp_path / "out", full=False)] == ran


def test_figures_of_a_gpu_say_so(bench: ModuleType, tmp_path: Path) -> None:
    import goals

    file = tmp_path / "steps.json"
    content = json.loads((RESULTS / "masked_step.json").read_text())
    file.write_text(json.dumps(content | {"device": {"gpu": "a GPU"}, "512 tokens": {"student_ratio": 2.9, "goal": 3}}))
    figures = goals.masked_step(file)
    assert [one.what.split(",")[0] for one in figures] == ["FedATA on a GPU"] * 3
    assert figures[1].verdict == "missed"
    rows = bench.rows_of([bench.Outcome("steps", "", "done", figures=tuple(figures))], goals.MISSING)
    assert "P6" not in [row["id"] for row in rows if row["verdict"] == "missing"]
    content = json.loads((RESULTS / "compute_choice.json").read_text())
    file.write_text(json.dumps(content | {"device": {"gpu": "a GPU"}}))
    assert all(one.what.startswith("on a GPU, ") for one in goals.compute_choice(file))


def shipped(benchmark: Any) -> Path:
    """Where the result lies that a benchmark writes beside its script."""
    return RESULTS / (f"{benchmark.name}.json" if benchmark.pieces is None else f"{benchmark.name}/{benchmark.pieces}")


def test_every_benchmark_of_the_table_is_there_takes_its_arguments_and_reads_what_it_once_wrote(
    bench: ModuleType,
) -> None:
    import goals

    assert len({one.name for one in goals.BENCHMARKS}) == len(goals.BENCHMARKS)
    for one in goals.BENCHMARKS:
        source = one.file.read_text()
        options = {text for text in (*(one.quick or ()), *one.full) if text.startswith("--")}
        options |= {"--results"} if one.pieces else {"--out"}
        assert [text for text in options if f'"{text}"' not in source] == [], one.name
        if one.gpu and not shipped(one).exists():
            continue
        assert all(isinstance(figure.value, float) for figure in one.read(shipped(one))), one.name
    judged = {figure.id for one in goals.BENCHMARKS if shipped(one).exists() for figure in one.read(shipped(one))}
    # no goal of the list is forgotten: each is shown, or said to be missing
    assert judged | {one.id for one in goals.MISSING} == {"-", *(f"P{number}" for number in range(1, 9))}
