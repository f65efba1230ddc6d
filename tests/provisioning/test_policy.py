"""The kits' rules, judged by FLARE's own authorizers reading the kits' own files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.workspace import Workspace
from nvflare.app_common.default_component_policy import DEFAULT_CLASS_ALLOW_LIST
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.fuel.sec.authz import AuthorizationService, AuthzContext, Person
from nvflare.private.fed.utils.app_authz import AppAuthzService
from nvflare.security.security import COMMAND_CATEGORIES, FLAuthorizer

from fedmedseg.core.allowed_classes import CLASS_ALLOW_LIST
from fedmedseg.provisioning.policy import ROLES, authorization, comm_config, server_resources

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("jobs/*/app/config/config_fed_*.json"))
SITE, OTHER = "hospital_one", "hospital_two"


def class_paths(node: Any) -> Iterator[str]:
    """Every class a configuration names, those of nested arguments too."""
    if isinstance(node, dict):
        yield from (node[key] for key in ("path", "class_path") if isinstance(node.get(key), str))
        for value in node.values():
            yield from class_paths(value)
    elif isinstance(node, list):
        for value in node:
            yield from class_paths(value)


def lets_in(kit: Path, path: str) -> bool:
    """Whether FLARE, in a process of this kit, builds the class for a job."""
    try:
        ComponentPathAuthorizer().authorize_component_config({"path": path}, workspace=Workspace(str(kit)))
    except UnsafeComponentError:
        return False
    return True


@pytest.mark.parametrize("name", ["server.example.org", "hospital-1"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda file: f"{file.parents[2].name} {file.stem}")
def test_flare_builds_every_class_of_every_job(kits: Path, name: str, config: Path) -> None:
    paths = list(class_paths(json.loads(config.read_text())))
    assert paths
    assert [path for path in paths if not lets_in(kits / name, path)] == []


@pytest.mark.parametrize(
    ("name", "main"), [("server.example.org", "server.server_train"), ("hospital-1", "client.client_train")]
)
def test_what_runs_as_long_as_a_site_takes_part_loads_no_torch(kits: Path, name: str, main: str) -> None:
    """It would hold that memory for months, in which it neither trains nor averages."""
    content = json.loads((kits / name / "local" / "resources.json").read_text())
    modules = sorted({path.rpartition(".")[0] for path in class_paths(content) if path.startswith("fedmedseg.")})
    assert len(modules) > 2
    modules.append(f"nvflare.private.fed.app.{main}")
    code = f"import sys; [__import__(one) for one in {modules}]; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["server.example.org", "hospital-1"])
def test_flare_builds_nothing_else(kits: Path, name: str) -> None:
    named = {path for config in CONFIGS for path in class_paths(json.loads(config.read_text()))}
    others = [path for path in DEFAULT_CLASS_ALLOW_LIST if path not in named]
    assert len(others) > 80
    assert [path for path in [*others, "os.system", "fedmedsegevil.X"] if lets_in(kits / name, path)] == []
    # what a module of this package imports, or builds for provisioning
    within = ["core.guard.ServerCommands", "core.simulation.subprocess", "provisioning.loopback.prepare_builders"]
    assert [path for path in within if lets_in(kits / name, f"fedmedseg.{path}")] == []


@pytest.mark.parametrize("name", ["server.example.org", "hospital-1", "hospital-2", "hospital-3"])
def test_a_kits_list_is_the_packages_own(kits: Path, name: str) -> None:
    resources = json.loads((kits / name / "local" / "resources.json").read_text())
    assert resources["class_allow_list"] == list(CLASS_ALLOW_LIST)
    assert resources["class_list_enforcement_mode"] == "enforce"


def may(role: str, right: str, *, org: str = SITE, submitter: tuple[str, str] = ("lead", OTHER)) -> bool:
    """Whether a person of ``org`` may, at a site of ``SITE``, with a job of ``submitter`` (name, organisation)."""
    user, owner = Person("me", org, role), Person(submitter[0], submitter[1], "lead")
    return FLAuthorizer(SITE, authorization()).authorize(AuthzContext(right, user, owner))[0]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("right", ["byoc", "server-predeployed-flwr"])
@pytest.mark.parametrize("org", [SITE, OTHER])
def test_nobody_brings_code(role: str, right: str, org: str) -> None:
    assert not may(role, right, org=org, submitter=("me", org))


@pytest.mark.parametrize("role", ["project_admin", "lead"])
@pytest.mark.parametrize(
    ("meta", "refused"),
    [
        ({}, False),
        ({"launcher_spec": {"default": {"docker": {"shm_size": "1g"}, "k8s": {"num_of_gpus": 1}}}}, False),
        ({"launcher_spec": {"default": {"docker": {"image": "mine:1"}}}}, True),
        ({"launcher_spec": {"default": {"docker": {"entrypoint": "sh"}}}}, True),
        ({"launcher_spec": {"hospital-1": {"k8s": {"python_path": "/mine"}}}}, True),
        ({"launcher_spec": {"hospital-2": {"k8s": {"image": "mine:1"}}}}, False),
        ({"resource_spec": {"hospital-1": {"k8s": {"image": "mine:1"}}}}, True),
    ],
)
def test_nobody_brings_an_image(
    monkeypatch: pytest.MonkeyPatch, role: str, meta: dict[str, Any], refused: bool
) -> None:
    """What FLARE asks at hospital-1 when it deploys a job, in a container or not."""
    monkeypatch.setattr(AuthorizationService, "the_authorizer", FLAuthorizer(SITE, authorization()))
    found = AppAuthzService.derive_local_app_info({}, meta, "hospital-1")
    allowed, error = AppAuthzService.authorize_app_info(found, "me", OTHER, role, meta)
    assert (allowed, error) == ((False, "BYOC not permitted") if refused else (True, ""))


@pytest.mark.parametrize(
    ("role", "right", "allowed"),
    [
        ("project_admin", "submit_job", True),
        ("project_admin", "clone_job", True),
        ("project_admin", "abort_job", True),
        ("project_admin", "download_job", True),
        ("project_admin", "shutdown", True),
        ("project_admin", "cat", False),
        ("org_admin", "submit_job", False),
        ("org_admin", "abort_job", False),
        ("org_admin", "download_job", False),
        ("org_admin", "shutdown", False),
        ("org_admin", "cat", False),
        ("lead", "submit_job", True),
        ("lead", "abort_job", False),
        ("lead", "clone_job", False),
        ("lead", "delete_job", False),
        ("lead", "download_job", False),
        ("lead", "get_job_log", False),
        ("lead", "shutdown", False),
        ("lead", "tail", False),
        ("member", "submit_job", False),
        ("member", "abort_job", False),
        ("member", "list_jobs", True),
        ("member", "shutdown", False),
        ("nobody", "list_jobs", False),
    ],
)
def test_rights_over_another_organisations_site_and_job(role: str, right: str, allowed: bool) -> None:
    assert may(role, right, org="network", submitter=("lead", OTHER)) is allowed


@pytest.mark.parametrize(
    ("role", "right", "allowed"),
    [
        ("org_admin", "abort_job", True),
        ("org_admin", "shutdown", True),
        ("org_admin", "cat", True),
        ("org_admin", "clone_job", False),
        ("lead", "abort_job", True),
        ("lead", "clone_job", True),
        ("lead", "download_job", True),
        ("lead", "get_job_log", True),
        ("member", "abort_job", False),
        ("member", "cat", False),
    ],
)
def test_rights_at_home_and_over_ones_own_job(role: str, right: str, allowed: bool) -> None:
    assert may(role, right, org=SITE, submitter=("me", SITE)) is allowed


def test_the_networks_administrator_loses_nothing_but_code_and_other_peoples_files() -> None:
    """FLARE's own word for that role is one "any": every right has to be spelt out to take two away."""
    for command, category in COMMAND_CATEGORIES.items():
        assert may("project_admin", command, org="network") is (category != "shell_commands"), command


def test_only_local_processes_reach_a_job_without_a_certificate() -> None:
    content = comm_config("vpn")
    assert content["allow_adhoc_conns"] is False
    assert content["internal"]["resources"]["host"] == "localhost"


def test_the_servers_stores_are_relative() -> None:
    resources = server_resources("lan", max_jobs=2, max_sites=5)
    components = {entry["id"]: entry["args"] for entry in resources["components"]}
    assert components["job_manager"]["uri_root"] == "store/jobs"
    assert components["job_store"]["root_dir"] == "."
    assert components["job_scheduler"]["max_jobs"] == 2
    assert resources["servers"][0]["max_num_clients"] == 5
    assert resources["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] == "store/snapshots"
