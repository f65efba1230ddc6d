"""The runbooks: every command, typed in the order in which three people would, in a federation on this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from processes import working_below

from fedmedseg.core.jobs import find_job, read_settings, setting
from fedmedseg.data.site import write_phantoms
from fedmedseg.provisioning.loopback import LoopbackFederation, bundle_project, free_port, loopback_project

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "provisioning" / "runbooks"
NAMES = ("network-admin", "hospital", "study-lead")
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = re.compile(r"^```(?:sh|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ELSEWHERE = (
    *(f"fedmedseg {name}" for name in ("init", "simulate", "federation", "report", "predict", "export")),
    "nvflare deploy prepare",
)
"""Commands that other documents explain, and other tests run."""
LINK = re.compile(r"\]\(([^)#]*)(?:#([^)]*))?\)")
STORY = (
    ("network-admin", "Make kits and hand them out"),
    ("network-admin", "Start"),
    ("hospital", "Prove the kit"),
    ("hospital", "Name the data and what may leave"),
    ("hospital", "Start"),
    ("network-admin", "Look"),
    ("study-lead", "Install"),
    ("study-lead", "Write the job"),
    ("study-lead", "Submit"),
    ("study-lead", "Follow"),
    ("study-lead", "Stop"),
    ("study-lead", "Continue"),
    ("study-lead", "Wait and fetch"),
    ("study-lead", "When a job hangs or fails"),
    ("hospital", "Decide on jobs"),
    ("hospital", "Look"),
    ("network-admin", "Renew certificates"),
    ("hospital", "Renew the certificate"),
    ("hospital", "Back up and restore"),
    ("network-admin", "Back up and restore"),
    ("network-admin", "Revoke a certificate"),
    ("hospital", "Stop"),
    ("hospital", "Withdraw"),
    ("network-admin", "A hospital withdraws"),
    ("network-admin", "Stop"),
)
"""Who types what, one after the other."""
SITE, SERVER = "hospital-1", "localhost"
STUDY = {
    "study": "fedata-runbook",
    "stages": {"pretraining": {"rounds": 12}},
    "fedata": {"local_steps": 1, "starts": ["shared"]},
    "segmentation": {"steps": 1, "batch": 1},
}
TINY = "data.phantom={family: cine_mr, unlabeled: 1, training: 1, validation: 1, test: 1}"


def sections(name: str) -> dict[str, str]:
    """Heading -> text of a runbook."""
    parts = re.split(r"^## (.+)\n", (RUNBOOKS / f"{name}.md").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_section_with_commands_is_part_of_the_story() -> None:
    told = [(name, heading) for name in NAMES for heading, text in sections(name).items() if BLOCK.search(text)]
    assert sorted(told) == sorted(STORY)


def test_no_command_stands_in_a_sentence_alone() -> None:
    """A command with options is in a block that is run; a sentence may name one, or a flag, and no more."""
    typed = "\n".join(RUN.findall("".join((RUNBOOKS / f"{name}.md").read_text() for name in NAMES)))
    for name in NAMES:
        sentences = re.sub(r"^```.*?^```$", "", (RUNBOOKS / f"{name}.md").read_text(), flags=re.MULTILINE | re.DOTALL)
        for inline in re.findall(r"`((?:nvflare|fedmedseg) [^`]+)`", sentences):
            assert inline in typed or inline in ELSEWHERE, f"{name}: {inline}"


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_are_bash_and_the_links_lead_somewhere(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text()
    done = subprocess.run(["bash", "-n", "-c", "\n".join(RUN.findall(text))], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    for file, heading in LINK.findall(text):
        target = (RUNBOOKS / file).resolve() if file else RUNBOOKS / f"{name}.md"
        assert target.is_file(), file
        anchors = [
            re.sub(r"[^a-z0-9 -]", "", line.lstrip("# ").lower()).replace(" ", "-")
            for line in target.read_text().splitlines()
            if line.startswith("#")
        ]
        assert not heading or heading in anchors, f"{file}#{heading}"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with the project of a federation that fits on this machine; its processes end with the test."""
    shutil.copytree(ROOT / "provisioning", tmp_path / "provisioning")
    project = loopback_project(bundle_project(), sites=[SITE], port=free_port())
    (tmp_path / "provisioning" / "project.yml").write_text(yaml.safe_dump(project, sort_keys=False))
    yield tmp_path
    left = working_below(tmp_path / "kits")
    for one in left:
        one.kill()
    psutil.wait_procs(left, timeout=10)


def editor(folder: Path) -> Path:
    """Stands in for the person at the hospital: writes the site file."""
    experiment = read_settings(find_job("fedata"), [setting(TINY)])[1]
    assert experiment.data.phantom is not None
    listed = write_phantoms(experiment.data.phantom, seed=1, name=SITE, home=folder / "data")
    content = {"datasets": {"cmr": {"list": str(listed)}}, "privacy": {"min_count": 0}}
    (folder / "filled-in.yaml").write_text(yaml.safe_dump(content))
    script = folder / "editor.sh"
    script.write_text(f'#!/usr/bin/env bash\ncp "{folder / "filled-in.yaml"}" "$1"\n')
    script.chmod(0o755)
    return script


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_command_of_the_runbooks_works_one_after_the_other(
    folder: Path, commands: dict[str, str], age: Callable[..., None]
) -> None:
    kits = folder / "kits" / "fedmedseg" / "prod_00"
    variables = folder / "variables"
    variables.touch()
    environment = {**commands, "EDITOR": str(editor(folder)), "OMP_NUM_THREADS": "1"}

    def do(name: str, heading: str) -> str:
        """Type a section's commands where its person types them."""
        blocks = "\n".join(BLOCK.findall(sections(name)[heading])).replace("server.example.org", SERVER)
        script = f'set -euo pipefail\n. "{variables}"\n{blocks}\ndeclare -p job > "{variables}" 2>/dev/null || true\n'
        done = subprocess.run(
            ["bash", "-c", script], cwd=folder if name == "network-admin" else kits, env=environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{name}: {heading}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        if (name, heading) == ("network-admin", "Make kits and hand them out"):
            shutil.copy(kits / SERVER / "startup" / "rootCA.pem", kits)
            (kits / "study.yaml").write_text(yaml.safe_dump(STUDY))
            # the certificate that is renewed below; the kits in use are those of before
            age(kits.parent, SITE)
        elif (name, heading) == ("network-admin", "Renew certificates"):
            shutil.copytree(kits.with_name("prod_01") / SITE, kits / "renewed" / SITE, symlinks=True)
        elif (name, heading) == ("hospital", "Renew the certificate"):
            assert certificate(kits / SITE) == certificate(kits / "renewed" / SITE)
            assert (kits / SITE / "local" / "fedmedseg.yaml").read_text() == (folder / "filled-in.yaml").read_text()
        return done.stdout

    def certificate(kit: Path) -> bytes:
        return (kit / "startup" / "client.crt").read_bytes()

    said = {(name, heading): do(name, heading) for name, heading in STORY}

    (told,) = re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", variables.read_text())
    assert told in said["study-lead", "When a job hangs or fails"]
    assert "FINISHED:COMPLETED" in said["study-lead", "When a job hangs or fails"]
    assert (folder / "restored" / SERVER / "store" / "jobs" / told).exists(), "as long as nobody deletes it"
    assert not (kits / SERVER / "store" / "jobs" / told).exists()
    assert SITE in said["network-admin", "Look"]
    report = next((kits / "results").rglob("run.json")).read_text()
    assert '"outcome": "finished"' in report
    revoked = said["network-admin", "Revoke a certificate"]
    assert revoked.index("disabled") < revoked.index("enabled")
    for restored in (kits / "restored-site" / SITE, folder / "restored" / SERVER):
        assert (restored / "resources.json").is_symlink(), "the links in a kit's root survive a backup"
    assert (folder / "restored" / SERVER / "store" / "jobs").is_dir()
    assert list((kits / "restored-site" / SITE / "fedmedseg").rglob("*.safetensors"))
    withdrawn = kits / SITE
    assert not (withdrawn / "fedmedseg").exists()
    assert not (withdrawn / "startup" / "client.key").exists()
    assert [one.name for one in withdrawn.iterdir() if re.fullmatch(r"[0-9a-f-]{36}", one.name)] == []
    psutil.wait_procs(working_below(folder / "kits"), timeout=60)
    assert working_below(folder / "kits") == [], "the watchdogs ended too"


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_disabled_hospital_stays_outside_also_after_the_server_starts_again(folder: Path) -> None:
    """What network-admin.md says of revocation."""
    from fedmedseg.core import admin
    from fedmedseg.provisioning.loopback import provision

    project = yaml.safe_load((folder / "provisioning" / "project.yml").read_text())
    kits = provision(project, folder / "kits")
    environment = {"HOME": str(folder), "OMP_NUM_THREADS": "1"}
    with LoopbackFederation(kits, environment=environment) as federation:
        federation.start_all([SITE], timeout=90)
        with admin.session(kits / "admin@network.example.org") as session:
            session.disable_client(SITE)
            assert sorted(admin.last_seen(session)) == []
        federation.stop()
        (kits / f"{SERVER}.log").unlink()
        federation.start(SERVER)
        federation.wait_for(SERVER, "Server started", timeout=90)
        federation.start(SITE)
        federation.wait_for(SERVER, f"Reject disabled client registration: {SITE}", timeout=90)
        with admin.session(kits / "admin@network.example.org") as session:
            assert sorted(admin.last_seen(session)) == []
