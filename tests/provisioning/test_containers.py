"""The image and what `nvflare deploy prepare` makes of our settings, read as text: no engine runs in these tests."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from nvflare.app_opt.job_launcher.study_runtime import load_study_runtime_file
from nvflare.tool.deploy import deploy_common, docker_deploy, k8s_deploy

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "provisioning" / "docker"
IMAGE = "registry.example.org/fedmedseg-site:1"
STAGES = {"FROM", "ARG", "COPY", "RUN", "ENV", "USER", "WORKDIR", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """Instruction and arguments of every line of the Dockerfile, continuation lines joined."""
    text = "\n".join(line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    lines = [line for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def arguments(word: str) -> list[str]:
    return [rest for found, rest in instructions() if found == word]


def test_the_dockerfile_uses_plain_instructions_and_every_argument_it_declares() -> None:
    assert {word for word, _ in instructions()} <= STAGES
    text = " ".join(rest for word, rest in instructions() if word != "ARG")
    for declared in arguments("ARG"):
        assert f"${{{declared.partition('=')[0]}}}" in text, declared


def test_the_image_stands_on_cuda_and_on_the_python_the_tests_ran_with() -> None:
    given = dict(one.split("=", 1) for one in arguments("ARG") if "=" in one)
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu24\.04", given["BASE"])
    assert given["PYTHON"].startswith("python:3.11-")
    assert arguments("FROM") == ["${PYTHON} AS build", "${BASE}"]
    assert "--from=build /usr/local /usr/local" in arguments("COPY"), "FLARE's launchers call /usr/local/bin/python3"
    assert k8s_deploy.K8S_PARENT_PYTHON_PATH == "/usr/local/bin/python3"
    assert arguments("WORKDIR") == [deploy_common.WORKSPACE_MOUNT_PATH]


def test_the_wheel_is_the_one_the_kits_name_and_its_versions_are_pinned() -> None:
    assert {"WHEEL", "WHEEL_SHA256"} <= set(arguments("ARG")), "neither has a default: nobody forgets them"
    (install,) = [run for run in arguments("RUN") if "pip install" in run]
    assert install.index("sha256sum --check --strict") < install.index("pip install")
    assert "--constraint" in install
    assert all(run.startswith("set -eu;") for run in arguments("RUN"))


def told(command: str) -> list[str]:
    """The words of a `docker` command of the README, as a shell takes them apart."""
    text = (ROOT / "provisioning" / "README.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (block,) = [block for language, block in blocks if not language and block.startswith(command)]
    assert subprocess.run(["bash", "-n", "-c", block], check=False).returncode == 0
    return shlex.split(block.replace("\\\n", " "))


def after(words: list[str], flag: str) -> list[str]:
    return [value for name, value in pairwise(words) if name == flag]


def test_the_readme_builds_this_dockerfile_with_arguments_it_has() -> None:
    words = told("docker build")
    assert after(words, "-f") == [str(DOCKER.relative_to(ROOT) / "Dockerfile")]
    assert after(words, "-t") == [IMAGE]
    declared = {one.partition("=")[0]: "=" in one for one in arguments("ARG")}
    given = {one.partition("=")[0] for one in after(words, "--build-arg")}
    assert given <= set(declared)
    assert given == {name for name, default in declared.items() if not default}, "all that have no default"
    pins = set(re.findall(r"--build-arg (\w+)=[\w/]+@sha256:", (ROOT / "provisioning" / "README.md").read_text()))
    assert {f"${{{name}}}" for name in pins} == {one.split()[0] for one in arguments("FROM")}, "every base image"


def test_the_readme_runs_the_kit_where_flare_looks_for_it_and_without_rights() -> None:
    words = told("docker run")
    image = words.index(IMAGE)
    assert words[image + 1 :] == ["bash", "startup/sub_start.sh", "--once"]
    assert f"$PWD/hospital-1:{deploy_common.WORKSPACE_MOUNT_PATH}" in after(words, "--volume")
    assert "--read-only" in words
    assert after(words, "--cap-drop") == ["ALL"]
    assert after(words, "--security-opt") == ["no-new-privileges"]
    assert not any("docker.sock" in word for word in words)


def test_the_image_runs_without_rights_and_takes_in_nothing_but_wheel_and_constraints() -> None:
    assert [word for word, _ in instructions()][-3:] == ["USER", "WORKDIR", "CMD"]
    assert arguments("USER") == ["10001:10001"]
    assert arguments("COPY") == ["${WHEEL} ${CONSTRAINTS} /build/", "--from=build /usr/local /usr/local"]
    for word, rest in instructions():
        assert not re.search(r"key|secret|password|token|\.pem|\.crt|curl|wget", rest, re.IGNORECASE), (word, rest)


def let_in(path: str) -> bool:
    """Whether .dockerignore lets a file into the build: the last rule that meets it, or a folder above it, counts."""
    above = [path, *(str(parent) for parent in Path(path).parents if str(parent) != ".")]
    taken = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        rule = line.removeprefix("!")
        if any(one.count("/") == rule.count("/") and fnmatch.fnmatchcase(one, rule) for one in above):
            taken = line.startswith("!")
    return taken


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("constraints.txt", True),
        ("dist/fedmedseg-0.1.0-py3-none-any.whl", True),
        ("dist/fedmedseg-0.1.0.tar.gz", False),
        ("kits/fedmedseg/prod_00/hospital-1/startup/client.key", False),
        ("kits/fedmedseg/state/cert.json", False),
        ("ca/rootCA.pem", False),
        ("data/patient.nii.gz", False),
        ("custom/fedmedseg/__init__.py", False),
        (".git/config", False),
    ],
)
def test_the_build_sees_no_kit_no_key_and_no_data(path: str, taken: bool) -> None:
    assert let_in(path) is taken


@pytest.mark.parametrize(
    ("file", "mode", "sources"),
    [
        ("docker-study.yaml", "docker", {"/data/default/own": "/srv/fedmedseg"}),
        ("k8s-study.yaml", "k8s", {"/data/default/own": "fedmedseg-data"}),
        ("server-study.yaml", "docker", {}),
        ("server-study.yaml", "k8s", {}),
    ],
)
def test_flare_reads_what_a_jobs_container_gets(file: str, mode: str, sources: dict[str, str]) -> None:
    study = load_study_runtime_file(str(DOCKER / file), mode)["default"]
    assert study.container_image == IMAGE
    assert {one.mount_path: one.source for one in study.datasets} == sources


@pytest.fixture(scope="module")
def prepared(kits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Kits as `nvflare deploy prepare` makes them, by runtime and participant."""
    import shutil

    folder = tmp_path_factory.mktemp("prepared")
    made = {}
    for runtime, module in (("docker", docker_deploy), ("k8s", k8s_deploy)):
        config = yaml.safe_load((DOCKER / f"{runtime}.yaml").read_text())
        module.validate_config(config)
        for who in ("hospital-1", "server.example.org"):
            kit = Path(shutil.copytree(kits / who, folder / f"{runtime}-{who}"))
            (kit / "local" / "resources.json").rename(kit / "local" / "resources.json.default")
            module.prepare(deploy_common.validate_kit(kit), kit, config)
            made[runtime, who] = kit
    return made


def secrets_of(kit: Path) -> list[bytes]:
    """The bodies of a kit's private keys."""
    return [b"".join(file.read_bytes().splitlines()[1:-1]) for file in (kit / "startup").glob("*.key")]


@pytest.mark.parametrize("who", ["hospital-1", "server.example.org"])
def test_a_chart_has_the_image_the_mount_no_rights_and_no_secret(
    prepared: dict[tuple[str, str], Path], who: str
) -> None:
    kit = prepared["k8s", who]
    chart = kit / "helm_chart"
    values: dict[str, Any] = yaml.safe_load((chart / "values.yaml").read_text())
    assert f"{values['image']['repository']}:{values['image']['tag']}" == IMAGE
    workspace = values["persistence"]["workspace"]
    assert (workspace["claimName"], workspace["mountPath"]) == ("fedmedseg-workspace", "/var/tmp/nvflare/workspace")
    assert values["securityContext"]["runAsNonRoot"] is True
    assert values["securityContext"]["runAsUser"] == 10001
    assert values["resources"]["limits"] == {"memory": "8Gi"}
    assert values["command"] == ["/usr/local/bin/python3"]
    assert "secure_train=true" in values["args"]
    deployment = next((chart / "templates").glob("*-deployment.yaml")).read_text()
    for used in ("with .Values.securityContext", ".Values.persistence.workspace.claimName", '.image" . }}'):
        assert used in deployment, "FLARE's template uses what the values say"
    keys = secrets_of(kit)
    assert keys
    for file in (one for one in chart.rglob("*") if one.is_file()):
        content = file.read_bytes()
        assert b"PRIVATE KEY" not in content
        assert b"BEGIN CERTIFICATE" not in content
        assert not [key for key in keys if key[:60] in content.replace(b"\n", b"")]
        assert b"kind: Secret" not in content


@pytest.mark.parametrize("who", ["hospital-1", "server.example.org"])
def test_pods_of_jobs_run_without_rights_too(prepared: dict[tuple[str, str], Path], who: str) -> None:
    resources = yaml.safe_load((prepared["k8s", who] / "local" / "resources.json.default").read_text())
    (launcher,) = [one for one in resources["components"] if one["id"] == "k8s_launcher"]
    assert launcher["args"]["security_context"]["runAsNonRoot"] is True
    assert launcher["args"]["security_context"]["runAsUser"] == 10001


@pytest.mark.parametrize("who", ["hospital-1", "server.example.org"])
def test_dockers_start_script_is_sound_and_holds_no_secret(prepared: dict[tuple[str, str], Path], who: str) -> None:
    kit = prepared["docker", who]
    script = kit / "startup" / "start_docker.sh"
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, check=False).returncode == 0
    text = script.read_text()
    assert f'DOCKER_IMAGE=${{NVFL_P_IMAGE:-"{IMAGE}"}}' in text
    assert '--user "$(id -u):$(id -g)"' in text
    assert "PRIVATE KEY" not in text
