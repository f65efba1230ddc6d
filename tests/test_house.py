"""House rules that a program can check: no unsafe reader, imports one way, whole job folders, no machine's paths."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "custom" / "fedmedseg"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
JOBS = sorted(path for path in (ROOT / "jobs").iterdir() if path.is_dir())
BASE = {"core"}
SHARED = {"segmentation", "networks", "data", "reporting"}
OUTER = {"cli", "comparison", "export", "preflight", "privacy", "provisioning"}
WINGS = {path.parent.name for path in PACKAGE.glob("*/plan.py")}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of an attribute chain, or an empty text."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed([*parts, node.id])) if isinstance(node, ast.Name) else ""


def imports(tree: ast.AST, package: str = "fedmedseg") -> Iterator[str]:
    """Every module that a file imports, inside functions too; ``from x import y`` gives x and x.y."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unsafe(tree: ast.AST) -> Iterator[str]:
    """What reads or runs more than data."""
    for module in imports(tree):
        if module.partition(".")[0] in FORBIDDEN_MODULES:
            yield f"imports {module}"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called, settings = dotted(node.func), {word.arg: word.value for word in node.keywords}
        last = called.rpartition(".")[2]
        if called in {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}:
            yield f"calls {called}"
        if called.startswith("yaml.") and last in {"load", "load_all", "full_load", "unsafe_load"}:
            yield f"calls {called}"
        if called == "torch.load" and not _is(settings.get("weights_only"), True):
            yield "calls torch.load without weights_only=True"
        if (
            called in {"np.load", "numpy.load"}
            and "allow_pickle" in settings
            and not _is(settings["allow_pickle"], False)
        ):
            yield f"calls {called} with allow_pickle"
        if "shell" in settings and not _is(settings["shell"], False):
            yield f"calls {called} with shell"
        if last == "Environment" and not _is(settings.get("autoescape"), True):
            yield "builds pages without autoescape"


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_unpickles_evaluates_or_opens_a_shell(path: Path) -> None:
    """Policy of fault row 37."""
    assert list(unsafe(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "def f():\n    import cloudpickle.x",
        "eval('1')",
        "exec(code)",
        "yaml.load(f)",
        "yaml.unsafe_load(f)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=y)",
        "os.system('x')",
        "Environment()",
    ],
)
def test_the_gate_sees_what_it_is_for(source: str) -> None:
    assert list(unsafe(ast.parse(source)))


@pytest.mark.parametrize(
    "source", ["yaml.safe_load(f)", "torch.load(f, weights_only=True)", "np.load(f, allow_pickle=False)", "x.eval()"]
)
def test_the_gate_lets_safe_readers_pass(source: str) -> None:
    assert list(unsafe(ast.parse(source))) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_package_logs_and_never_prints(path: Path) -> None:
    if path.relative_to(PACKAGE).parts[0] == "cli":
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert [node.lineno for node in calls if dotted(node.func) in {"print", "sys.stdout.write", "pprint"}] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_flare_is_known_in_few_places(path: Path) -> None:
    parts = path.relative_to(PACKAGE).parts
    if parts[0] in {"core", "privacy", "provisioning"} or parts[-1] in {"executor.py", "aggregator.py"}:
        return
    found = {
        module for module in imports(ast.parse(path.read_text(encoding="utf-8"))) if re.match(r"nvflare\b", module)
    }
    assert not found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    """cli and wings see what is shared, what is shared sees the core, and no wing sees another."""
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    seen = {
        module.split(".")[1]
        for module in imports(ast.parse(path.read_text(encoding="utf-8")))
        if module.startswith("fedmedseg.")
    } - {"__version__"}
    everything = BASE | SHARED | OUTER | WINGS
    forbidden = {
        **dict.fromkeys(BASE, everything - BASE),
        **dict.fromkeys(SHARED, WINGS | {"cli", "comparison"}),
        **{wing: (WINGS - {wing}) | {"cli", "comparison"} for wing in WINGS},
        "comparison": WINGS | OUTER - {"comparison"},
        # the filters read the site's own file
        "privacy": everything - BASE - {"privacy", "data"},
        "provisioning": WINGS | {"cli", "comparison", "preflight"},
        "preflight": WINGS | {"cli", "comparison"},
        "export": WINGS | {"cli", "comparison"},
    }.get(part, set())
    assert not seen & forbidden


def test_every_part_of_the_package_has_its_place() -> None:
    parts = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert parts <= BASE | SHARED | OUTER | WINGS
    assert WINGS, "no system is installed"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_says_what_it_is(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text or not path.read_text().strip(), "the first line is a sentence on what the file is"


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_a_job_folder_is_whole_and_runs_in_any_federation(job: Path) -> None:
    for file in ("README.md", "meta.json"):
        assert (job / file).is_file(), file
    config = job / "app" / "config"
    assert sorted(path.name for path in config.iterdir()) == [
        "config_fed_client.json",
        "config_fed_server.json",
        "experiment.yaml",
    ]
    meta = json.loads((job / "meta.json").read_text())
    assert meta["name"] == job.name
    assert meta["deploy_map"] == {"app": ["@ALL"]}
    assert meta["min_clients"] == 1
    assert not (job / "app" / "custom").exists(), "a job brings settings, never code"
    assert not any(path.is_symlink() for path in job.rglob("*"))


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_a_jobs_settings_are_valid_and_its_workflows_are_its_stages(job: Path) -> None:
    from fedmedseg.core.config import load_experiment, system_module

    experiment = load_experiment(job / "app" / "config" / "experiment.yaml")
    server = json.loads((job / "app" / "config" / "config_fed_server.json").read_text())
    stages = list(system_module(experiment.system, "plan").stages(experiment))
    assert [workflow["args"]["stage"] for workflow in server["workflows"]] == stages
    client = json.loads((job / "app" / "config" / "config_fed_client.json").read_text())
    assert sorted(task for executor in client["executors"] for task in executor["tasks"]) == sorted(stages)


MACHINE_PATH = re.compile(r"(?<![\w.$}~/-])/(?:tmp|root|home|Users|mnt|work|scratch)/\w")


def committed() -> list[Path]:
    """Text files under version control, or of the tree where there is none."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
        files = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        parts = (PACKAGE, ROOT / "tests", ROOT / "jobs", ROOT / "app_configs", ROOT / "benchmarks")
        files = [path for part in parts for path in part.rglob("*")]
    kinds = {".py", ".md", ".json", ".yaml", ".yml", ".toml", ".txt", ".jinja", ".cfg", ".sh", ""}
    return [path for path in files if path.is_file() and path.suffix in kinds]


def test_no_file_holds_a_path_of_somebodys_machine() -> None:
    found = []
    for path in committed():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            if MACHINE_PATH.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}")
    assert found == []


@pytest.mark.parametrize(
    ("line", "hit"), [("in " + "/tm" + "p/x", True), ("'" + "/hom" + "e/ann'", True), ("a/tmp/x", False)]
)
def test_the_path_gate_sees_what_it_is_for(line: str, hit: bool) -> None:
    assert bool(MACHINE_PATH.search(line)) is hit


def test_every_preset_makes_a_valid_study_of_its_system() -> None:
    from fedmedseg.core.jobs import find_job, read_settings
    from fedmedseg.core.schema import read_yaml

    presets = sorted((ROOT / "app_configs" / "presets").glob("*/*.yaml"))
    assert presets
    for preset in presets:
        _, experiment = read_settings(find_job(preset.parent.name), [read_yaml(preset)])
        assert experiment.system == preset.parent.name
        assert preset.stem in experiment.study


STUDIES = sorted((ROOT / "app_configs" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.stem)
def test_every_study_of_a_comparison_is_valid_and_called_as_its_file(study: Path) -> None:
    from fedmedseg.comparison.study import read_comparison

    assert read_comparison(study).section.study == study.stem


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.stem)
def test_every_method_of_a_study_with_trials_tries_each_of_its_rates_and_all_as_often(study: Path) -> None:
    """A method whose pretraining ran at an untried rate would lose for the rate, not for its idea."""
    from fedmedseg.comparison.study import read_comparison

    comparison = read_comparison(study)
    grids = {name: method for name, method in comparison.section.methods.items() if method.trials}
    assert len({len(method.grid) for method in grids.values()}) <= 1
    for name, method in grids.items():
        experiment = comparison.experiment(name)
        own = set(_rates(experiment.wing.model_dump(mode="json", exclude_none=True), f"{experiment.system}."))
        if getattr(experiment.wing, "strategy", None) != "fedopt":
            own.discard("fedavg.server.learning_rate")
        # where nothing is fine-tuned, a system with an optimiser of its own at the sites never reads the other
        local = {rate for rate in own if rate != "fedavg.server.learning_rate"}
        tuning = experiment.stages.get("fine_tuning")
        if (tuning is not None and tuning.rounds) or not local:
            own.add("segmentation.optimizer.learning_rate")
        assert set(method.trials) == own, name


def _rates(section: dict[str, Any], before: str) -> Iterator[str]:
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _rates(value, f"{before}{name}.")
        elif name == "learning_rate":
            yield before + name


def test_no_document_holds_a_figure_still_to_be_filled_in() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("jobs/*/README.md")]:
        text = document.read_text(encoding="utf-8")
        # @NAME@, or a line of capitals alone
        assert not re.findall(r"@[A-Z]{3,}@|^[A-Z_]{4,}$", text, flags=re.MULTILINE), document
